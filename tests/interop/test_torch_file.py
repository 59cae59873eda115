"""Weights in Hugging Face's directories: read without PyTorch, and refused without running anything."""

from __future__ import annotations

import importlib
import io
import json
import os
import pathlib
import pickle
import zipfile

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from perceiver_jax.interop import torch_file
from perceiver_jax.types import UserError

ARRAYS = {
  'a.weight': np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32),
  'b': np.random.default_rng(1).normal(size=5).astype(np.float16),
  'c': np.random.default_rng(2).normal(size=(2, 1)).astype(jnp.bfloat16),
  'num_batches_tracked': np.array(7, np.int64),
}


@pytest.fixture
def torch():
  if os.environ.get('CI') == 'true':
    return importlib.import_module('torch')
  return pytest.importorskip('torch', reason='torch is not installed: no file of its own is read')


def _assert_same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
  assert found.keys() == expected.keys()
  for name, array in expected.items():
    assert found[name].dtype == array.dtype and found[name].shape == array.shape, name
    np.testing.assert_array_equal(found[name], array, err_msg=name)


# Safetensors.


def test_safetensors_are_read_in_every_precision(tmp_path):
  save_file(ARRAYS, tmp_path / 'model.safetensors')
  (tmp_path / 'pytorch_model.bin').write_text('is not looked at')
  _assert_same(torch_file.read(tmp_path), ARRAYS)


def test_shards_are_read_as_one(tmp_path):
  files = {'a.weight': 'model-1.safetensors', 'b': 'model-1.safetensors', 'c': 'model-2.safetensors',
           'num_batches_tracked': 'model-2.safetensors'}
  for file in set(files.values()):
    save_file({name: ARRAYS[name] for name in files if files[name] == file}, tmp_path / file)
  (tmp_path / 'model.safetensors.index.json').write_text(json.dumps({'metadata': {}, 'weight_map': files}))
  _assert_same(torch_file.read(tmp_path), ARRAYS)


@pytest.mark.parametrize(('index', 'message'), [
  ('{"weight_map": {"a": "../../secret.safetensors"}}', 'outside its own directory'),
  ('{"weight_map": {"a": "/etc/passwd"}}', 'outside its own directory'),
  ('{"weight_map": {"a": 3}}', r'index\.json is damaged'),
  ('{"weight_map": ["a"]}', r'index\.json is damaged'),
  ('[]', r'index\.json is damaged'),
  ('{', r'index\.json is damaged'),
  ('{"weight_map": {"a": "missing.safetensors"}}', r'missing\.safetensors'),
])
def test_a_damaged_index_is_the_users_mistake(tmp_path, index, message):
  (tmp_path / 'model.safetensors.index.json').write_text(index)
  with pytest.raises(UserError, match=message):
    torch_file.read(tmp_path)


def test_a_directory_without_weights_is_the_users_mistake(tmp_path):
  with pytest.raises(UserError, match=r'holds neither model\.safetensors nor pytorch_model\.bin'):
    torch_file.read(tmp_path)


@pytest.mark.parametrize('name', ['model.safetensors', 'pytorch_model.bin'])
@pytest.mark.parametrize(('content', 'message'), [
  (b'\n<!DOCTYPE html><html><body>404</body></html>', 'a web page; fetch it again'),
  (b'version https://git-lfs.github.com/spec/v1\noid sha256:00', 'git lfs pull'),
  (b'', 'is damaged'),
  (b'PK\3\4 and no more', 'is damaged'),
])
def test_a_file_that_is_something_else_is_named_as_what_it_is(tmp_path, name, content, message):
  (tmp_path / name).write_bytes(content)
  with pytest.raises(UserError, match=f'{name} .*{message}'):
    torch_file.read(tmp_path)


@pytest.mark.parametrize('kind, shape', [('F8_E4M3', [0]), ('F8_E8M0', [0]), ('F32', [0] * 65)])
def test_safetensors_of_a_dtype_or_with_more_axes_than_numpy_has_are_refused(tmp_path, kind, shape):
  header = json.dumps({'w': {'dtype': kind, 'shape': shape, 'data_offsets': [0, 0]}}).encode()
  (tmp_path / 'model.safetensors').write_bytes(len(header).to_bytes(8, 'little') + header)
  with pytest.raises(UserError, match=r'model\.safetensors'):
    torch_file.read(tmp_path)


# PyTorch's own files.


