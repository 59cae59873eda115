"""Checkpoints against a real disk: what was saved comes back bit for bit, or a message says what did not."""

from __future__ import annotations

import logging
import os
import pathlib
import resource
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import optax
import pytest

from perceiver_jax.runs import checkpoint
from perceiver_jax.runs.checkpoint import Checkpoints, DamagedCheckpoint, load_weights, saved_steps
from perceiver_jax.types import TrainState, UserError

ACCURACY = 'validation/accuracy'


def make_params(seed: int = 0, num_latents: int = 3):
  generator = np.random.default_rng(seed)
  return {
    'perceiver/encoder/cross_attend_0/query': {
      'w': generator.normal(size=(4, 2)).astype(np.float32),
      'b': generator.normal(size=2).astype(ml_dtypes.bfloat16),
    },
    'perceiver/latents': {'table': generator.normal(size=(num_latents, 4)).astype(np.float32)},
  }


def make_state(seed: int = 0, *, step: int = 0, ema: bool = False, optimizer=None, num_latents: int = 3) -> TrainState:
  """A state whose every leaf is told from that of another seed; of LAMB, unless another optimizer is given."""
  generator = np.random.default_rng([seed, 1])
  params = make_params(seed, num_latents)
  moments = jax.eval_shape((optimizer or optax.lamb(0.1, mask=decayed)).init, params)
  return TrainState(
    step=np.asarray(step, np.int32), params=params,
    state={'perceiver/batch_norm': {'average': np.full(2, seed, np.float32), 'counter': np.asarray(seed, np.int32)}},
    opt_state=jax.tree.map(lambda leaf: np.asarray(99 * generator.random(leaf.shape)).astype(leaf.dtype), moments),
    ema=make_params(seed + 100, num_latents) if ema else None, num_skipped=np.asarray(1, np.int32))


def decayed(params):
  return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


def shapes(state: TrainState) -> TrainState:
  return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), state)


def assert_same_bits(found, expected):
  assert jax.tree.structure(found) == jax.tree.structure(expected)
  for have, want in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
    assert isinstance(have, np.ndarray) and (have.shape, have.dtype) == (want.shape, want.dtype)
    assert have.tobytes() == want.tobytes()


def open_checkpoints(directory, keep_last: int = 2, best: str | None = f'highest {ACCURACY}') -> Checkpoints:
  return Checkpoints(directory, keep_last=keep_last, best=best)


def save_steps(directory, *steps: int) -> None:
  with open_checkpoints(directory, keep_last=9) as checkpoints:
    for step in steps:
      checkpoints.save(step, make_state(step, step=step), {'step': step}, None)


def data_file(checkpoint: Path) -> Path:
  return max((file for file in checkpoint.rglob('*') if file.is_file()), key=lambda file: file.stat().st_size)


def record_file(checkpoint: Path) -> Path:
  return checkpoint / 'checkpoint.json'


