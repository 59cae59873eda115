"""Where fine-tuning starts: what fits is taken exactly, a grid of positions is resized, and the log names the rest."""

from __future__ import annotations

import logging

import jax
import ml_dtypes
import numpy as np
import pytest

from perceiver_jax.config import overrides
from perceiver_jax.config.saved import save_config
from perceiver_jax.inference.model import template
from perceiver_jax.runs import weights
from perceiver_jax.runs.checkpoint import Checkpoints, DamagedCheckpoint
from perceiver_jax.training import init_from as module
from perceiver_jax.training.init_from import init_from, resize_grid
from perceiver_jax.types import TrainState, UserError

EMA = 'stem/norm/~/mean_ema'


def _config(path, name: str = 'imagenet.py:learned,debug', **changes):
  config = overrides.load(f'configs/{name}')
  config.init_from = str(path)
  config.update_from_flattened_dict(changes)
  return config


@pytest.fixture(autouse=True)
def in_the_clone(monkeypatch, pytestconfig):
  monkeypatch.chdir(pytestconfig.rootpath)


@pytest.fixture
def lines(caplog):
  """What was logged by us, {the kind of line: the rest of it}."""
  logger = logging.getLogger('absl')
  level, logger.propagate = logger.level, True
  logger.setLevel(logging.INFO)
  yield lambda: dict(
    record.getMessage().split(': ', 1) for record in caplog.records if record.pathname == module.__file__)
  logger.setLevel(level)


def _numbers(tree, seed: int = 0):
  """Arrays of the shapes and dtypes of a tree, every entry another."""
  generator = np.random.default_rng(seed)
  return jax.tree.map(lambda leaf: (9 * generator.normal(size=leaf.shape)).astype(leaf.dtype), tree)


def _params(seed: int = 0, num_rows: int = 4, num_classes: int = 3):
  return _numbers({
    'positions': {'table': np.zeros((num_rows, 2), np.float32)},
    'decoder/output': {'w': np.zeros((2, num_classes), np.float32), 'b': np.zeros(num_classes, ml_dtypes.bfloat16)},
    'processor/self_attend_0/attention/query': {'w': np.zeros((2, 2), np.float32)},
  }, seed)


def _state(seed: int = 0, num_channels: int = 3):
  return _numbers({EMA: {
    'average': np.zeros((1, num_channels), np.float32), 'hidden': np.zeros((1, num_channels), np.float32),
    'counter': np.zeros([], np.int32)}}, seed)


def _assert_same_bits(found, expected):
  assert jax.tree.structure(found) == jax.tree.structure(expected)
  for have, want in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
    assert (have.shape, have.dtype, have.tobytes()) == (want.shape, want.dtype, np.asarray(want).tobytes())


def _save_run(workdir, params, state, config=None) -> None:
  number = np.asarray(3, np.int32)
  with Checkpoints(workdir / 'checkpoints', keep_last=1, best='lowest validation/loss') as checkpoints:
    checkpoints.save(3, TrainState(number, params, state, {}, None, number), {}, None)
  if config is not None:
    save_config(config, workdir)


@pytest.fixture(params=['run', 'checkpoints', 'weights'])
def saved(request, tmp_path):
  """Saves params and state of a model in one of the forms; returns what init_from calls that place, and the place."""

  def save(params, state, config=None):
    path = tmp_path / 'there'
    if request.param == 'weights':
      weights.save(path, config or _config(path), params, state)
      return str(path), path
    _save_run(path, params, state, config)
    path = path / 'checkpoints' if request.param == 'checkpoints' else path
    return f'step 3 of {path}', path

  return save


def test_everything_that_fits_is_taken_bit_for_bit(saved, lines):
  there = _params(), _state()
  name, path = saved(*there)
  taken = init_from(_config(path), _params(1), _state(1))
  _assert_same_bits(taken, there)
  names = sorted(weights.entries(*there))
  assert lines()[f'Taken from {name} (7)'] == ', '.join(names[:5]) + ', ...'
  assert not any(line.startswith('Not ') for line in lines())


def test_what_does_not_fit_stays_as_it_was_and_is_named(saved, lines):
  there, fresh = _params(), _params(1, num_classes=5)
  fresh['decoder/more'] = {'w': np.ones(3, np.float32)}
  there['encoder'] = {'latents': np.ones((4, 2), np.float32)}
  name, path = saved(there, _state())
  params, state = init_from(_config(path), fresh, _state(1))
  query = 'processor/self_attend_0/attention/query'
  _assert_same_bits(params, {**fresh, 'positions': there['positions'], query: there[query]})
  _assert_same_bits(state, _state())
  said = lines()
  assert said.pop(f'Taken from {name} (5)').startswith(f'params/positions/table, params/{query}/w, state/')
  assert list(said.items()) == [
    ('Not used, not in this model (1)', 'params/encoder/latents'),
    ('Not taken, of another shape (2)',
     'params/decoder/output/b (3,) -> (5,), params/decoder/output/w (2, 3) -> (2, 5)'),
    ('Not taken, not there (1)', 'params/decoder/more/w'),
  ]