def _their_tensors(torch):
  base = torch.arange(24, dtype=torch.float32).reshape(2, 3, 4)
  kinds = ('float64', 'float16', 'bfloat16', 'int64', 'int32', 'int16', 'int8', 'uint8', 'bool')
  return {
    'whole': base,
    'shared': base,
    'turned': base.permute(2, 0, 1),
    'part': base[1:, ::2, 1:3],
    'row': base[1, 2],
    'number': torch.tensor(3.5),
    'nothing': torch.zeros(0, 3),
    'parameter': torch.nn.Parameter(torch.ones(2)),
    'frozen': torch.nn.Parameter(torch.ones(2), requires_grad=False),
    **{kind: torch.tensor([0, 1, 1], dtype=getattr(torch, kind)) for kind in kinds},
  }


def _as_numpy(tensor):
  bits = tensor.detach()
  return bits.float().numpy().astype(jnp.bfloat16) if str(bits.dtype) == 'torch.bfloat16' else bits.numpy()


@pytest.mark.parametrize('protocol', [2, 3, 4, 5])
def test_a_file_of_pytorch_is_read_whatever_its_tensors_are_views_of(torch, tmp_path, protocol):
  tensors = _their_tensors(torch)
  torch.save(tensors, tmp_path / 'pytorch_model.bin', pickle_protocol=protocol)
  _assert_same(torch_file.read(tmp_path), {name: _as_numpy(tensor) for name, tensor in tensors.items()})


def test_the_parameters_of_a_module_are_read(torch, tmp_path):
  module = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 1), torch.nn.BatchNorm2d(3))
  torch.save(module.state_dict(), tmp_path / 'pytorch_model.bin')  # an OrderedDict with an attribute
  _assert_same(torch_file.read(tmp_path), {name: _as_numpy(tensor) for name, tensor in module.state_dict().items()})


def test_shards_of_pytorch_are_read_as_one(torch, tmp_path):
  tensors = _their_tensors(torch)
  names = list(tensors)
  files = {name: f'shard-{i % 2}.bin' for i, name in enumerate(names)}
  for file in set(files.values()):
    torch.save({name: tensors[name] for name in names if files[name] == file}, tmp_path / file)
  (tmp_path / 'pytorch_model.bin.index.json').write_text(json.dumps({'weight_map': files}))
  _assert_same(torch_file.read(tmp_path), {name: _as_numpy(tensor) for name, tensor in tensors.items()})


def test_the_old_format_is_refused_with_the_way_to_the_new_one(torch, tmp_path):
  torch.save({'a': torch.ones(2)}, tmp_path / 'pytorch_model.bin', _use_new_zipfile_serialization=False)
  message = r"PyTorch's format before 1\.6.*torch\.save\(torch\.load\(file, weights_only=True"
  with pytest.raises(UserError, match=message):
    torch_file.read(tmp_path)


def test_a_whole_module_is_refused_by_its_name(torch, tmp_path):
  torch.save(torch.nn.Linear(2, 2), tmp_path / 'pytorch_model.bin')
  with pytest.raises(UserError, match=r'refuses torch\.nn\.modules\.linear\.Linear\. Nothing in it was run'):
    torch_file.read(tmp_path)


@pytest.mark.parametrize('value', [3, 'text', None, [1], {'nested': {}}])
def test_what_is_no_tensor_is_named(torch, tmp_path, value):
  torch.save({'a': torch.ones(2), 'epoch': value}, tmp_path / 'pytorch_model.bin')
  with pytest.raises(UserError, match="these entries are no tensors: 'epoch'"):
    torch_file.read(tmp_path)


def test_damage_is_always_the_users_to_hear_of(torch, tmp_path):
  path = tmp_path / 'pytorch_model.bin'
  tensors = {'a': torch.arange(6.).reshape(2, 3), 'b': torch.ones(3, dtype=torch.bfloat16)}
  torch.save(tensors, path)
  whole = path.read_bytes()
  expected = {name: _as_numpy(tensor) for name, tensor in tensors.items()}
  generator = np.random.default_rng(0)
  num_refused = 0
  for _ in range(400):
    damaged = bytearray(whole[:generator.integers(len(whole))] if generator.random() < 0.2 else whole)
    for place in generator.integers(max(len(damaged), 1), size=generator.integers(1, 4)):
      if place < len(damaged):
        damaged[place] = generator.integers(256)
    path.write_bytes(damaged)
    try:
      found = torch_file.read(tmp_path)
    except UserError as error:
      assert str(path) in str(error)
      num_refused += 1
    else:                                  # padding, a date, a name
      for name in found.keys() & expected.keys():
        np.testing.assert_array_equal(found[name], expected[name])
  assert 100 < num_refused < 400


# Files made to harm.


