"""A run whose evaluation gives NaN."""

from __future__ import annotations

import json
import math
import pathlib
from collections.abc import Callable

import haiku as hk
import jax.numpy as jnp
import numpy as np
import pytest

from perceiver_jax.config import overrides
from perceiver_jax.runs.log import read_history
from perceiver_jax.training import loop
from perceiver_jax.types import Field, Task
from tests.training.runs import of_batches, read_when_asked

ROOT = pathlib.Path(__file__).resolve().parents[2]
NUM_STEPS = 20


def _batch(split: str, index: int, size: int) -> dict[str, np.ndarray]:
  x = np.random.default_rng([len(split), index]).normal(size=(size, 3)).astype(np.float32)
  return {'x': x, 'y': x @ np.array([1.0, -2.0, 0.5], np.float32), 'mask': np.ones(size, np.float32)}


def _task(before_batch: Callable[[str, int, dict], object]) -> Task:
  """Fits a line; `before_batch` gets the split, the number of the batch and the batch, which it may spoil."""
  def make(split, index, size):
    batch = _batch(split, index, size)
    before_batch(split, index, batch)
    return batch

  spec = {'x': Field((3,), 'float32'), 'y': Field((), 'float32')}
  return Task(
    inputs={'x': spec['x']},
    targets={'y': spec['y']},
    forward=lambda batch, is_training, capture=False: hk.Linear(1, name='linear')(batch['x'])[:, 0],
    measure=lambda outputs, batch: {'loss': (jnp.sum((outputs - batch['y']) ** 2), jnp.sum(batch['mask']))},
    dataset=of_batches(make, spec, train_size=16, eval_size=8))


@pytest.fixture(autouse=True)
def batches_made_when_asked_for(monkeypatch):
  read_when_asked(monkeypatch)


def _config(**changes):
  config = overrides.load(f'{ROOT}/configs/digits.py:debug')
  config.update_from_flattened_dict({
    'num_steps': NUM_STEPS, 'batch_size': 16, 'ema_decay': 0.9, 'eval.every_steps': NUM_STEPS, 'eval.batch_size': 8,
    'checkpoint.every_steps': 5, 'checkpoint.keep_last': 1, 'checkpoint.best': 'lowest validation/loss',
    'log.every_steps': 1, 'optimizer.name': 'sgd', 'optimizer.schedule': 'constant_cosine', 'optimizer.peak_lr': 0.05,
    'optimizer.max_norm': 0.0, **changes})
  return config


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

