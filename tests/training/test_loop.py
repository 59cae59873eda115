"""The run, in this process, on a problem that takes no time: what it writes, picks, refuses and survives."""

from __future__ import annotations

import json
import logging
import math
import os
import pathlib
import signal

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perceiver_jax.config import overrides
from perceiver_jax.runs.checkpoint import load_weights
from perceiver_jax.runs.log import read_history
from perceiver_jax.training import loop
from perceiver_jax.training.loop import due
from perceiver_jax.types import Field, NumericsError, Task, UserError
from tests.training.runs import of_batches, read_when_asked

TRUE_WEIGHTS = np.array([[1.0], [-2.0], [0.5]], np.float32)
DIVERGING, CONVERGING = 2.0, 0.05


@pytest.mark.parametrize('every, last, steps', [
  (5, 20, [5, 10, 15, 20]), (5, 12, [5, 10, 12]), (1, 3, [1, 2, 3]), (7, 6, [6]), (6, 6, [6]), (100, 1, [1])])
def test_due_is_every_so_many_steps_and_after_the_last_but_not_before_the_first(every, last, steps):
  assert [step for step in range(last + 1) if due(step, every, last)] == steps


def _examples(num_examples: int, seed: int) -> dict[str, np.ndarray]:
  x = np.random.default_rng(seed).normal(size=(num_examples, 3)).astype(np.float32)
  return {'x': x, 'y': (x @ TRUE_WEIGHTS)[:, 0] + 0.25, 'mask': np.ones(num_examples, np.float32)}


def _task(before_batch=lambda split, step, batch: None, draw=None) -> Task:
  """Finds TRUE_WEIGHTS; `before_batch` may spoil a batch, or be a signal that arrives while it is read."""

  def make(split, step, size):
    batch = _examples(size, seed=step if split == 'train' else 1000 + 10 * len(split) + step)
    before_batch(split, step, batch)
    return batch

  def measure(outputs, batch):
    error, weight = outputs - batch['y'], jnp.sum(batch['mask'])
    return {
      'loss': (jnp.sum(batch['mask'] * error ** 2), weight), 'error': (jnp.sum(batch['mask'] * jnp.abs(error)), weight)}

  return Task(
    inputs={'x': Field((3,), 'float32')},
    targets={'y': Field((), 'float32')},
    forward=lambda batch, is_training, capture=False: hk.Linear(1, name='linear')(batch['x'])[:, 0],
    measure=measure,
    dataset=of_batches(
      make, {'x': Field((3,), 'float32'), 'y': Field((), 'float32')}, train_size=16, eval_size=8),
    draw=draw)


@pytest.fixture(autouse=True)
def batches_made_when_asked_for(monkeypatch):
  read_when_asked(monkeypatch)


def _config(**changes):
  config = overrides.load('configs/digits.py:debug')
  config.update_from_flattened_dict({
    'num_steps': 6, 'batch_size': 16, 'ema_decay': None, 'eval.every_steps': 2, 'eval.batch_size': 8,
    'checkpoint.every_steps': 3, 'checkpoint.best': 'lowest validation/loss', 'log.every_steps': 2,
    'optimizer.name': 'sgd', 'optimizer.schedule': 'constant_cosine', 'optimizer.peak_lr': CONVERGING,
    'optimizer.max_norm': 0.0, **changes})
  return config


def _files(workdir: pathlib.Path) -> dict[str, bytes]:
  return {str(path.relative_to(workdir)): path.read_bytes() for path in workdir.rglob('*') if path.is_file()}


def _steps_saved(workdir: pathlib.Path) -> list[int]:
  return sorted(int(path.name) for path in (workdir / 'checkpoints').iterdir())


def _sends(number: int, split: str, step: int):
  """A signal to this process while one batch is read."""
  return lambda *batch: signal.raise_signal(number) if batch[:2] == (split, step) else None


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
  """The workdir of a run whose loss falls, and what its picture was drawn from."""
  workdir, drawn = tmp_path_factory.mktemp('finished') / 'new' / 'run', []

  def draw(predict, history, path):
    drawn.append((jax.tree.map(np.shape, predict({**_examples(5, 0), 'key': np.zeros((5, 2), np.uint32)})), history))
    pathlib.Path(path).write_bytes(b'picture')

  assert loop.train(_config(), str(workdir), _task(draw=draw)) == 0
  return workdir, drawn


