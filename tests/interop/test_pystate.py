"""Pickles of weights come back, whoever wrote them; of any other pickle nothing is run, imported or believed."""

from __future__ import annotations

import collections
import contextlib
import io
import os
import pickle
import struct
import zipfile
from pathlib import Path

import haiku as hk
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from haiku._src import data_structures
from safetensors.numpy import save_file

from perceiver_jax.interop import pystate
from perceiver_jax.types import UserError

PROTOCOLS = (2, 3, 4, 5)


def read(content: bytes, tmp_path: Path):
  path = tmp_path / 'weights.pystate'
  path.write_bytes(content)
  return pystate.read(path)


def assert_same(found, expected):
  """The same containers, of plain types, and the same bits."""
  assert jax.tree.structure(found) == jax.tree.structure(expected)
  for left, right in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
    if hasattr(right, 'dtype'):
      assert type(left) is (np.ndarray if isinstance(right, np.ndarray | jax.Array) else type(right))
      assert (left.dtype, left.shape, left.tobytes()) == (right.dtype, right.shape, np.asarray(right).tobytes())
    else:
      assert type(left) is type(right) and left == right


def make_tree():
  generator = np.random.default_rng(0)
  return {
    'params': {
      'encoder/~/linear': {'w': generator.normal(size=(3, 5)).astype(np.float32), 'b': np.zeros(5, np.float64)},
      'encoder/~/half': {'w': generator.normal(size=7).astype(ml_dtypes.bfloat16), 'b': np.ones((2, 1), np.float16)},
    },
    'state': {'batchnorm/~/mean_ema': {'counter': np.array(3, np.int32), 'hidden': np.zeros((0, 4), np.float32)}},
    'more': [1, -(2 ** 70), 0.5, True, None, 'ünï', (), (1,), (1, 2, 3, 4), [], {}, 70_000, 300],
    'flags': np.array([True, False]), 'bytes': np.arange(256, dtype=np.uint8), 'fft': np.ones(2, np.complex64),
  }


@pytest.mark.parametrize('protocol', PROTOCOLS)
def test_trees_of_arrays_come_back_bit_for_bit(tmp_path, protocol):
  assert_same(read(pickle.dumps(make_tree(), protocol), tmp_path), make_tree())


@pytest.mark.parametrize('protocol', PROTOCOLS)
def test_it_reads_what_pickle_reads(tmp_path, protocol):
  content = pickle.dumps(make_tree(), protocol)
  assert_same(read(content, tmp_path), pickle.loads(content))


@pytest.mark.parametrize('protocol', PROTOCOLS)
@pytest.mark.parametrize('array', [
  np.arange(24.0).reshape(2, 3, 4).transpose(1, 0, 2), np.asfortranarray(np.arange(6).reshape(2, 3)),
  np.arange(10)[::3], np.float32(1.5), np.bool_(True), np.int64(-1), ml_dtypes.bfloat16(2)],
  ids=['transposed', 'fortran', 'strided', 'float32', 'bool', 'int64', 'bfloat16'])
def test_any_layout_and_scalars_come_back(tmp_path, protocol, array):
  found = read(pickle.dumps(array, protocol), tmp_path)
  assert (type(found), found.dtype, found.shape) == (type(array), array.dtype, array.shape)
  np.testing.assert_array_equal(found, array)


@pytest.mark.parametrize('protocol', PROTOCOLS)
def test_arrays_of_this_jax_come_back_as_numpy(tmp_path, protocol):
  tree = {'a': {'w': jnp.arange(6.0).reshape(2, 3), 'b': jnp.ones(3, jnp.bfloat16), 'step': jnp.int32(4)}}
  assert_same(read(pickle.dumps(tree, protocol), tmp_path), tree)


