"""A task and a config, made into the functions that a run calls."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import haiku as hk
import jax
import numpy as np
import optax
from ml_collections import ConfigDict

from perceiver_jax.processes import parallel
from perceiver_jax.training import precision
from perceiver_jax.training.optimizer import make_optimizer, make_schedule
from perceiver_jax.training.step import Apply, init_state, make_eval_step, make_train_step
from perceiver_jax.types import Batch, Mean, Task, TrainState, Tree, UserError


class Experiment(NamedTuple):
  """Nothing in it is compiled until it is called."""

  init: Callable[[], TrainState]  # the state at step 0, on one device
  train_step: Callable[[TrainState, Batch], tuple[TrainState, dict[str, Mean]]]  # over all devices; donates the state
  eval_step: Callable[[Tree, Tree, Batch], dict[str, Mean]]  # (params, state, batch), over all devices
  apply: Apply  # the model, on one device


def build(config: ConfigDict, task: Task) -> Experiment:
  """The experiment; raises UserError for a task to be used only, or a precision, optimizer or schedule there is not."""
  if None in (task.batches, task.loss, task.metrics):
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
  batch = {name: np.zeros((1, *field.shape), field.dtype) for name, field in task.spec.items()}
  batch['mask'] = np.ones([1], np.float32)
  # With is_training=False, BatchNorm would leave its averages out of the state.
  params, state = model.init(jax.random.key(config.seed), batch, is_training=True)
  params = precision.policy(config.precision).cast_to_param(params)
  return init_state(params, state, optimizer, config.ema_decay)
