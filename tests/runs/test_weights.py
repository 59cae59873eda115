"""Weights against a real disk: every bit comes back, or a message says what did not."""

from __future__ import annotations

import json
import resource
import signal
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path

import haiku as hk
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from ml_collections import ConfigDict
from safetensors.numpy import load_file, save_file

from perceiver_jax.config.saved import save_config
from perceiver_jax.runs import weights
from perceiver_jax.types import UserError

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ConfigDict({'model': {'num_latents': 4, 'shape': (8, 8)}, 'seed': 0})


def make_params():
  generator = np.random.default_rng(0)
  return {
    'perceiver/encoder/cross_attend_0/query': {
      'w': generator.normal(size=(4, 2)).astype(np.float32),
      'b': generator.normal(size=2).astype(ml_dtypes.bfloat16),
    },
    'head': {'w': generator.normal(size=(2, 3)).astype(np.float16), 'scale': np.array(2.5)},
  }


def make_state():
  return {'stem/batch_norm/~/mean_ema': {
    'counter': np.array(7, np.int32), 'hidden': np.zeros((0, 3), np.float32), 'is_warm': np.array([True, False])}}


def assert_same(found, expected):
  assert jax.tree.structure(found) == jax.tree.structure(expected)
  for left, right in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
    assert isinstance(left, np.ndarray)
    assert (left.dtype, left.shape, left.tobytes()) == (right.dtype, right.shape, np.asarray(right).tobytes())


@pytest.fixture
def saved(tmp_path) -> Path:
  directory = tmp_path / 'weights'
  weights.save(directory, CONFIG, make_params(), make_state(), source='a test', licence='CC BY 4.0')
  return directory


def test_every_bit_dtype_and_shape_comes_back(saved):
  found = weights.load(saved)
  assert_same(found.params, make_params())
  assert_same(found.state, make_state())
  assert found.config.to_dict() == CONFIG.to_dict() and found.config.is_locked
  assert found.metadata == {'format': 'perceiver_jax', 'version': '1', 'source': 'a test', 'licence': 'CC BY 4.0'}


def test_the_config_is_what_a_run_keeps(saved, tmp_path):
  save_config(CONFIG, tmp_path / 'run')
  assert (saved / 'config.json').read_bytes() == (tmp_path / 'run' / 'config.json').read_bytes()


def test_any_reader_of_safetensors_finds_the_arrays_by_name(saved):
  arrays = load_file(saved / 'weights.safetensors')
  assert arrays.keys() == {
    'params/perceiver/encoder/cross_attend_0/query/w', 'params/perceiver/encoder/cross_attend_0/query/b',
    'params/head/w', 'params/head/scale', 'state/stem/batch_norm/~/mean_ema/counter',
    'state/stem/batch_norm/~/mean_ema/hidden', 'state/stem/batch_norm/~/mean_ema/is_warm'}
  np.testing.assert_array_equal(arrays['params/head/w'], make_params()['head']['w'])


def test_arrays_of_jax_and_strided_arrays_come_back_too(tmp_path):
  params = {'a': {'w': jnp.arange(6, dtype=jnp.bfloat16), 'b': np.arange(24.0).reshape(4, 6)[::2, ::-1].T}}
  weights.save(tmp_path / 'weights', CONFIG, params, {})
  found = weights.load(tmp_path / 'weights')
  assert_same(found.params, params)
  assert found.state == {}


def test_a_haiku_model_gives_the_same_from_what_was_loaded(tmp_path):
  model = hk.transform_with_state(lambda x: hk.BatchNorm(True, True, 0.9)(hk.nets.MLP([4, 3])(x), is_training=True))
  x = jnp.linspace(-1, 1, 10).reshape(5, 2)
  params, state = model.init(jax.random.key(0), x)
  weights.save(tmp_path / 'weights', CONFIG, params, state)
  found = weights.load(tmp_path / 'weights')
  weights.check_fits(found.params, found.state, jax.eval_shape(model.init, jax.random.key(1), x), 'here')
  np.testing.assert_array_equal(
    model.apply(found.params, found.state, None, x)[0], model.apply(params, state, None, x)[0])


