"""A config's model as shapes and functions: no array of it exists."""

from __future__ import annotations

from typing import NamedTuple

import haiku as hk
import jax
import numpy as np
from ml_collections import ConfigDict

from perceiver_jax.inference.model import template_of
from perceiver_jax.tasks import make_task
from perceiver_jax.training import experiment
from perceiver_jax.training.step import Apply
from perceiver_jax.types import Task, TrainState, Tree, blank_batch

KEY = jax.ShapeDtypeStruct((2,), np.uint32)  # a random key


class Model(NamedTuple):
  """Holds what is counted and compiled; every leaf of its trees is a `jax.ShapeDtypeStruct`."""

  config: ConfigDict
  task: Task
  apply: Apply
  params: Tree
  state: Tree
  experiment: experiment.Experiment | None  # None of a task that can only be used
  train_state: TrainState | None


def describe(config: ConfigDict) -> Model:
  """The model, and its training where the task can be trained. Raises UserError as `experiment.build` does."""
  task = make_task(config)
  if task.measure is None or task.dataset is None:
    params, state = template_of(task)
    return Model(config, task, hk.transform_with_state(task.forward).apply, params, state, None, None)
  built = experiment.build(config, task)
  train_state = jax.eval_shape(built.init)
  return Model(config, task, built.apply, train_state.params, train_state.state, built, train_state)


def batch_of(task: Task, size: int) -> dict[str, jax.ShapeDtypeStruct]:
  """Returns {name: [size, ...]}, a batch of the task's inputs and targets; pictures to be mixed lack their partners."""
  batch = blank_batch({**task.inputs, **task.targets}, size)
  return {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in batch.items()}


def num_bytes(tree: Tree) -> int:
  return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def num_parameters(model: Model) -> int:
  return sum(leaf.size for leaf in jax.tree.leaves(model.params))
