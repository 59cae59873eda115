"""A task and a config, made into the functions that a run calls, and checked against the data."""

from __future__ import annotations

import functools
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import haiku as hk
import jax
import numpy as np
import optax
from ml_collections import ConfigDict

from perceiver_jax.processes import parallel
from perceiver_jax.training import precision
from perceiver_jax.training.optimizer import make_optimizer, make_schedule
from perceiver_jax.training.step import (
  Apply,
  evaluate_batch,
  init_state,
  make_eval_step,
  make_train_step,
  measured,
  with_typed_keys,
)
from perceiver_jax.types import Batch, Mean, Spec, Task, TrainState, UserError, blank_batch

if TYPE_CHECKING:
  from perceiver_jax.data.dataset import Dataset

NUM_TRIED = 3                               # examples with which a task's functions are traced

_FAULTS = (AssertionError, AttributeError, IndexError, KeyError, TypeError, ValueError)


class Experiment(NamedTuple):
  """Holds the functions of a run. None of them is compiled until it is called."""

  init: Callable[[], TrainState]  # the state at step 0, on one device
  train_step: Callable[[TrainState, Batch], tuple[TrainState, dict[str, Mean]]]  # over all devices; donates the state
  eval_step: Callable[..., tuple[dict[str, Mean], dict[str, Any]]]  # (params, state, batch), over all devices
  apply: Apply  # the model, on one device


def build(config: ConfigDict, task: Task) -> Experiment:
  """Returns the experiment. Raises UserError for a task that cannot be trained, or for an unknown precision."""
  if task.measure is None or task.dataset is None:
    raise UserError(
      f'task {config.task!r} has no training data yet: its model can be used (python -m perceiver_jax predict) '
      'but neither trained nor evaluated')
  model = hk.transform_with_state(task.forward)
  apply = precision.wrap(model.apply, config.precision)
  optimizer = make_optimizer(config.optimizer, config.num_steps)
  schedule = make_schedule(config.optimizer, config.num_steps)
  return Experiment(
    init=jax.jit(functools.partial(_init, model, optimizer, task, config)),
    train_step=parallel.over_devices(make_train_step(task, apply, optimizer, schedule, config), donate=(0,)),
    eval_step=parallel.over_devices(make_eval_step(task, apply)),
    apply=apply,
  )


def _init(
  model: hk.TransformedWithState, optimizer: optax.GradientTransformation, task: Task, config: ConfigDict,
) -> TrainState:
  batch = with_typed_keys(blank_batch(task.inputs, 1))
  # With is_training=False, BatchNorm would leave its averages out of the state.
  params, state = model.init(jax.random.key(config.seed), batch, is_training=True)
  params = precision.policy(config.precision).cast_to_param(params)
  return init_state(params, state, optimizer, config.ema_decay)


def open_splits(config: ConfigDict, task: Task, splits: Iterable[str]) -> dict[str, Dataset]:
  """Returns the data sets of some splits for evaluation, each once, checked against the task. Raises UserError."""
  return {split: open_split(config, task, split, is_training=False) for split in dict.fromkeys(splits)}


def open_split(config: ConfigDict, task: Task, split: str, *, is_training: bool) -> Dataset:
  """Returns one split, checked against the task: what is read, and what forward and measure make of it.

  Raises:
    UserError: there is no such split, it lacks an entry, or the task's functions fail on a batch of its shapes.
  """
  assert task.dataset  # or `build` had refused it
  dataset = task.dataset(split, is_training=is_training)
  for name, field in {**task.inputs, **task.targets}.items():
    found = dataset.spec.get(name)
    if found is None and not field.is_optional:
      raise UserError(
        f'task {config.task}: split {split!r} has no entry {name!r}, which the task reads; it has '
        f'{", ".join(dataset.spec)}')
    if found and (found.dtype != field.dtype or len(found.shape) != len(field.shape)):
      raise UserError(
        f'task {config.task}: {name!r} is {list(found.shape)} {found.dtype} in split {split!r}, but the task reads '
        f'{list(field.shape)} {field.dtype}')
  _trace(config, task, dataset.spec, is_training)
  return dataset


def _trace(config: ConfigDict, task: Task, spec: Spec, is_training: bool) -> None:
  """Raises UserError where the task's functions fail on a batch of these shapes, or return no means."""
  model, size = hk.transform_with_state(task.forward), NUM_TRIED

  def run(batch: Batch) -> tuple[Any, Any]:
    params, state = model.init(jax.random.key(config.seed), with_typed_keys(blank_batch(task.inputs, size)),
                               is_training=True)
    if not is_training:
      return evaluate_batch(task, precision.wrap(model.apply, config.precision), params, state, batch)
    batch = with_typed_keys(batch)
    outputs, _ = model.apply(params, state, jax.random.key(config.seed), batch, is_training=True)
    return measured(task, outputs, batch), {}

  with _telling_faults(config):
    means, rows = jax.eval_shape(run, blank_batch(spec, size))
  _check_means(config, means)
  for name, x in rows.items():
    if x.shape[:1] != (size,):
      raise UserError(f'task {config.task}: per_example returns {name!r} of shape {list(x.shape)}; it is [batch, ...]')


@contextmanager
def _telling_faults(config: ConfigDict) -> Iterator[None]:
  """Turns a fault of a task's functions into one line that names the task and the place."""
  try:
    yield
  except _FAULTS as error:
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if 'site-packages' not in frame.filename]
    place = f'{frames[-1].filename}, line {frames[-1].lineno}'
    what = ' '.join(str(error).split())[:300]
    raise UserError(
      f'task {config.task} fails on a batch of its data: {type(error).__name__}: {what} ({place})') from error


def _check_means(config: ConfigDict, means: Any) -> None:
  if not isinstance(means, dict) or 'loss' not in means:
    raise UserError(f"task {config.task}: measure returns a dict with 'loss', {{'loss': (sum, weight), ...}}")
  for name, mean in means.items():
    if not isinstance(mean, tuple) or [np.shape(part) for part in mean] != [(), ()]:
      raise UserError(f'task {config.task}: measure returns {name!r} as (sum, weight), two scalars: what adds up, and '
                      'the weight to divide it by')