def test_weights_replace_weights_and_leave_nothing_beside(saved):
  params = {'another': {'w': np.ones(3, np.float32)}}
  weights.save(saved, CONFIG, params, {})
  assert_same(weights.load(saved).params, params)
  assert [child.name for child in saved.parent.iterdir()] == ['weights']


def test_others_may_read_what_the_umask_lets_them(saved):
  assert (saved / 'weights.safetensors').stat().st_mode == (saved / 'config.json').stat().st_mode


def test_an_empty_directory_may_be_filled(tmp_path):
  (tmp_path / 'weights').mkdir()
  weights.save(tmp_path / 'weights', CONFIG, make_params(), {})
  assert weights.is_weights(tmp_path / 'weights')


@pytest.mark.parametrize('name', ['notes.txt', 'config.json', 'weights.safetensors'])
def test_a_directory_with_something_else_in_it_is_left_alone(tmp_path, name):
  (tmp_path / name).write_text('precious')
  with pytest.raises(UserError, match='something else'):
    weights.save(tmp_path, CONFIG, make_params(), {})
  assert [(child.name, child.read_text()) for child in tmp_path.iterdir()] == [(name, 'precious')]


def test_notes_beside_weights_are_not_lost(saved):
  (saved / 'notes.txt').write_text('precious')
  with pytest.raises(UserError, match=r'something else \(notes\.txt\)'):
    weights.save(saved, CONFIG, {}, {})
  assert_same(weights.load(saved).params, make_params())


def test_a_file_in_the_way_is_named(tmp_path):
  (tmp_path / 'file').write_text('precious')
  for directory in (tmp_path / 'file', tmp_path / 'file' / 'weights'):
    with pytest.raises(UserError, match=f'cannot write weights to {directory}'):
      weights.save(directory, CONFIG, make_params(), {})
  assert (tmp_path / 'file').read_text() == 'precious'


@pytest.mark.parametrize('params', [
  {'a': np.zeros(2)}, {'a': {'b/c': np.zeros(2)}}, {'a': {'': np.zeros(2)}}, {'': {'w': np.zeros(2)}}])
def test_a_tree_that_could_not_be_read_back_is_refused(tmp_path, params):
  with pytest.raises(UserError, match='named leaves'):
    weights.save(tmp_path / 'weights', CONFIG, params, {})
  assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize('leaf, says', [
  ({'w': np.zeros(2)}, 'params/a/b is a dict, not an array'), ('text', 'cannot write'), (None, 'not an array')])
def test_an_entry_that_is_no_array_of_numbers_is_refused(tmp_path, leaf, says):
  with pytest.raises(UserError, match=says):
    weights.save(tmp_path / 'weights', CONFIG, {'a': {'b': leaf}}, {})
  assert list(tmp_path.iterdir()) == []


def test_a_config_that_could_not_be_read_back_is_refused(tmp_path):
  with pytest.raises(UserError, match=r'config\.seed'):
    weights.save(tmp_path / 'weights', ConfigDict({'seed': np.float32(1)}), make_params(), {})


def test_a_full_disk_leaves_the_weights_that_were_there(saved):
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
  try:
    with pytest.raises(UserError, match='cannot write weights to'):
      weights.save(saved, CONFIG, {'a': {'w': np.zeros(100_000)}}, {})
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
  assert_same(weights.load(saved).params, make_params())
  assert [child.name for child in saved.parent.iterdir()] == ['weights']