def flip_a_bit(file: Path) -> None:
  content = bytearray(file.read_bytes())
  content[len(content) // 2] ^= 1
  file.write_bytes(content)


def truncate(file: Path) -> None:
  file.write_bytes(file.read_bytes()[:-1])


@pytest.fixture
def lines(caplog):
  """What was logged by us, as lines."""
  logger = logging.getLogger('absl')
  level, logger.propagate = logger.level, True
  logger.setLevel(logging.INFO)
  yield lambda: [record.getMessage() for record in caplog.records if record.pathname.endswith('checkpoint.py')]
  logger.setLevel(level)


@pytest.mark.parametrize('ema', [False, True])
def test_a_state_comes_back_bit_for_bit_with_its_named_tuples(tmp_path, ema):
  state = make_state(7, step=5, ema=ema)
  with open_checkpoints(tmp_path) as checkpoints:
    checkpoints.save(5, state, {}, None)
  with open_checkpoints(tmp_path) as checkpoints:
    restored, _ = checkpoints.restore_latest(shapes(make_state(ema=ema)))
  assert_same_bits(restored, state)


def test_a_state_without_haiku_state_or_moments_comes_back(tmp_path):
  state = make_state(optimizer=optax.sgd(0.1))._replace(state={})
  with open_checkpoints(tmp_path) as checkpoints:
    checkpoints.save(1, state, {}, None)
    restored, _ = checkpoints.restore(1, state)
  assert_same_bits(restored, state)


def test_a_state_changed_after_save_returns_is_saved_as_it_was(tmp_path):
  state, extras = make_state(7), {'window': {'loss': 1.0}}
  with open_checkpoints(tmp_path) as checkpoints:
    checkpoints.save(1, state, extras, None)
    for leaf in jax.tree.leaves(state):
      leaf[...] = 0
    extras['window']['loss'] = 2.0
    restored, restored_extras = checkpoints.restore(1, shapes(state))
  assert_same_bits(restored, make_state(7))
  assert restored_extras == {'window': {'loss': 1.0}}


def test_extras_come_back_with_every_float_exact(tmp_path):
  numbers = [0.1, 1 / 3, 5e-324, 1.7976931348623157e308, -0.0, float('inf'), 2**53 + 1, float(np.float32(0.1))]
  extras = {'window': {'train/loss': numbers}, 'evaluated': True, 'name': 'α', 'none': None}
  with open_checkpoints(tmp_path) as checkpoints:
    checkpoints.save(1, make_state(), extras, None)
    _, restored = checkpoints.restore(1, make_state())
  assert repr(restored) == repr(extras)


def test_the_last_two_and_the_best_are_kept_also_after_reopening(tmp_path):
  accuracies = {1: 0.5, 2: 0.9, 3: 0.9, 4: 0.7, 5: 0.6, 6: None, 7: 0.8}
  for step, accuracy in accuracies.items():
    with open_checkpoints(tmp_path) as checkpoints:
      checkpoints.save(step, make_state(step), {}, None if accuracy is None else {ACCURACY: accuracy})
      checkpoints.wait()
      assert saved_steps(tmp_path)[-1] == step
  assert sorted(path.name for path in tmp_path.iterdir()) == ['3', '6', '7']
  with open_checkpoints(tmp_path) as checkpoints:
    assert checkpoints.best_step() == 3
    assert_same_bits(checkpoints.restore(3, make_state())[0], make_state(3))


def test_the_smallest_loss_is_the_best(tmp_path):
  with open_checkpoints(tmp_path, keep_last=1, best='lowest validation/loss') as checkpoints:
    for step, loss in enumerate([3.0, 1.0, 2.0], start=1):
      checkpoints.save(step, make_state(step), {}, {'validation/loss': loss, ACCURACY: float(step)})
    assert checkpoints.best_step() == 2
  assert sorted(path.name for path in tmp_path.iterdir()) == ['2', '3']


def test_a_nan_is_never_the_best(tmp_path):
  with open_checkpoints(tmp_path) as checkpoints:
    checkpoints.save(1, make_state(), {}, {ACCURACY: float('nan')})
    assert checkpoints.best_step() is None
    checkpoints.save(2, make_state(), {}, {ACCURACY: 0.1})
    assert checkpoints.best_step() == 2


def test_without_metrics_there_is_a_latest_and_no_best(tmp_path):
  with open_checkpoints(tmp_path) as checkpoints:
    assert checkpoints.restore_latest(make_state()) is None
    checkpoints.save(1, make_state(), {}, {'validation/loss': 1.0})
    assert checkpoints.best_step() is None
  assert load_weights(tmp_path, 'best')[0] == 1


def test_saving_a_step_again_adds_metrics_and_keeps_the_state(tmp_path):
  with open_checkpoints(tmp_path) as checkpoints:
    checkpoints.save(1, make_state(1), {'evaluated': False}, None)
    checkpoints.save(1, make_state(2), {'evaluated': None}, None)
    assert checkpoints.restore(1, make_state())[1] == {'evaluated': False}
    assert checkpoints.best_step() is None
    checkpoints.save(1, make_state(3), {'evaluated': True}, {ACCURACY: 0.5})
  with open_checkpoints(tmp_path) as checkpoints:
    assert checkpoints.best_step() == 1
    restored, extras = checkpoints.restore_latest(make_state())
  assert_same_bits(restored, make_state(1))
  assert extras == {'evaluated': True}


def test_every_difference_from_the_template_is_named_in_one_error(tmp_path):
  save_steps(tmp_path, 1)
  template = make_state(num_latents=5)
  template.params['perceiver/encoder/cross_attend_0/query']['b'] = np.zeros(2, np.float32)
  template.params['perceiver/decoder'] = {'w': np.zeros(1, np.float32)}
  del template.state['perceiver/batch_norm']['counter']
  with open_checkpoints(tmp_path) as checkpoints, pytest.raises(UserError) as error:
    checkpoints.restore(1, template)
  for part in [
    'params/perceiver/latents/table is float32[3, 4], expected float32[5, 4]',
    'opt_state/0/mu/perceiver/latents/table is float32[3, 4], expected float32[5, 4]',
    'params/perceiver/encoder/cross_attend_0/query/b is bfloat16[2], expected float32[2]',
    'params/perceiver/decoder/w is missing, expected float32[1]',
    'state/perceiver/batch_norm/counter is int32[], expected nothing',
  ]:
    assert part in str(error.value)
  assert not isinstance(error.value, DamagedCheckpoint)


@pytest.mark.parametrize('damage', [flip_a_bit, truncate, Path.unlink])
@pytest.mark.parametrize('choose', [data_file, record_file])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(tmp_path, lines, damage, choose):
  save_steps(tmp_path, 10, 20)
  file = choose(tmp_path / '20')
  damage(file)
  with open_checkpoints(tmp_path) as checkpoints:
    with pytest.raises(DamagedCheckpoint, match=rf'/20 is damaged: .*{file.name}'):
      checkpoints.restore(20, make_state())
    restored, extras = checkpoints.restore_latest(make_state())
  assert (int(restored.step), extras) == (10, {'step': 10})
  assert any(file.name in line and '/20 is damaged' in line for line in lines())


def test_no_single_damaged_file_stops_a_run_or_passes_unnoticed(tmp_path):
  save_steps(tmp_path, 10, 20)
  files = [file for file in (tmp_path / '20').rglob('*') if file.is_file()]
  used = []
  for file in files:
    content = file.read_bytes()
    file.write_bytes(b'[]')  # valid JSON, for those that are
    with open_checkpoints(tmp_path) as checkpoints:
      restored, _ = checkpoints.restore_latest(make_state())
    file.write_bytes(content)
    used.append(int(restored.step))
    assert_same_bits(restored, make_state(used[-1], step=used[-1]))
  assert used.count(20) == 2  # Orbax writes two small files after the record, and nothing reads them


def test_a_damaged_step_is_saved_anew_when_the_run_comes_to_it_again(tmp_path):
  save_steps(tmp_path, 10, 20)
  truncate(data_file(tmp_path / '20'))
  with open_checkpoints(tmp_path, keep_last=1) as checkpoints:
    checkpoints.restore_latest(make_state())
    checkpoints.save(15, make_state(15), {}, None)
    checkpoints.wait()
    assert saved_steps(tmp_path)[0] == 15  # and not deleted to keep the damaged one, which is newer
    checkpoints.save(20, make_state(21), {}, None)
  with open_checkpoints(tmp_path) as checkpoints:
    assert_same_bits(checkpoints.restore(20, make_state())[0], make_state(21))


def test_a_damaged_step_can_be_the_next_one_saved(tmp_path):
  save_steps(tmp_path, 10, 20)
  truncate(data_file(tmp_path / '20'))
  with open_checkpoints(tmp_path) as checkpoints:
    checkpoints.restore_latest(make_state())
    checkpoints.save(20, make_state(21), {}, None)
    assert_same_bits(checkpoints.restore(20, make_state())[0], make_state(21))


def test_a_damaged_checkpoint_is_never_the_best(tmp_path):
  with open_checkpoints(tmp_path) as checkpoints:
    checkpoints.save(1, make_state(1), {}, {ACCURACY: 0.5})
    checkpoints.save(2, make_state(2), {}, {ACCURACY: 0.9})
  truncate(record_file(tmp_path / '2'))
  with open_checkpoints(tmp_path) as checkpoints:
    assert checkpoints.best_step() == 1
  assert load_weights(tmp_path)[0] == 1


def test_all_checkpoints_damaged_is_an_error_each_time_and_deletes_nothing(tmp_path):
  save_steps(tmp_path, 10, 20)
  for step in ('10', '20'):
    truncate(data_file(tmp_path / step))
  for _ in range(2):
    with open_checkpoints(tmp_path) as checkpoints, pytest.raises(UserError, match=r'^every checkpoint .*/20 is'):
      checkpoints.restore_latest(make_state())
  assert sorted(path.name for path in tmp_path.iterdir()) == ['10', '20']


def test_an_unfinished_checkpoint_is_never_read(tmp_path):
  save_steps(tmp_path, 10, 20)
  (tmp_path / '20').rename(tmp_path / '20.orbax-checkpoint-tmp')
  assert load_weights(tmp_path, 'latest')[0] == 10
  with open_checkpoints(tmp_path) as checkpoints:
    assert saved_steps(tmp_path) == [10]
    assert int(checkpoints.restore_latest(make_state())[0].step) == 10
    checkpoints.save(30, make_state(30), {}, None)
  assert sorted(path.name for path in tmp_path.iterdir()) == ['10', '30']


def test_what_a_killed_save_left_is_gone_at_once(tmp_path):
  # Not some time later, in a thread that reports an error where the process ends soon.
  for step in range(100):
    (tmp_path / f'{step}.orbax-checkpoint-tmp' / 'state.orbax-checkpoint-tmp').mkdir(parents=True)
  with open_checkpoints(tmp_path):
    assert list(tmp_path.iterdir()) == []


KILLED = textwrap.dedent("""
  import os, signal, sys
  import numpy as np
  from perceiver_jax.runs.checkpoint import Checkpoints
  from perceiver_jax.types import TrainState

  directory = sys.argv[1]
  def state(step):
    params = {'m': {'w': np.random.default_rng(step).normal(size=2_000_000)}}
    return TrainState(np.int32(step), params, {}, (), None, np.int32(0))
  checkpoints = Checkpoints(directory, keep_last=1, best='highest validation/accuracy')
  checkpoints.save(10, state(10), {'step': 10}, None)
  checkpoints.wait()
  checkpoints.save(20, state(20), {'step': 20}, None)
  unfinished = os.path.join(directory, '20.orbax-checkpoint-tmp', 'state.orbax-checkpoint-tmp')
  while not any(files for _, _, files in os.walk(unfinished)):
    if os.path.exists(os.path.join(directory, '20')):
      sys.exit('the save was over before it could be killed')
  os.kill(os.getpid(), signal.SIGKILL)
""")


@pytest.mark.slow
def test_a_kill_in_the_middle_of_a_save_leaves_the_step_before_it(tmp_path):
  environment = {**os.environ, 'PYTHONPATH': os.pathsep.join(sys.path), 'JAX_PLATFORMS': 'cpu'}
  child = subprocess.run(
    [sys.executable, '-c', KILLED, str(tmp_path)], env=environment, capture_output=True, text=True, timeout=120)
  assert child.returncode == -signal.SIGKILL, child.stderr
  assert {path.name for path in tmp_path.iterdir()} == {'10', '20.orbax-checkpoint-tmp'}
  weights = np.random.default_rng(10).normal(size=2_000_000)
  template = TrainState(np.int32(0), {'m': {'w': weights}}, {}, (), None, np.int32(0))
  with open_checkpoints(tmp_path) as checkpoints:
    restored, extras = checkpoints.restore_latest(template)
    assert_same_bits(restored.params, {'m': {'w': weights}})
    checkpoints.save(20, restored._replace(step=np.asarray(20, np.int32)), {'step': 20}, None)
  assert (int(restored.step), extras) == (10, {'step': 10})
  assert {path.name for path in tmp_path.iterdir()} == {'10', '20'}


def test_a_directory_that_cannot_be_written_is_a_clear_error(tmp_path):
  (tmp_path / 'file').write_text('not a directory')
  with pytest.raises(UserError, match=r'cannot write checkpoints to .*file/checkpoints: .*Not a directory'):
    open_checkpoints(tmp_path / 'file' / 'checkpoints')


@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')  # one of Orbax's threads
def test_a_save_that_fails_in_the_background_is_a_clear_error(tmp_path):
  directory = tmp_path / 'checkpoints'
  save_steps(directory, 10)
  checkpoints = open_checkpoints(directory, keep_last=1)
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
  resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))  # as a full disk: the write is refused, by the system
  try:
    checkpoints.save(20, make_state(20, num_latents=1000), {}, None)
    with pytest.raises(UserError, match=r'a checkpoint was not written to .*checkpoints; .*File too large'):
      checkpoints.wait()
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    signal.signal(signal.SIGXFSZ, previous)
  checkpoints.close()
  assert load_weights(directory, 'latest')[0] == 10