def test_a_run_writes_its_figures_in_order_and_the_test_figures_last(finished):
  history = read_history(finished[0])
  names = [(line['step'], {name.split('/')[0] for name in line} - {'step'}) for line in history]
  assert names == [(2, {'train', 'speed'}), (2, {'validation'}), (4, {'train', 'speed'}), (4, {'validation'}),
                   (6, {'train', 'speed'}), (6, {'validation'}), (6, {'test', 'checkpoint', 'run'})]
  assert all(math.isfinite(value) for line in history for value in line.values())
  assert history[0]['train/skipped_steps'] == history[0]['train/unreadable_examples'] == 0
  losses = [line['validation/loss'] for line in history if 'validation/loss' in line]
  assert losses == sorted(losses, reverse=True) and history[-1]['checkpoint/best_step'] == 6


def test_a_run_keeps_its_config_its_last_checkpoints_and_its_picture(finished):
  workdir, ((prediction, drawn_from),) = finished
  assert json.loads((workdir / 'config.json').read_text()) == json.loads(json.dumps(_config().to_dict()))
  assert _steps_saved(workdir) == [4, 6]
  assert {path.name for path in workdir.iterdir()} == {
    'checkpoints', 'config.json', 'lock', 'metrics.jsonl', 'summary.png', 'tensorboard'}
  assert prediction == (5,) and drawn_from == read_history(workdir)


def _mean_squared_error(params) -> float:
  errors = [examples['x'] @ params['linear']['w'][:, 0] + params['linear']['b'] - examples['y']
            for examples in (_examples(8, 1000 + 10 * len('test') + step) for step in range(2))]
  return float(np.mean(np.square(errors)))


def test_the_last_line_is_the_loss_of_the_best_checkpoint_on_the_test_split(tmp_path):
  assert loop.train(_config(**{'optimizer.peak_lr': DIVERGING, 'ema_decay': 0.5}), str(tmp_path), _task()) == 0
  history = read_history(tmp_path)
  losses = {line['step']: line['validation/loss'] for line in history if 'validation/loss' in line}
  assert losses[2] < losses[4] < losses[6]
  assert _steps_saved(tmp_path) == [2, 4, 6]
  step, average, _ = load_weights(tmp_path)
  assert step == history[-1]['checkpoint/best_step'] == 2
  np.testing.assert_allclose(history[-1]['test/loss'], _mean_squared_error(average), rtol=1e-5)


def test_a_finished_run_says_so_and_changes_nothing(finished, capsys):
  workdir, _ = finished
  before = _files(workdir)
  assert loop.train(_config(), str(workdir), _task()) == 0
  assert capsys.readouterr().out.startswith(f'{workdir} has finished already: test/error')
  assert _files(workdir) == before


def test_another_config_is_refused_with_its_keys_and_nothing_is_touched(finished):
  workdir, _ = finished
  before = _files(workdir)
  with pytest.raises(UserError) as caught:
    loop.train(_config(seed=1, **{'optimizer.max_norm': 1.0}), str(workdir), _task())
  assert 'optimizer.max_norm: 0.0 in the workdir, 1.0 now; seed: 0 in the workdir, 1 now' in str(caught.value)
  assert _files(workdir) == before


def test_a_finished_run_without_checkpoints_is_not_overwritten(finished, tmp_path, capsys):
  for name in ('config.json', 'metrics.jsonl'):
    (tmp_path / name).write_bytes((finished[0] / name).read_bytes())
  before = _files(tmp_path)
  with pytest.raises(UserError, match='a run of another config: seed: 0 in the workdir, 1 now'):
    loop.train(_config(seed=1), str(tmp_path), _task())
  assert loop.train(_config(), str(tmp_path), _task()) == 0
  assert 'has finished already' in capsys.readouterr().out
  assert _files(tmp_path) == before and {path.name for path in tmp_path.iterdir()} == {'config.json', 'metrics.jsonl'}


def test_a_folder_with_a_config_json_that_is_not_ours_is_left_as_it_is(tmp_path):
  (tmp_path / 'config.json').write_text('{"model_type": "bert"}')
  with pytest.raises(UserError, match='is not one of ours'):
    loop.train(_config(), str(tmp_path), _task())
  assert [path.name for path in tmp_path.iterdir()] == ['config.json']
  assert (tmp_path / 'config.json').read_text() == '{"model_type": "bert"}'