@pytest.mark.slow
def test_a_kill_while_saving_leaves_whole_weights(tmp_path):
  directory = tmp_path / 'weights'
  program = textwrap.dedent(f"""
    import itertools
    import numpy as np
    from ml_collections import ConfigDict
    from perceiver_jax.runs import weights
    for seed in itertools.count():
      params = {{str(i): {{'w': np.full(500_000, seed)}} for i in range(4)}}
      weights.save({str(directory)!r}, ConfigDict({{'seed': seed}}), params, {{}})
      print(seed, flush=True)
  """)
  for num_saves in (1, 2, 4, 7):
    process = subprocess.Popen([sys.executable, '-c', program], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    for _ in range(num_saves):
      assert process.stdout.readline()
    process.send_signal(signal.SIGKILL)     # the next save is under way
    process.wait()
    process.stdout.close()
    old = list(tmp_path.glob('.weights.*.old'))
    found = weights.load(directory if directory.exists() else old[0])
    assert found.params.keys() == {'0', '1', '2', '3'}
    assert {value for leaves in found.params.values() for value in set(leaves['w'])} == {found.config.seed}


@pytest.mark.slow
def test_a_process_that_imports_nothing_else_reads_bfloat16(saved):
  program = f'from perceiver_jax.runs import weights; print(weights.load({str(saved)!r}).params)'
  done = subprocess.run([sys.executable, '-c', program], cwd=ROOT, capture_output=True, text=True)
  assert 'dtype=bfloat16' in done.stdout, done.stderr


# What is no weights of ours.


def overwrite_zip(path):
  with zipfile.ZipFile(path, 'w') as file:
    file.writestr('data', b'0' * 100)


def with_header(header: dict, size: int):
  text = json.dumps(header).encode()
  return lambda path: path.write_bytes(len(text).to_bytes(8, 'little') + text + bytes(size))


OURS = {'__metadata__': {'format': 'perceiver_jax', 'version': '1'}}
DAMAGES = {
  'truncated': lambda path: path.write_bytes(path.read_bytes()[:-3]),
  'cut in its header': lambda path: path.write_bytes(path.read_bytes()[:50]),
  'longer than it should be': lambda path: path.write_bytes(path.read_bytes() + b'more'),
  'empty': lambda path: path.write_bytes(b''),
  'a zip': overwrite_zip,
  'a page': lambda path: path.write_text('<!DOCTYPE html><html><body>Not found</body></html>'),
  'a huge header': lambda path: path.write_bytes(b'\xff' * 8 + b'{}'),
  'a header longer than the file': lambda path: path.write_bytes((90_000_000).to_bytes(8, 'little') + b'{}'),
  'a header that is no JSON': lambda path: path.write_bytes((10).to_bytes(8, 'little') + b'x' * 10),
  'a header that nests without end': lambda path: path.write_bytes((10 ** 5).to_bytes(8, 'little') + b'[' * 10 ** 5),
  'overlapping arrays': with_header({**OURS, **{
    f'params/a/{leaf}': {'dtype': 'F32', 'shape': [2], 'data_offsets': [0, 8]} for leaf in 'wb'}}, 8),
  'offsets past its end': with_header(
    {**OURS, 'params/a/w': {'dtype': 'F32', 'shape': [2], 'data_offsets': [0, 8]}}, 4),
  'a shape unlike its bytes': with_header(
    {**OURS, 'params/a/w': {'dtype': 'F32', 'shape': [2 ** 62], 'data_offsets': [0, 8]}}, 8),
  'an unknown dtype': with_header(
    {**OURS, 'params/a/w': {'dtype': 'F31', 'shape': [2], 'data_offsets': [0, 8]}}, 8),
  'a dtype that NumPy lacks': with_header(
    {**OURS, 'params/a/w': {'dtype': 'F8_E8M0', 'shape': [8], 'data_offsets': [0, 8]}}, 8),
  'more axes than NumPy has': with_header(
    {**OURS, 'params/a/w': {'dtype': 'F32', 'shape': [1] * 65, 'data_offsets': [0, 4]}}, 4),
  'a name without a module': with_header(
    {**OURS, 'params/w': {'dtype': 'F32', 'shape': [2], 'data_offsets': [0, 8]}}, 8),
  'a name of neither tree': with_header(
    {**OURS, 'optimizer/a/w': {'dtype': 'F32', 'shape': [2], 'data_offsets': [0, 8]}}, 8),
}


@pytest.mark.parametrize('damage', DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_or_foreign_file_is_named_in_one_line(saved, damage):
  damage(saved / 'weights.safetensors')
  with pytest.raises(UserError, match='damaged') as error:
    weights.load(saved)
  assert str(saved / 'weights.safetensors') in str(error.value) and '\n' not in str(error.value)


def test_safetensors_of_others_are_not_ours(saved):
  save_file({'params/a/w': np.zeros(2)}, saved / 'weights.safetensors', {'format': 'pt'})
  with pytest.raises(UserError, match='is not one of ours'):
    weights.load(saved)
  save_file({'params/a/w': np.zeros(2)}, saved / 'weights.safetensors')
  with pytest.raises(UserError, match='is not one of ours'):
    weights.load(saved)


def test_another_version_is_refused(saved):
  save_file({'params/a/w': np.zeros(2)}, saved / 'weights.safetensors', {'format': 'perceiver_jax', 'version': '2'})
  assert weights.is_weights(saved)
  with pytest.raises(UserError, match=r"version '2'.* reads '1'"):
    weights.load(saved)


@pytest.mark.parametrize('name', ['config.json', 'weights.safetensors'])
def test_a_missing_file_is_named(saved, name):
  (saved / name).unlink()
  with pytest.raises(UserError, match=f'{saved} holds no weights: there is no {name}'):
    weights.load(saved)


def test_a_damaged_config_is_named(saved):
  (saved / 'config.json').write_text('{')
  with pytest.raises(UserError, match=r'config\.json is damaged'):
    weights.load(saved)


def test_a_config_that_nests_without_end_is_named(saved):
  for depth in (600, 100_000):              # the second is too deep for json itself
    (saved / 'config.json').write_text('{"a": ' * depth + '1' + '}' * depth)
    with pytest.raises(UserError, match=r'config\.json is damaged'):
      weights.load(saved)


@pytest.mark.parametrize('dtype', [np.float32, np.float64, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
def test_entries_that_are_not_finite_are_named_and_counted(tmp_path, dtype, value):
  params = {f'layer_{i}': {'w': np.array([1, value, 2], dtype), 'b': np.ones(2, dtype)} for i in range(5)}
  weights.save(tmp_path / 'weights', CONFIG, params, make_state())
  with pytest.raises(UserError) as error:
    weights.load(tmp_path / 'weights')
  assert str(error.value) == (
    f'{tmp_path}/weights/weights.safetensors: params/layer_0/w; params/layer_1/w; params/layer_2/w; and 2 more, '
    '5 in all hold numbers that are not finite: the file is damaged')


def test_a_directory_of_weights_is_told_by_its_header_alone(saved, tmp_path):
  assert weights.is_weights(saved)
  DAMAGES['truncated'](saved / 'weights.safetensors')
  assert weights.is_weights(saved)          # ours, and `load` tells what is wrong with them
  assert not weights.is_weights(tmp_path)
  assert not weights.is_weights(tmp_path / 'nowhere')
  assert not weights.is_weights(saved / 'config.json')


@pytest.mark.parametrize('name', [
  'cut in its header', 'empty', 'a zip', 'a page', 'a huge header', 'a header that is no JSON',
  'a header longer than the file', 'a header that nests without end'])
def test_what_has_no_header_of_ours_is_no_weights(saved, name):
  DAMAGES[name](saved / 'weights.safetensors')
  assert not weights.is_weights(saved)


# Whether weights fit a model.


def test_weights_that_fit_pass_whatever_their_dtype():
  half = jax.tree.map(lambda leaf: leaf.astype(np.float16), make_params())
  weights.check_fits(half, make_state(), (make_params(), make_state()), 'it')
  weights.check_fits({}, {}, ({}, {}), 'it')


def test_every_entry_that_does_not_fit_is_in_one_message():
  params, state = make_params(), make_state()
  del params['head']['scale']
  params['head']['w'] = params['head']['w'].T
  params['more'] = {'w': np.zeros(1)}
  state['stem/batch_norm/~/mean_ema']['average'] = np.zeros(3)
  with pytest.raises(UserError) as error:
    weights.check_fits(params, state, (make_params(), make_state()), 'the weights in runs/a')
  assert str(error.value) == (
    'the weights in runs/a does not fit this model: params/head/scale is missing; '
    'params/head/w is [3, 2], expected [2, 3]; params/more/w is unexpected; '
    'state/stem/batch_norm/~/mean_ema/average is unexpected')


def test_a_long_list_of_differences_is_cut_and_counted():
  params = {'a': {f'w{i:02d}': np.zeros(1) for i in range(25)}}
  with pytest.raises(UserError) as error:
    weights.check_fits(params, {}, ({}, {}), 'it')
  assert str(error.value).count(' is unexpected') == 10
  assert str(error.value).endswith('; and 15 more, 25 in all')