def _archive(directory: pathlib.Path, program: bytes, compression: int = zipfile.ZIP_STORED, **storages: bytes) -> None:
  with zipfile.ZipFile(directory / 'pytorch_model.bin', 'w', compression) as archive:
    archive.writestr('archive/data.pkl', program)
    for key, data in storages.items():
      archive.writestr(f'archive/data/{key[1:]}', data)


def _text(value: str) -> bytes:
  return b'X' + len(value).to_bytes(4, 'little') + value.encode()


def _value(value) -> bytes:
  """The instructions that make a number, or a tuple of such."""
  return pickle.dumps(value, 2)[2:-1].replace(b'q\x00', b'')


def _tensor(offset=0, shape=(2,), strides=(1,), num_values=4, kind='FloatStorage', key='0') -> bytes:
  global_ = f'ctorch\n{kind}\n'.encode()
  storage = b'(' + _text('storage') + global_ + _text(key) + _text('cpu') + _value(num_values) + b'tQ'
  hooks = b'ccollections\nOrderedDict\n)R'
  arguments = storage + _value(offset) + _value(shape) + _value(strides) + b'\x89' + hooks
  return b'ctorch._utils\n_rebuild_tensor_v2\n(' + arguments + b'tR'


def _program(*values: bytes) -> bytes:
  return b'\x80\x02}(' + b''.join(_text(f'entry {i}') + value for i, value in enumerate(values)) + b'u.'


FOUR = np.arange(4, dtype=np.float32)


def test_tensors_made_by_hand_are_read(tmp_path):
  tensors = [
    _tensor(), _tensor(1, (3,)), _tensor(0, (2, 2), (1, 2)), _tensor(2, (4,), (0,)), _tensor(3, (1, 1), (2**70, 9))]
  _archive(tmp_path, _program(*tensors), _0=FOUR.tobytes())
  whole, rest, turned, repeated, last = torch_file.read(tmp_path).values()
  np.testing.assert_array_equal(whole, [0, 1])
  np.testing.assert_array_equal(rest, [1, 2, 3])
  np.testing.assert_array_equal(turned, [[0, 2], [1, 3]])
  np.testing.assert_array_equal(repeated, [2, 2, 2, 2])
  np.testing.assert_array_equal(last, [[3]])


@pytest.mark.parametrize(('tensor', 'message'), [
  (_tensor(3), r'a tensor \[2\], \[1\] reaches beyond its storage of 4 values'),
  (_tensor(0, (5,)), 'reaches beyond'),
  (_tensor(0, (2,), (4,)), 'reaches beyond'),
  (_tensor(0, (2, 2), (2, 2)), 'reaches beyond'),
  (_tensor(1, (5, 2), (0, 3)), 'reaches beyond'),
  (_tensor(0, (2**40, 2**40), (0, 0)), 'is larger than any'),
  (_tensor(0, (0, 2**70), (0, 0)), 'is larger than any'),
  (_tensor(0, (2**40,), (0,)), 'repeat what it holds to 4398046511104 bytes in all'),
  (_tensor(-1), 'not made of storage, offset'),
  (_tensor(1, (2,), (-1,)), 'not made of storage, offset'),
  (_tensor(0, (-1,)), 'not made of storage, offset'),
  (_tensor(0, (2,), (1, 1)), 'not made of storage, offset'),
  (_tensor(0, (1,) * 33, (1,) * 33), 'not made of storage, offset'),
  (_tensor(num_values=5), 'storage 0 holds 4 values, not 5'),
  (_tensor(kind='DoubleStorage'), 'storage 0 holds 2 values, not 4'),
  (_tensor(kind='UntypedStorage'), r'refuses torch\.UntypedStorage\.'),
  (_tensor(key='1'), 'archive/data/1'),
  (_tensor(key='../0'), 'no storage'),
  (b'ctorch._utils\n_rebuild_tensor_v2\n)R', 'not made of storage, offset'),
  (b'ctorch._utils\n_rebuild_parameter\n(K\x01K\x02K\x03tR', 'a parameter that is no tensor'),
  (b'ccollections\nOrderedDict\n(]tR', 'refuses to call OrderedDict like this'),
  (b'K\x03Q', 'no storage'),
])
def test_a_tensor_that_is_not_within_its_storage_is_refused(tmp_path, tensor, message):
  _archive(tmp_path, _program(tensor), _0=FOUR.tobytes())
  with pytest.raises(UserError, match=message):
    torch_file.read(tmp_path)