def test_dtypes_stay_those_of_the_new_model(tmp_path):
  _save_run(tmp_path, _params(), _state())
  half = jax.tree.map(lambda leaf: leaf.astype(ml_dtypes.bfloat16), _params(1))
  params, state = init_from(_config(tmp_path), half, _state(1))
  _assert_same_bits(params, jax.tree.map(lambda leaf: leaf.astype(ml_dtypes.bfloat16), _params()))
  assert state[EMA]['counter'].dtype == np.int32


def test_averages_without_the_counter_that_belongs_to_them_are_not_torn_apart(tmp_path, lines):
  _save_run(tmp_path, _params(), _state())
  fresh = _state(1, num_channels=4)
  _, state = init_from(_config(tmp_path), _params(1), fresh)
  _assert_same_bits(state, fresh)
  assert lines()['Not taken, as the rest of its module does not fit (1)'] == f'state/{EMA}/counter'
  assert f'state/{EMA}/average (1, 3) -> (1, 4)' in lines()['Not taken, of another shape (2)']


@pytest.mark.parametrize('is_there', [True, False])
def test_a_bias_is_not_taken_without_the_weights_that_it_belongs_to(saved, lines, is_there):
  there, fresh = _params(), _params(1)
  there['decoder/output']['w'] = np.ones((7, 3), np.float32)
  if not is_there:
    del there['decoder/output']['w']
  _, path = saved(there, {})
  params, _ = init_from(_config(path), fresh, {})
  _assert_same_bits(params, {**there, 'decoder/output': fresh['decoder/output']})
  assert lines()['Not taken, as the rest of its module does not fit (1)'] == 'params/decoder/output/b'


def test_a_head_for_as_many_classes_is_taken_whole(saved):
  there = _params()
  _, path = saved(there, {})
  _assert_same_bits(init_from(_config(path), _params(1), {})[0]['decoder/output'], there['decoder/output'])


def _keys(distance: np.ndarray) -> np.ndarray:
  """The kernel of bicubic interpolation, a = -0.5 (Keys, 1981, equation 15)."""
  x = np.abs(distance)
  near, far = 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
  return np.where(x < 1, near, np.where(x < 2, far, 0))


def _expected_grid(table: np.ndarray, before: int, after: int) -> np.ndarray:
  centres = (np.arange(after) + 0.5) * before / after - 0.5
  kernel = _keys(centres[:, None] - np.arange(before))
  kernel /= kernel.sum(1, keepdims=True)
  grid = table.astype(np.float64).reshape(before, before, -1)
  return np.einsum('ai,bj,ijc->abc', kernel, kernel, grid).reshape(after**2, -1)


@pytest.mark.parametrize('before, after', [(4, 6), (6, 4), (3, 12), (12, 3), (5, 1), (1, 5), (7, 7)])
def test_a_grid_is_resized_by_cubics_about_the_centres_of_its_cells(before, after):
  table = np.random.default_rng(0).normal(size=(before**2, 3)).astype(np.float32)
  resized = resize_grid(table, before, after)
  assert (resized.shape, resized.dtype) == ((after**2, 3), np.float32)
  np.testing.assert_allclose(resized, _expected_grid(table, before, after), atol=2e-6)


def test_rows_and_columns_keep_their_places_in_a_resized_grid():
  rows, columns = np.mgrid[:8, :8]
  table = np.stack([rows, columns], axis=-1).reshape(64, 2).astype(np.float32)
  resized = resize_grid(table, 8, 16).reshape(16, 16, 2)
  inner = slice(4, 12)  # further out, the cubic feels the edge
  expected = (np.arange(16) + 0.5) / 2 - 0.5
  np.testing.assert_allclose(resized[inner, 5, 0], expected[inner], atol=1e-5)
  np.testing.assert_allclose(resized[5, inner, 1], expected[inner], atol=1e-5)


def test_positions_of_an_image_of_another_size_are_interpolated_and_the_log_says_so(saved, lines):
  there, fresh = _params(num_rows=16), _params(1, num_rows=36)
  _, path = saved(there, {})
  params, _ = init_from(_config(path), fresh, {})
  np.testing.assert_allclose(
    params['positions']['table'], _expected_grid(there['positions']['table'], 4, 6), rtol=1e-5, atol=1e-5)
  assert params['positions']['table'].dtype == np.float32
  assert params['decoder/output']['w'].tobytes() == there['decoder/output']['w'].tobytes()
  assert lines()['Taken for another size of the image (1)'] == (
    'params/positions/table interpolated from 4 x 4 to 6 x 6')
  assert 'Not taken, of another shape (1)' not in lines()