def test_a_save_that_cannot_begin_is_a_clear_error(tmp_path):
  directory = tmp_path / 'checkpoints'
  with open_checkpoints(directory) as checkpoints:
    directory.rmdir()
    directory.write_text('no longer a directory')
    with pytest.raises(UserError, match=r'/1 was not written; .*Not a directory'):
      checkpoints.save(1, make_state(), {}, None)


def test_keeping_no_checkpoint_is_refused(tmp_path):
  with pytest.raises(UserError, match='keep_last is 0'):
    open_checkpoints(tmp_path, keep_last=0)


@pytest.mark.parametrize('ema', [False, True])
def test_weights_are_read_from_a_workdir_alone_and_are_the_averages_where_there_are_some(tmp_path, ema):
  with open_checkpoints(tmp_path / 'checkpoints') as checkpoints:
    checkpoints.save(1, make_state(1, ema=ema), {}, {ACCURACY: 0.9})
    checkpoints.save(2, make_state(2, ema=ema), {}, {ACCURACY: 0.1})
  template = shapes(make_state(optimizer=optax.sgd(0.1)))
  best_step, best_params, _ = load_weights(tmp_path)
  latest_step, latest_params, latest_state = load_weights(tmp_path / 'checkpoints', 'latest', template)
  assert (best_step, latest_step) == (1, 2)
  assert_same_bits(best_params, make_params(101 if ema else 1))
  assert_same_bits(latest_params, make_params(102 if ema else 2))
  assert_same_bits(latest_state, make_state(2).state)