@pytest.mark.parametrize('protocol', PROTOCOLS)
def test_haikus_mappings_come_back_as_dicts(tmp_path, protocol):
  tree = {'a/b': {'w': np.ones((2, 3), np.float32)}, 'c': {'d': np.zeros(1)}}
  flat_mapping = data_structures.to_immutable_dict(tree)
  assert type(flat_mapping) is not dict
  content = pickle.dumps({'params': flat_mapping, 'state': data_structures.to_immutable_dict({})}, protocol)
  assert b'FlatMapping' in content
  found = read(content, tmp_path)
  assert_same(found, {'params': tree, 'state': {}})
  assert type(found['params']) is type(found['params']['a/b']) is type(found['state']) is dict
  frozen = data_structures.frozendict({'a': data_structures.frozendict({'w': np.ones(2)})})
  assert_same(read(pickle.dumps(frozen, protocol), tmp_path), {'a': {'w': np.ones(2)}})
  ordered = collections.OrderedDict(b=np.ones(2), a=collections.OrderedDict())
  assert_same(read(pickle.dumps(ordered, protocol), tmp_path), {'b': np.ones(2), 'a': {}})


def test_a_models_parameters_come_back(tmp_path):
  model = hk.transform_with_state(lambda x: hk.BatchNorm(True, True, 0.9)(hk.Linear(3)(x), is_training=True))
  params, state = model.init(jax.random.key(0), jnp.ones((2, 4)))
  tree = {'params': params, 'state': state}
  assert_same(read(pickle.dumps(tree), tmp_path), tree)


def test_many_arrays_share_their_names_through_the_memo(tmp_path):
  tree = {f'layer_{i}': {'w': np.full((2, 2), i, np.float32)} for i in range(600)}  # past what one byte can count
  for protocol in PROTOCOLS:
    assert_same(read(pickle.dumps(tree, protocol), tmp_path), tree)


# Files as older libraries wrote them, instruction by instruction.


def text(value: str) -> bytes:
  return b'X' + struct.pack('<I', len(value.encode())) + value.encode()


def old_array(module: str = 'numpy.core.multiarray', *, shape=(2,), data=b'\0\0\x80?' * 2, flags=b'K\0K\1',
              separate=False) -> bytes:
  """What numpy 1.x gives for an array, as one object; or, `separate`, its three parts, as JAX keeps them."""
  sizes = b''.join(b'\x8a\x08' + struct.pack('<q', size) for size in shape)
  reconstruct, arguments = f'c{module}\n_reconstruct\n'.encode(), b'cnumpy\nndarray\nK\0\x85C\1b\x87'
  layout = b'(K\3' + text('<') + b'NNN' + b'J\xff\xff\xff\xff' * 2 + b'K\0t'
  kind = b'cnumpy\ndtype\n' + text('f4') + flags + b'\x87R' + layout + b'b'
  state = b'(K\1(' + sizes + b't' + kind + b'\x89B' + struct.pack('<I', len(data)) + data + b't'
  return reconstruct + arguments + (state if separate else b'R' + state + b'b')


def as_dict(value: bytes) -> bytes:
  return b'\x80\3}' + text('w') + value + b's.'


@pytest.mark.parametrize('module', ['numpy.core.multiarray', 'numpy._core.multiarray'])
@pytest.mark.parametrize('flags', [b'K\0K\1', b'\x89\x88'], ids=['numbers', 'booleans'])
def test_arrays_of_old_and_new_numpy_come_back(tmp_path, module, flags):
  assert_same(read(as_dict(old_array(module, flags=flags)), tmp_path), {'w': np.ones(2, np.float32)})


@pytest.mark.parametrize('name', [
  'jax._src.device_array\nreconstruct_device_array', 'jax._src.array\n_reconstruct_array'])
def test_arrays_of_old_jax_come_back(tmp_path, name):
  aval = b'}(' + text('weak_type') + b'\x89' + text('named_shape') + b'}u'
  value = f'c{name}\n('.encode() + old_array(separate=True) + aval + b'tR'
  assert_same(read(as_dict(value), tmp_path), {'w': np.ones(2, np.float32)})


def test_buffers_of_old_numpy_come_back(tmp_path):
  content = pickle.dumps({'w': np.ones((2, 3))}, 5)
  new, old = (b'\x8c' + bytes([len(name)]) + name for name in (b'numpy._core.numeric', b'numpy.core.numeric'))
  at = content.index(b'\x95')               # a frame's length would be wrong, but none is needed
  content = content[:at] + content[at + 9:].replace(new, old)
  assert_same(read(content, tmp_path), {'w': np.ones((2, 3))})