def test_a_log_that_is_a_folder_is_named_before_anything_is_written(tmp_path):
  (tmp_path / 'metrics.jsonl').mkdir()
  with pytest.raises(UserError, match=f'cannot read {tmp_path}/metrics.jsonl, .*: Is a directory'):
    loop.train(_config(), str(tmp_path), _task())
  assert [path.name for path in tmp_path.iterdir()] == ['metrics.jsonl']


@pytest.mark.parametrize('missing', ['dataset', 'measure'])
def test_a_task_without_training_data_is_refused_before_anything_is_written(tmp_path, missing):
  with pytest.raises(UserError) as caught:
    loop.train(_config(), str(tmp_path / 'run'), _task()._replace(**{missing: None}))
  assert str(caught.value) == (
    "task 'image_classification' has no training data yet: its model can be used (python -m perceiver_jax predict) "
    'but neither trained nor evaluated')
  assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize('changes, message', [
  ({'batch_size': 11}, '--config.batch_size=8'),
  ({'micro_batches': 4}, '--config.batch_size=32'),
  ({'checkpoint.best': 'highest validation/acuracy'}, 'there are validation/error, validation/loss'),
  ({'checkpoint.best': 'validation/error'}, "write it like 'lowest validation/loss'"),
  ({'optimizer.name': 'lmab'}, "'lamb'"),
  ({'precision': 'float31'}, 'precision'),
  ({'eval.every_steps': 0}, 'eval.every_steps is 0; it must be at least 1'),
])
def test_what_cannot_work_is_refused_before_anything_is_written(tmp_path, changes, message):
  with pytest.raises(UserError) as caught:
    loop.train(_config(**changes), str(tmp_path / 'run'), _task())
  assert message in str(caught.value) and str(caught.value).count('\n') <= 1
  assert list(tmp_path.iterdir()) == []


def test_a_fault_of_the_test_data_shows_before_the_first_step(tmp_path):
  def refuse(split, step, batch):
    if split == 'test':
      raise UserError('no test data')

  with pytest.raises(UserError, match='no test data'):
    loop.train(_config(), str(tmp_path / 'run'), _task(refuse))
  assert list(tmp_path.iterdir()) == []


def test_a_workdir_that_cannot_be_written_is_refused(tmp_path):
  (tmp_path / 'file').write_text('not a folder')
  with pytest.raises(UserError, match=f'{tmp_path}/file/run cannot hold a run: {tmp_path}/file is a file'):
    loop.train(_config(), str(tmp_path / 'file' / 'run'), _task())
  assert (tmp_path / 'file').read_text() == 'not a folder'


def test_a_run_that_diverges_stops_with_its_checkpoints_intact_and_can_be_mended(tmp_path):
  def spoil(split, step, batch):
    if split == 'train' and step >= 4:
      batch['x'][0, 0] = np.nan

  config = _config(max_skipped=2, **{'log.every_steps': 1})
  with pytest.raises(NumericsError, match='the last 2 updates were not finite') as caught:
    loop.train(config, str(tmp_path), _task(spoil))
  assert 'optimizer.peak_lr' in str(caught.value)
  history = read_history(tmp_path)
  assert [line['train/skipped_steps'] for line in history if 'train/loss' in line] == [0, 0, 0, 0, 1, 1]
  assert math.isnan(history[-1]['train/loss']) and '"train/loss": null' in (tmp_path / 'metrics.jsonl').read_text()
  assert _steps_saved(tmp_path) == [3, 4]
  _, params, _ = load_weights(tmp_path, 'latest')
  assert np.isfinite(params['linear']['w']).all()
  assert loop.train(config, str(tmp_path), _task()) == 0
  assert [line['step'] for line in read_history(tmp_path) if 'train/loss' in line] == [1, 2, 3, 4, 5, 6]


def test_a_run_whose_last_figures_are_not_finite_says_so_now_and_later_and_keeps_everything(tmp_path, capsys):
  def spoil(split, step, batch):
    if split != 'train':
      batch['x'][:] = np.nan

  drawn = []
  task = _task(spoil, draw=lambda predict, history, path: drawn.append(history[-1]))
  for _ in range(2):
    with pytest.raises(NumericsError) as caught:
      loop.train(_config(), str(tmp_path), task)
    assert str(caught.value) == (
      'test/loss is nan by the checkpoint of step 6: the run diverged.\n'
      'Lower optimizer.peak_lr, or look at the data, and train into another --workdir.')
  assert 'has finished already' in capsys.readouterr().out
  assert _steps_saved(tmp_path) == [4, 6]
  (line,) = drawn
  assert math.isnan(line['test/loss']) and line['checkpoint/best_step'] == 6
  assert [sorted(line) for line in read_history(tmp_path)][-1] == sorted(line)