def test_an_expanded_tensor_is_read(torch, tmp_path):
  tensors = {
    'row': torch.arange(3.).expand(1000, 3), 'number': torch.tensor(2.5).expand(7, 5),
    'column': torch.arange(8.)[5:7, None].expand(2, 100)}
  torch.save(tensors, tmp_path / 'pytorch_model.bin')
  _assert_same(torch_file.read(tmp_path), {name: _as_numpy(tensor) for name, tensor in tensors.items()})


def test_a_storage_is_of_one_kind(tmp_path):
  _archive(tmp_path, _program(_tensor(), _tensor(kind='IntStorage')), _0=FOUR.tobytes())
  with pytest.raises(UserError, match='storage 0 is of two kinds'):
    torch_file.read(tmp_path)
  _archive(tmp_path, _program(_tensor()), _0=FOUR.tobytes()[:-1])
  with pytest.raises(UserError, match='storage 0 of 15 bytes holds no whole number of float32'):
    torch_file.read(tmp_path)


class _Harm:
  def __init__(self, path: pathlib.Path):
    self.path = path

  def __reduce__(self):
    return pathlib.Path.touch, (self.path,)


@pytest.mark.parametrize(('program', 'message'), [
  (b'\x80\x02ctorch\nload\n)R.', r'refuses torch\.load\.'),
  (b'\x80\x02ctorch\nFloatStorage\n)R.', 'refuses to call FloatStorage'),
  (b'\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}b.', 'refuses to set the state of _rebuild_tensor_v2 like this'),
  (b'\x80\x02](K\x01e.', 'a list, not a table'),
  (b'\x80\x02}(' + _text('a') + b'ctorch\nFloatStorage\nu.', 'refuses FloatStorage as an entry'),
  (b'', 'cannot read'),
])
def test_a_program_is_not_run(tmp_path, monkeypatch, program, message):
  monkeypatch.chdir(tmp_path)
  _archive(tmp_path, program)
  with pytest.raises(UserError, match=message):
    torch_file.read(tmp_path)
  assert [path.name for path in tmp_path.iterdir()] == ['pytorch_model.bin']


def test_what_a_pickle_would_call_is_not_called(tmp_path):
  for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
    _archive(tmp_path, pickle.dumps({'a': _Harm(tmp_path / 'harmed')}, protocol))
    with pytest.raises(UserError, match='refuses'):
      torch_file.read(tmp_path)
    assert not (tmp_path / 'harmed').exists()


def test_an_archive_that_unfolds_is_refused(tmp_path):
  _archive(tmp_path, _program(*[_tensor(0, (2**25,), (0,))] * 3), _0=FOUR.tobytes())  # each alone is small enough
  with pytest.raises(UserError, match='repeat what it holds to 402653184 bytes'):
    torch_file.read(tmp_path)
  _archive(tmp_path, _program(_tensor()), zipfile.ZIP_DEFLATED, _0=bytes(10_000_000))
  assert (tmp_path / 'pytorch_model.bin').stat().st_size < 100_000
  with pytest.raises(UserError, match='compressed or overlap'):
    torch_file.read(tmp_path)


def test_entries_that_overlap_are_refused(tmp_path):
  buffer = io.BytesIO()
  with zipfile.ZipFile(buffer, 'w') as archive:
    archive.writestr('archive/data.pkl', _program(_tensor(num_values=4000)))
    archive.writestr('archive/data/0', bytes(16_000))
    first = archive.getinfo('archive/data/0')
    for i in range(1, 20):
      again = zipfile.ZipInfo(f'archive/data/{i}')
      again.header_offset, again.file_size, again.compress_size, again.CRC = (
        first.header_offset, first.file_size, first.compress_size, first.CRC)
      archive.filelist.append(again)
      archive.NameToInfo[again.filename] = again
    archive._didModify = True
  (tmp_path / 'pytorch_model.bin').write_bytes(buffer.getvalue())
  with pytest.raises(UserError, match='compressed or overlap'):
    torch_file.read(tmp_path)


def test_an_archive_of_another_byte_order_or_without_a_table_is_refused(tmp_path):
  _archive(tmp_path, _program(_tensor()), _0=FOUR.tobytes())
  with zipfile.ZipFile(tmp_path / 'pytorch_model.bin', 'a') as archive:
    archive.writestr('archive/byteorder', 'big')
  with pytest.raises(UserError, match='other order of bytes'):
    torch_file.read(tmp_path)
  with zipfile.ZipFile(tmp_path / 'pytorch_model.bin', 'w') as archive:
    archive.writestr('word/document.xml', '')
  with pytest.raises(UserError, match=r'there are 0 entries data\.pkl'):
    torch_file.read(tmp_path)