def test_weights_of_another_model_and_damaged_weights_are_refused(tmp_path):
  save_steps(tmp_path / 'checkpoints', 1)
  template = make_state(num_latents=5)
  del template.state['perceiver/batch_norm']['counter']
  with pytest.raises(UserError, match=r'params/perceiver/latents/table is .*; state/.*/counter is int32'):
    load_weights(tmp_path, 'best', template)
  flip_a_bit(data_file(tmp_path / 'checkpoints' / '1'))
  with pytest.raises(DamagedCheckpoint, match='/1 is damaged: state/'):
    load_weights(tmp_path)


@pytest.mark.parametrize('name', ['empty', 'absent'])
def test_a_path_without_checkpoints_says_what_a_valid_one_looks_like(tmp_path, name):
  (tmp_path / 'empty' / 'checkpoints').mkdir(parents=True)
  with pytest.raises(UserError, match=rf'no checkpoint in .*{name}: expected .*checkpoints/<step>/'):
    load_weights(tmp_path / name)


@pytest.mark.parametrize('place', ['{}/here', 'here/{}'])
@pytest.mark.parametrize('name', [
  'r[1]', 'a*', 'b?', 'c\\d', '{e}', 'f g', '%41', 'h#i', 'j:k', 'l\nm', 'été', '~', '-n', "o'p", '$q', '[!r]', 's,t'])