def test_bfloat16_of_old_jax_comes_back(tmp_path):
  data = np.array([1, 2], ml_dtypes.bfloat16)
  content = pickle.dumps(data, 2)
  assert b'cml_dtypes\nbfloat16\n' in content
  assert_same(read(content.replace(b'cml_dtypes\n', b'cjaxlib.xla_extension\n'), tmp_path), data)


def test_a_nested_mapping_as_haiku_wrote_it_in_2021(tmp_path):
  name = b'chaiku._src.data_structures\nFlatMapping\nq\0'
  content = (b'\x80\3' + name + b'}q\1' + text('a') + b'q\2h\0}q\3' + text('b') + b'q\4h\0}q\5' + text('c') + b'q\6K\1s'
             b'\x85q\7Rq\x08s\x85q\tRq\ns\x85q\x0bRq\x0c.')
  assert read(content, tmp_path) == {'a': {'b': {'c': 1}}}


# What must not run. Each payload would leave a file behind if anything of it ran.


class Payload:
  def __init__(self, command):
    self.command = command

  def __reduce__(self):
    return os.system, (self.command,)


def attacks(marker: Path) -> dict[str, tuple[bytes, str]]:
  """{name: (pickle, what the message must name)}."""
  shell = f'touch {marker}'
  call = b'(' + text(shell) + b'tR.'
  hidden = pickle.dumps({'w': np.array([Payload(shell)], object)}, 2)
  return {
    'persistent id of an object': (b'\x80\2' + text('x') + b'Q.', 'BINPERSID'),
    'dotted name': (
      b'\x80\4' + text('numpy') + text('core.multiarray._reconstruct.__globals__') + b'\x93' + call,
      'refuses numpy.core.multiarray._reconstruct.__globals__'),
    'a call of an array type': (b'\x80\2cnumpy\nndarray\n' + call, 'refuses to call ndarray'),
    'state of a name': (b'\x80\2cnumpy\ndtype\n}' + text('call') + b'Nsb.', 'state of dtype'),
    'state of a dict': (b'\x80\2}}' + text('__class__') + b'K\1sb.', 'state of a dict'),
    'state of an array': (b'\x80\2' + old_array()[:-1].replace(b'(K\1(', b'(K\2(') + b'b.', 'state of a array'),
    'codec that unpacks': (
      b'\x80\2c_codecs\nencode\n' + text('x') + text('zlib') + b'\x86R.', 'refuses to call encode'),
    'mapping of a payload': (
      b'\x80\2chaiku._src.data_structures\nFlatMapping\ncos\nsystem\n' + call, 'refuses os.system'),
    'mapping with a tree definition': (
      b'\x80\2chaiku._src.data_structures\nFlatMapping\n(cjaxlib.xla_extension.pytree\nPyTreeDef\ntR.',
      'refuses jaxlib.xla_extension.pytree.PyTreeDef'),
    'object array': (hidden, 'refuses arrays of dtype O8'),
    'jax array of a payload': (
      b'\x80\2cjax._src.array\n_reconstruct_array\n(cos\nsystem\n(' + text(shell) + b'tN}tR.', 'refuses os.system'),
    'jax array of another call': (
      b'\x80\2cjax._src.array\n_reconstruct_array\n(cnumpy\ndtype\n(' + text('f4') + b'K\0K\1tN}tR.',
      'refuses to call _reconstruct_array'),
  }


NAMES = list(attacks(Path('nowhere')))


@pytest.mark.parametrize('name', NAMES)
def test_nothing_runs_and_the_refusal_names_it(tmp_path, name):
  marker = tmp_path / 'marker'
  content, says = attacks(marker)[name]
  with pytest.raises(UserError) as error:
    read(content, tmp_path)
  assert says in str(error.value) and 'weights.pystate' in str(error.value)
  assert 'Nothing in it was run' in str(error.value) and '\n' not in str(error.value)
  assert not marker.exists()


def test_the_payload_does_run_in_pythons_own_reader(tmp_path):
  marker = tmp_path / 'marker'
  pickle.loads(attacks(marker)['object array'][0])
  assert marker.exists()


# What must not hang, swell, or crash.