@pytest.mark.parametrize('num_rows, new_num_rows', [(16, 35), (15, 36)])
def test_positions_of_no_square_grid_are_not_taken_and_named(tmp_path, lines, num_rows, new_num_rows):
  _save_run(tmp_path, _params(num_rows=num_rows), {})
  fresh = _params(1, num_rows=new_num_rows)
  params, _ = init_from(_config(tmp_path), fresh, {})
  _assert_same_bits(params['positions'], fresh['positions'])
  assert lines()['Not taken, of another shape (1)'] == f'params/positions/table ({num_rows}, 2) -> ({new_num_rows}, 2)'


@pytest.mark.parametrize('name', [
  'masked_lm.py:debug',
  'imagenet.py:debug',  # of Fourier features: what has that name in such a model is somebody's own
])
def test_positions_of_a_text_are_no_grid_however_many_they_are(tmp_path, lines, name):
  _save_run(tmp_path, _params(num_rows=16), {})
  fresh = _params(1, num_rows=36)
  params, _ = init_from(_config(tmp_path, name), fresh, {})
  _assert_same_bits(params['positions'], fresh['positions'])
  assert lines()['Not taken, of another shape (1)'] == 'params/positions/table (16, 2) -> (36, 2)'


def test_positions_of_other_channels_are_not_taken(tmp_path):
  there = _params(num_rows=16)
  there['positions']['table'] = there['positions']['table'][:, :1]
  _save_run(tmp_path, there, {})
  fresh = _params(1, num_rows=36)
  _assert_same_bits(init_from(_config(tmp_path), fresh, {})[0]['positions'], fresh['positions'])


def test_the_values_of_the_config_that_shapes_do_not_show_are_named(tmp_path, lines):
  config = _config('', **{'model.gelu': 'exact', 'model.stem.padding': 'symmetric', 'batch_size': 7})
  _save_run(tmp_path, _params(), {}, config)
  init_from(_config(tmp_path), _params(1), {})
  assert lines()['The config of that model is another, are these meant? model.gelu'] == (
    "'exact' there, 'tanh' here; model.stem.padding: 'symmetric' there, 'same' here")


@pytest.mark.parametrize('name', ['imagenet.py:learned,debug', 'imagenet.py:conv,debug'])
def test_a_classifier_for_other_classes_and_another_size_starts_from_all_but_its_head(tmp_path, lines, name):
  released = _config('', name)
  params, state = _numbers(template(released))
  weights.save(tmp_path / 'released', released, params, state)
  config = _config(tmp_path / 'released', name, **{'data.num_classes': 3, 'data.image_size': 24})
  fresh = _numbers(template(config), 1)
  taken, taken_state = init_from(config, *fresh)
  heads = {'decoder/output'}
  tables = {'positions'} & params.keys()
  for each in params.keys() - heads - tables:
    _assert_same_bits(taken[each], params[each])
  _assert_same_bits(taken['decoder/output'], fresh[0]['decoder/output'])
  _assert_same_bits(taken_state, state)
  assert taken.keys() == params.keys() and bool(state) == ('conv' in name) and bool(tables) == ('learned' in name)
  assert lines()['Not taken, of another shape (2)'] == (
    'params/decoder/output/b (5,) -> (3,), params/decoder/output/w (16, 5) -> (16, 3)')
  if tables:
    assert 'interpolated from 16 x 16 to 24 x 24' in lines()['Taken for another size of the image (1)']


def test_a_model_that_shares_no_parameter_is_refused(tmp_path):
  _save_run(tmp_path, _params(), _state())
  with pytest.raises(UserError, match=r'config\.init_from: no parameter of step 3 of .* has the name and shape'):
    init_from(_config(tmp_path), {'resnet': {'w': np.zeros(1, np.float32)}}, _state())


def test_a_damaged_source_is_refused(tmp_path):
  _save_run(tmp_path / 'run', _params(), {})
  (tmp_path / 'run' / 'checkpoints' / '3' / 'checkpoint.json').write_text('{}')
  with pytest.raises(DamagedCheckpoint):
    init_from(_config(tmp_path / 'run'), _params(1), {})
  weights.save(tmp_path / 'weights', _config(''), _params(), {})
  with (tmp_path / 'weights' / 'weights.safetensors').open('r+b') as file:
    file.truncate(200)
  with pytest.raises(UserError, match=r'weights\.safetensors is damaged'):
    init_from(_config(tmp_path / 'weights'), _params(1), {})


@pytest.mark.parametrize('kind', ['hugging_face', 'file', 'missing', 'empty'])
def test_what_must_be_converted_first_is_answered_with_how(tmp_path, kind):
  path = tmp_path / kind
  if kind == 'file':
    path.write_bytes(b'\x80\x04N.')
  elif kind != 'missing':
    path.mkdir()
  if kind == 'hugging_face':
    (path / 'config.json').write_text('{"architectures": ["PerceiverForMaskedLM"]}')
    (path / 'model.safetensors').write_bytes(b'')
  with pytest.raises(UserError) as caught:
    init_from(_config(path), _params(), {})
  assert f'config.init_from={path} is neither a run' in str(caught.value)
  assert 'converted first: python -m perceiver_jax convert SOURCE DEST' in str(caught.value)