def test_a_checkpoint_is_written_and_read_under_any_path(tmp_path, name, place):
  directory = tmp_path / place.format(name) / 'checkpoints'
  with open_checkpoints(directory) as checkpoints:
    checkpoints.save(3, make_state(3, step=3), {'old': 1}, {ACCURACY: 0.5})
  with open_checkpoints(directory) as checkpoints:
    state, extras = checkpoints.restore_latest(shapes(make_state()))
    assert extras == {'old': 1} and checkpoints.best_step() == 3
  assert_same_bits(state, make_state(3, step=3))
  assert load_weights(directory)[0] == 3
  assert [path.name for path in directory.iterdir()] == ['3']
  assert [path.name for path in tmp_path.iterdir()] == [pathlib.PurePath(place.format(name)).parts[0]]


def test_a_place_that_gives_back_other_numbers_is_refused_at_once(tmp_path, monkeypatch):
  monkeypatch.setattr(checkpoint, 'read_arrays', lambda path, tree: {'numbers': np.zeros(3)})
  with pytest.raises(UserError, match='cannot hold checkpoints, choose another --workdir: it comes back with other'):
    open_checkpoints(tmp_path / 'checkpoints')
  assert list((tmp_path / 'checkpoints').iterdir()) == []


def test_the_best_is_the_highest_or_the_lowest_as_asked_for_and_none_is_the_best_for_none(tmp_path):
  for best, step in ((f'highest {ACCURACY}', 2), (f'lowest {ACCURACY}', 1), (None, None)):
    with open_checkpoints(tmp_path / str(best), keep_last=3, best=best) as checkpoints:
      for each, value in ((1, 0.1), (2, 0.9), (3, 0.5)):
        checkpoints.save(each, make_state(each, step=each), {}, {ACCURACY: value})
      assert checkpoints.best_step() == step
