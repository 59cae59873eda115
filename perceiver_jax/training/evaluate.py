"""Evaluation: every example of a split exactly once, on any number of devices."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
from ml_collections import ConfigDict

from perceiver_jax import metrics
from perceiver_jax.processes import parallel
from perceiver_jax.runs.checkpoint import load_weights
from perceiver_jax.training.experiment import Experiment, build
from perceiver_jax.training.progress import counted
from perceiver_jax.types import Mean, Task, Tree


def evaluate(
  task: Task,
  experiment: Experiment,
  params: Tree,
  state: Tree,
  split: str,
  *,
  batch_size: int,
  interrupted: Callable[[], object] = lambda: None,
) -> dict[str, float] | None:
  """{'split/name': value} over all examples of a split; None if it was interrupted. A long one shows its progress.

  Args:
    task: gives the batches.
    experiment: gives the step.
    params: replicated over devices.
    state: replicated over devices.
    split: name of the split.
    batch_size: examples at a time, over all devices; rounded up until it divides. The result does not depend on it.
    interrupted: asked before each batch; anything true ends the evaluation.
  """
  counts = _count(task, experiment, params, state, split, batch_size, interrupted)
  return None if counts is None else _figures(split, counts[0])


def _count(
  task: Task, experiment: Experiment, params: Tree, state: Tree, split: str, batch_size: int,
  interrupted: Callable[[], object],
) -> tuple[dict[str, Mean], int] | None:
  """The sums and weights of the figures, and the number of examples that count; None if it was interrupted."""
  totals: dict[str, Mean] = {}
  num_examples = 0
  assert task.batches  # or experiment.build had refused it
  batch_size = parallel.round_up(batch_size)
  batches = task.batches(split, batch_size=batch_size, is_training=False, rows=parallel.rows(batch_size))
  for batch in counted(batches, split):
    if interrupted():
      return None
    means = experiment.eval_step(params, state, parallel.shard(batch))
    totals = metrics.add(totals, parallel.unreplicate(means))
    num_examples += int(batch['mask'].sum())
  return totals, parallel.sum_over_processes(num_examples)


def _figures(split: str, totals: dict[str, Mean]) -> dict[str, float]:
  return {f'{split}/{name}': value for name, value in metrics.divide(totals).items()}


def predictor(experiment: Experiment, params: Tree, state: Tree) -> Callable[..., Tree]:
  """predict(batch, *, capture=False) -> the model's outputs as host arrays, computed on one device."""
  apply = jax.jit(functools.partial(experiment.apply, is_training=False), static_argnames='capture')
  return lambda batch, capture=False: jax.device_get(apply(params, state, None, batch, capture=capture)[0])


def evaluate_workdir(config: ConfigDict, workdir: str, task: Task, *, split: str, checkpoint: str) -> dict[str, float]:
  """The figures of a run from its checkpoint alone: {'step': the checkpoint's, ...}.

  Args:
    config: the run's own.
    workdir: the folder of the run; nothing in it is changed.
    task: the run's.
    split: 'train', 'validation' or 'test'.
    checkpoint: 'best' or 'latest'.

  Raises:
    UserError: the task has no data, there is no checkpoint, it is damaged, or it is not one of this config.
  """
  template = jax.eval_shape(build(config, task).init)

  def read() -> tuple[tuple[Tree, Tree], int]:
    step, params, state = load_weights(workdir, checkpoint, template)
    return (params, state), step

  (params, state), step = parallel.from_first(read, (template.params, template.state))
  return {'step': step, **evaluate_weights(config, params, state, task, split=split)}


def evaluate_weights(
  config: ConfigDict, params: Tree, state: Tree, task: Task, *, split: str, announce: Callable[[], None] = lambda: None,
) -> dict[str, float]:
  """The figures of a model, wherever its weights come from: {'examples': how many count, 'split/name': value}.

  Args:
    config: the model's; `eval.batch_size` examples at a time.
    params: not replicated, as the state.
    state: of Haiku; {} for none.
    task: the model's.
    split: 'train', 'validation' or 'test'.
    announce: called once, when the first batch is there and the model is about to be compiled.

  Raises:
    UserError: the task has no data, or it cannot be read.
  """
  experiment = build(config, task)
  params, state = parallel.replicate((params, state))
  counts = _count(task, experiment, params, state, split, config.eval.batch_size, functools.cache(announce))
  assert counts is not None  # nothing interrupts it
  totals, num_examples = counts
  return {'examples': num_examples, **_figures(split, totals)}