def test_a_picture_that_fails_costs_a_run_neither_its_figures_nor_its_exit_code(
    tmp_path, finished, caplog, capsys, monkeypatch):
  def draw(predict, history, path):
    raise ZeroDivisionError('no pixels')

  monkeypatch.setattr(logging.getLogger('absl'), 'propagate', True)
  assert loop.train(_config(), str(tmp_path), _task(draw=draw)) == 0
  assert read_history(tmp_path)[-1] == read_history(finished[0])[-1]
  assert not (tmp_path / 'summary.png').exists()
  assert 'Finished 6 steps' in capsys.readouterr().out
  (record,) = [record for record in caplog.records if 'could not be drawn' in record.getMessage()]
  assert record.levelno == logging.WARNING and f'{tmp_path}/summary.png' in record.getMessage()
  assert 'Traceback' in caplog.text and 'ZeroDivisionError: no pixels' in caplog.text


def test_a_few_updates_that_are_not_finite_are_skipped_and_counted(tmp_path):
  def spoil(split, step, batch):
    if split == 'train' and step in (1, 2, 4):
      batch['y'][:] = np.inf

  assert loop.train(_config(max_skipped=3), str(tmp_path), _task(spoil)) == 0
  lines = [line for line in read_history(tmp_path) if 'train/loss' in line]
  assert [line['train/skipped_steps'] for line in lines] == [0.5, 0.5, 0.5]
  assert all(math.isfinite(line['train/loss']) for line in lines)


def test_a_signal_during_training_saves_and_stops_after_the_step_under_way(tmp_path, capsys):
  before = signal.getsignal(signal.SIGTERM)
  assert loop.train(_config(), str(tmp_path), _task(_sends(signal.SIGTERM, 'train', 0))) == 75
  assert capsys.readouterr().out == 'Stopped by SIGTERM and saved. The same command resumes at step 1.\n'
  assert _steps_saved(tmp_path) == [1] and read_history(tmp_path) == []
  assert signal.getsignal(signal.SIGTERM) is before


def test_a_signal_during_the_last_evaluation_leaves_it_to_the_next_start(tmp_path, capsys, finished):
  assert loop.train(_config(), str(tmp_path), _task(_sends(signal.SIGINT, 'test', 1))) == 75
  assert capsys.readouterr().out == 'Stopped by SIGINT and saved. The same command resumes at step 6.\n'
  assert 'validation/loss' in read_history(tmp_path)[-1]
  assert loop.train(_config(), str(tmp_path), _task()) == 0
  assert 'Resuming at step 6 of 6.' in capsys.readouterr().err
  lines, expected = ([{name: value for name, value in line.items() if not name.startswith('speed/')}
                      for line in read_history(workdir)] for workdir in (tmp_path, finished[0]))
  assert lines == expected


def test_fine_tuning_starts_from_the_best_parameters_of_another_run(tmp_path, finished):
  config = _config(init_from=str(finished[0]), ema_decay=0.5, **{
    'optimizer.schedule': 'warmup_cosine', 'optimizer.warmup_steps': 1})  # the first learning rate is 0
  assert loop.train(config, str(tmp_path), _task(_sends(signal.SIGTERM, 'train', 0))) == 75
  _, expected, _ = load_weights(finished[0])
  _, average, _ = load_weights(tmp_path, 'latest')
  jax.tree.map(np.testing.assert_array_equal, average, expected)
  assert loop.train(config, str(tmp_path), _task()) == 0  # its own checkpoint now goes before init_from
  assert [line['step'] for line in read_history(tmp_path)] == [2, 2, 4, 4, 6, 6, 6]


def test_a_trace_is_written_where_asked_for(tmp_path):
  assert loop.train(_config(), str(tmp_path), _task(), profile_steps=2) == 0
  assert [path.suffix for path in (tmp_path / 'profile').rglob('*.xplane.pb')] == ['.pb']
  assert os.path.getsize(next((tmp_path / 'profile').rglob('*.xplane.pb'))) > 0
