"""Evaluation: every example of a split exactly once, on any number of devices."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import jax
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from perceiver_jax import metrics
from perceiver_jax.processes import parallel
from perceiver_jax.runs.checkpoint import load_weights
from perceiver_jax.training.experiment import Experiment, build, open_split
from perceiver_jax.training.progress import counted
from perceiver_jax.training.step import with_typed_keys
from perceiver_jax.types import Mean, Task, Tree

if TYPE_CHECKING:
  from perceiver_jax.data.dataset import Dataset


class Evaluated(NamedTuple):
  """Holds what an evaluation found."""

  values: dict[str, float]  # {'split/name': value}: metrics and scores
  num_examples: int         # that were read


def evaluate(
  task: Task,
  experiment: Experiment,
  params: Tree,
  state: Tree,
  split: str,
  dataset: Dataset,
  *,
  batch_size: int,
  interrupted: Callable[[], object] = lambda: None,
) -> Evaluated | None:
  """Evaluates all examples of a split; returns None if it was interrupted. A long one shows its progress.

  Args:
    task: gives the scores.
    experiment: gives the step.
    params: replicated over devices.
    state: replicated over devices.
    split: its name.
    dataset: its examples.
    batch_size: examples at a time, over all devices; rounded up until it divides. The result does not depend on it.
    interrupted: asked before each batch; anything true ends the evaluation.
  """
  from perceiver_jax.data import pipeline

  totals: dict[str, Mean] = {}
  gathered: list[dict[str, np.ndarray]] = []
  num_examples = 0
  batch_size = parallel.round_up(batch_size)
  batches = pipeline.batches(
    dataset, split, batch_size=batch_size, is_training=False, rows=parallel.rows(batch_size))
  for batch in counted(batches, split):
    if interrupted():
      return None
    means, rows = experiment.eval_step(params, state, parallel.shard(batch))
    totals = metrics.add(totals, parallel.unreplicate(means))
    num_examples += int(np.count_nonzero(batch['mask']))
    if rows and parallel.process_id() == 0:
      rows = parallel.unreplicate(rows)
      gathered.append({name: x[rows['mask'] > 0] for name, x in rows.items() if name != 'mask'})
  values = {**metrics.divide(totals), **_scores(task, split, gathered)}
  return Evaluated(
    {f'{split}/{name}': value for name, value in values.items()}, parallel.sum_over_processes(num_examples))


def _scores(task: Task, split: str, gathered: list[dict[str, np.ndarray]]) -> dict[str, float]:
  """Computes the scores of a split from the rows of its batches, in one process, and tells them to all."""
  scores = task.scores
  if scores is None:
    return {}

  def compute() -> tuple[None, dict[str, float]]:
    rows = {name: np.concatenate([batch[name] for batch in gathered]) for name in gathered[0]}
    found = {name: float(value) for name, value in scores(rows).items()}
    missing = [name for name, value in found.items() if not math.isfinite(value)]
    if missing:
      logging.warning('%s: %s cannot be computed from these examples, and is left out', split, ', '.join(missing))
    return None, {name: value for name, value in found.items() if name not in missing}

  return parallel.from_first(compute)[1]


def predictor(experiment: Experiment, params: Tree, state: Tree) -> Callable[..., Tree]:
  """Returns predict(batch, *, capture=False) -> the model's outputs as host arrays, computed on one device."""
  def apply(params: Tree, state: Tree, batch: Tree, capture: bool) -> Tree:
    return experiment.apply(params, state, None, with_typed_keys(batch), is_training=False, capture=capture)[0]

  compiled = jax.jit(apply, static_argnames='capture')
  return lambda batch, capture=False: jax.device_get(compiled(params, state, batch, capture=capture))


def evaluate_workdir(
  config: ConfigDict, workdir: str, task: Task, *, splits: tuple[str, ...], checkpoint: str,
) -> dict[str, float]:
  """Returns the figures of a run from its checkpoint alone: {'step': the checkpoint's, 'examples': ..., ...}.

  Args:
    config: the run's own.
    workdir: the folder of the run; nothing in it is changed.
    task: the run's.
    splits: names of splits.
    checkpoint: 'best' or 'latest'.

  Raises:
    UserError: the task has no data, there is no checkpoint, it is damaged, or it is not one of this config.
  """
  template = jax.eval_shape(build(config, task).init)

  def read() -> tuple[tuple[Tree, Tree], int]:
    step, params, state = load_weights(workdir, checkpoint, template)
    return (params, state), step

  (params, state), step = parallel.from_first(read, (template.params, template.state))
  return {'step': step, **evaluate_weights(config, params, state, task, splits=splits)}


def evaluate_weights(
  config: ConfigDict, params: Tree, state: Tree, task: Task, *, splits: tuple[str, ...],
  announce: Callable[[], None] = lambda: None,
) -> dict[str, float]:
  """Returns the figures of a model, whatever its weights' source: {'examples': how many were read, 'split/name': ...}.

  Args:
    config: the model's; `eval.batch_size` examples at a time.
    params: not replicated, as the state.
    state: of Haiku; {} for none.
    task: the model's.
    splits: names of splits.
    announce: called once, when the first batch is there and the model is about to be compiled.

  Raises:
    UserError: the task has no data, or it cannot be read.
  """
  experiment = build(config, task)
  params, state = parallel.replicate((params, state))
  values: dict[str, float] = {'examples': 0}
  for split in splits:
    found = evaluate(
      task, experiment, params, state, split, open_split(config, task, split, is_training=False),
      batch_size=config.eval.batch_size, interrupted=functools.cache(announce))
    assert found is not None  # nothing interrupts it
    values |= {**found.values, 'examples': values['examples'] + found.num_examples}
  return values
