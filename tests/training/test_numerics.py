"""Runs whose numbers go wrong: a spike of the loss that is rewound, however the run is interrupted, and a NaN figure.

Run as a script it is a run that is killed while it reads a batch: `test_numerics.py BATCH WORKDIR`.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import pathlib
import signal
import subprocess
import sys
from collections.abc import Callable

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.survive import figures
from perceiver_jax import config_file
from perceiver_jax.training import loop
from perceiver_jax.training.checkpoint import load_weights, saved_steps
from perceiver_jax.training.progress import read_history
from perceiver_jax.types import Field, NumericsError, Task, UserError

ROOT = pathlib.Path(__file__).resolve().parents[2]
NUM_STEPS, SPIKE = 20, 12                   # the batch that makes the spike, so the 13th step; 10 is saved
REWIND = {'step': 10, 'rewind/number': 1, 'rewind/from_step': 13, 'rewind/offset': 3}


def _batch(split: str, index: int, size: int) -> dict[str, np.ndarray]:
  x = np.random.default_rng([len(split), index]).normal(size=(size, 3)).astype(np.float32)
  return {'x': x, 'y': x @ np.array([1.0, -2.0, 0.5], np.float32), 'mask': np.ones(size, np.float32)}


def _task(before_batch: Callable[[str, int, dict], object]) -> Task:
  """Fits a line; `before_batch` gets the split, the number of the batch and the batch, which it may spoil."""
  def batches(split, *, batch_size, is_training, first_step=0, rows=slice(None)):
    for index in itertools.count(first_step) if is_training else range(2):
      batch = _batch(split, index, batch_size)
      before_batch(split, index, batch)
      yield {name: entry[rows] for name, entry in batch.items()}

  return Task(
    spec={'x': Field((3,), 'float32'), 'y': Field((), 'float32')},
    batches=batches,
    forward=lambda batch, is_training, capture=False: hk.Linear(1, name='linear')(batch['x'])[:, 0],
    loss=lambda outputs, batch: (jnp.sum((outputs - batch['y']) ** 2), jnp.sum(batch['mask'])),
    metrics=lambda outputs, batch: {})


def _config(**changes):
  config = config_file.load(f'{ROOT}/configs/digits.py:debug')
  config.rewind.factor = 3.0
  config.rewind.max_rewinds = 2
  config.update_from_flattened_dict({
    'num_steps': NUM_STEPS, 'batch_size': 16, 'ema_decay': 0.9, 'eval.every_steps': NUM_STEPS, 'eval.batch_size': 8,
    'checkpoint.every_steps': 5, 'checkpoint.keep_last': 1, 'checkpoint.best_metric': 'validation/loss',
    'log.every_steps': 1, 'optimizer.name': 'sgd', 'optimizer.schedule': 'constant_cosine', 'optimizer.peak_lr': 0.05,
    'optimizer.max_norm': 0.0, **changes})
  return config


def _run(workdir, accident: Callable[[int], object] = lambda index: None, spoiled=(SPIKE,), **changes):
  """(exit code, the training batches it read); `accident` gets the number of each of them."""
  read = []

  def before_batch(split, index, batch):
    if split == 'train':
      read.append(index)
      if index in spoiled:
        batch['y'] += 1000
      accident(index)

  return loop.train(_config(**changes), str(workdir), _task(before_batch)), read


def _train_losses(workdir) -> dict[int, float]:
  lines = [(line['step'], line['train/loss']) for line in read_history(workdir) if 'train/loss' in line]
  assert len(dict(lines)) == len(lines)
  return dict(lines)


def _rewinds(workdir) -> list[dict[str, float]]:
  return [line for line in read_history(workdir) if 'rewind/number' in line]


def _assert_same_run(workdir, expected) -> None:
  assert figures(workdir) == figures(expected)
  for which in ('latest', 'best'):
    jax.tree.map(np.testing.assert_array_equal, load_weights(workdir, which), load_weights(expected, which))


@pytest.fixture(scope='module')
def rewound(tmp_path_factory):
  """The workdir of a run that nothing but its spike disturbed, and the batches it read."""
  workdir = tmp_path_factory.mktemp('rewound')
  exit_code, read = _run(workdir)
  assert exit_code == 0
  return workdir, read


def test_a_spike_is_rewound_and_the_run_goes_on_with_the_batches_after_it(rewound, tmp_path):
  workdir, read = rewound
  assert read == [*range(13), *range(13, 23)]
  (line,) = _rewinds(workdir)
  assert line == {**REWIND, 'rewind/loss': line['rewind/loss'], 'rewind/usual_loss': line['rewind/usual_loss']}
  assert line['rewind/loss'] > 1e5 and 0 < line['rewind/usual_loss'] < 10
  losses = _train_losses(workdir)
  assert list(losses) == list(range(1, NUM_STEPS + 1)) and max(losses.values()) < 10
  assert [line['step'] for line in figures(workdir)] == sorted(line['step'] for line in figures(workdir))
  without_spike = _task(lambda split, index, batch: batch.update(
    _batch(split, index + 3 * (split == 'train' and index >= 10), len(batch['mask']))))
  assert loop.train(_config(), str(tmp_path), without_spike) == 0
  assert figures(tmp_path) == [line for line in figures(workdir) if 'rewind/number' not in line]
  jax.tree.map(np.testing.assert_array_equal, load_weights(tmp_path), load_weights(workdir))


def test_without_a_factor_nothing_is_rewound(tmp_path):
  exit_code, read = _run(tmp_path, **{'rewind.factor': None})
  assert exit_code == 0 and read == list(range(NUM_STEPS)) and _rewinds(tmp_path) == []
  assert _train_losses(tmp_path)[SPIKE + 1] > 1e5


@pytest.mark.parametrize('batch, steps', [
  (11, [10, 12]),                           # saved at 12, where no other run goes back to; 10 must be kept
  (SPIKE, [10]),                            # while the spike is made
  (13, [11]),                               # after the rewind, at the first batch
  (16, [14]),                               # later; the rewind is in the checkpoint
])
def test_a_signal_anywhere_about_a_rewind_changes_no_bit(rewound, tmp_path, batch, steps):
  exit_code, _ = _run(tmp_path, lambda index: signal.raise_signal(signal.SIGTERM) if index == batch else None)
  assert exit_code == 75
  assert set(steps) <= set(saved_steps(tmp_path / 'checkpoints'))
  assert _run(tmp_path)[0] == 0
  _assert_same_run(tmp_path, rewound[0])


@pytest.mark.parametrize('batch, batches', [
  (16, [*range(10, 13), *range(13, 23)]),   # it meets the spike again
  (19, range(18, 23)),                      # the checkpoint of step 15 is from after the rewind
])
def test_a_failure_after_a_rewind_changes_no_bit(rewound, tmp_path, batch, batches):
  def fail(index):
    if index == batch:
      raise UserError('the disk is gone')

  with pytest.raises(UserError, match='the disk is gone'):
    _run(tmp_path, fail)
  exit_code, read = _run(tmp_path)
  assert exit_code == 0 and read == list(batches)
  _assert_same_run(tmp_path, rewound[0])


def test_spikes_one_after_the_other_are_each_rewound_and_told(tmp_path, capsys):
  exit_code, read = _run(tmp_path, spoiled=(SPIKE, 20))
  assert exit_code == 0
  assert read == [*range(13), *range(13, 21), *range(21, 26)]
  first, second = _rewinds(tmp_path)
  assert {name: first[name] for name in REWIND} == REWIND
  assert (second['step'], second['rewind/from_step'], second['rewind/offset']) == (15, 18, 6)
  told = [line for line in capsys.readouterr().err.splitlines() if 'rewind' in line]
  assert told == [
    f'step {line["rewind/from_step"]}: train/loss {line["rewind/loss"]:.4g}, usually {line["rewind/usual_loss"]:.4g}; '
    f'back to step {line["step"]}, and on with the batches after it (rewind {number} of at most 2)'
    for number, line in enumerate((first, second), 1)]
  assert list(_train_losses(tmp_path)) == list(range(1, NUM_STEPS + 1))


def test_more_rewinds_than_allowed_end_the_run_with_its_checkpoints_intact_and_again_when_resumed(tmp_path):
  for _ in range(2):
    with pytest.raises(NumericsError) as caught:
      _run(tmp_path, spoiled=range(SPIKE, 100))
    assert 'rewind.max_rewinds' in str(caught.value) and 'optimizer.peak_lr' in str(caught.value)
    assert saved_steps(tmp_path / 'checkpoints') == [10]
    assert [line['rewind/number'] for line in _rewinds(tmp_path)] == [1, 2]


def test_a_spike_before_anything_is_saved_starts_the_run_again_with_other_batches(tmp_path):
  exit_code, read = _run(tmp_path, **{'checkpoint.every_steps': NUM_STEPS})
  assert exit_code == 0 and read == [*range(13), *range(13, 33)]
  (line,) = _rewinds(tmp_path)
  assert (line['step'], line['rewind/offset']) == (0, 13)


def test_where_the_regular_checkpoint_is_missing_a_run_goes_back_to_the_newest_before_the_spike(tmp_path):
  code, _ = _run(tmp_path, lambda index: index == 11 and signal.raise_signal(signal.SIGTERM))
  assert code == 75 and saved_steps(tmp_path / 'checkpoints') == [10, 12]
  exit_code, read = _run(tmp_path, **{'checkpoint.every_steps': 7})  # 7 was never saved
  assert exit_code == 0 and read == [12, *range(13, 21)]
  (line,) = _rewinds(tmp_path)
  assert (line['step'], line['rewind/offset']) == (12, 1)


@pytest.mark.slow
def test_a_kill_just_after_a_rewind_changes_no_bit(rewound, tmp_path):
  killed = subprocess.run(
    [sys.executable, __file__, '13', str(tmp_path)], env={**os.environ, 'PYTHONPATH': str(ROOT)}, capture_output=True,
    text=True, check=False)
  assert killed.returncode == -signal.SIGKILL, killed.stderr
  assert saved_steps(tmp_path / 'checkpoints') == [10]
  (line,) = _rewinds(tmp_path)
  exit_code, read = _run(tmp_path)
  assert exit_code == 0 and read == [10, 11, 12, *range(13, 23)]
  assert _rewinds(tmp_path) == [line]
  _assert_same_run(tmp_path, rewound[0])


def test_an_evaluation_that_gives_nan_is_never_the_best_and_does_not_end_the_run(tmp_path):
  evaluations = []

  def before_batch(split, index, batch):
    if split == 'validation' and index == 0:
      evaluations.append(split)
      if len(evaluations) == 4:             # the first is a trial; this is at step 6, the last and the lowest
        batch['x'][:] = np.nan

  config = _config(**{'num_steps': 6, 'eval.every_steps': 2})
  assert loop.train(config, str(tmp_path), _task(before_batch)) == 0
  losses = {line['step']: line['validation/loss'] for line in read_history(tmp_path) if 'validation/loss' in line}
  assert losses[4] < losses[2] and math.isnan(losses[6])
  assert json.loads((tmp_path / 'metrics.jsonl').read_text().splitlines()[-2])['validation/loss'] is None
  assert read_history(tmp_path)[-1]['checkpoint/best_step'] == 4


if __name__ == '__main__':
  _run(sys.argv[2], lambda index: os.kill(os.getpid(), signal.SIGKILL) if index == int(sys.argv[1]) else None)