HOSTILE = {
  'a string repeated': (
    b'\x80\2' + text('a' * 10_000) + b'q\0c_codecs\nencode\nq\1' + b'h\1h\0X\6\0\0\0latin1\x86R' * 500 + b'.',
    'repeats its strings'),
  'a large array': (as_dict(old_array(shape=(2 ** 20, 2 ** 20))), 'takes 4398046511104 bytes, not the 8'),
  'a small array': (as_dict(old_array(shape=(1,))), 'takes 4 bytes, not the 8'),
  'a negative size': (as_dict(old_array(shape=(-1, -2))), 'refuses a shape'),
  'a size past any': (as_dict(old_array(shape=(0, 2 ** 61, 2 ** 61), data=b'')), 'cannot read'),
  'many axes': (as_dict(old_array(shape=(1,) * 33, data=b'1234')), 'refuses a shape'),
  'an array never filled': (as_dict(old_array()[:-1] + b'0'), 'POP'),
  'an empty array object': (
    as_dict(b'cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\0\x85C\1b\x87R'), 'as an entry'),
  'text in an array': (pickle.dumps(np.array(['ab']), 4), 'refuses arrays of dtype U2'),
  'records in an array': (pickle.dumps(np.zeros(2, [('a', 'f4')]), 4), 'refuses arrays of dtype V4'),
  'another byte order': (pickle.dumps(np.zeros(2, '>f4'), 4), 'state of a'),
}


@pytest.mark.parametrize('content, says', HOSTILE.values(), ids=HOSTILE)
def test_hostile_files_are_answered_in_a_line(tmp_path, content, says):
  with pytest.raises(UserError) as error:
    read(content, tmp_path)
  assert says in str(error.value) and 'weights.pystate' in str(error.value)
  assert '\n' not in str(error.value) and len(str(error.value)) < 600


@pytest.mark.parametrize('protocol', PROTOCOLS)
def test_a_file_cut_anywhere_is_refused(tmp_path, protocol):
  content = pickle.dumps({'a': {'w': np.ones(3, np.float32), 'b': jnp.zeros(2)}}, protocol)
  for end in range(len(content)):
    with pytest.raises(UserError):
      read(content[:end], tmp_path)


def test_a_file_with_any_byte_changed_is_read_or_refused(tmp_path):
  content = pickle.dumps(data_structures.to_immutable_dict({'a': {'w': np.ones(3, np.float32)}}), 2)
  for at in range(len(content)):
    for value in (0, 1, ord('.'), ord('('), ord('R'), ord('b'), ord('s'), ord('0'), 0x80, 0x93, 0xff):
      with contextlib.suppress(UserError):  # no other error
        read(content[:at] + bytes([value]) + content[at + 1:], tmp_path)


def zip_file() -> bytes:
  file = io.BytesIO()
  with zipfile.ZipFile(file, 'w') as archive:
    archive.writestr('data.pkl', b'')
  return file.getvalue()


@pytest.mark.parametrize('content', [
  b'', b'\x80', b'\x80\6.', b'<!DOCTYPE html><html>', zip_file(), pickle.dumps({'a': 1}, 0), pickle.dumps({'a': 1}, 1)],
  ids=['empty', 'one byte', 'a later protocol', 'a page', 'a zip', 'protocol 0', 'protocol 1'])
def test_what_is_no_pickle_of_ours_says_how_it_begins(tmp_path, content):
  with pytest.raises(UserError, match=r'no pickle of protocol 2 to 5 \(it begins with'):
    read(content, tmp_path)


def test_safetensors_are_no_pickle(tmp_path):
  save_file({'w': np.zeros(2)}, tmp_path / 'file')
  with pytest.raises(UserError, match='no pickle of protocol 2 to 5'):
    pystate.read(tmp_path / 'file')


def test_a_missing_file_and_a_directory_are_named(tmp_path):
  for path in (tmp_path, tmp_path / 'missing'):
    with pytest.raises(UserError, match=f'cannot read {path}: '):
      pystate.read(path)


@pytest.mark.parametrize(('content', 'kind'), [
  (b'PK\3\4 and more', 'a zip archive'), ((20).to_bytes(8, 'little') + b'{"__metadata__":{}} ', 'safetensors')])
def test_weights_of_another_kind_are_named_with_what_to_do(tmp_path, content, kind):
  (tmp_path / 'file').write_bytes(content)
  with pytest.raises(UserError, match=f'no pickle .* but {kind}: a model of Hugging Face.* given by its directory'):
    pystate.read(tmp_path / 'file')
