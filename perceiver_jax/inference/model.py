"""A config and its weights as one function, from a batch to outputs, compiled once per shape."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

import haiku as hk
import jax
import numpy as np
from ml_collections import ConfigDict

from perceiver_jax.types import Batch, Task, Tree, UserError


class Model(NamedTuple):
  """What the predictions of every task are made with."""

  config: ConfigDict
  params: Tree
  state: Tree
  run: Callable[..., dict[str, Any]]  # (batch, *, capture=False) -> the task's outputs, as NumPy arrays


def task_of(config: ConfigDict) -> Task:
  """`tasks/<config.task>.make(config)`."""
  return importlib.import_module(f'perceiver_jax.tasks.{config.task}').make(config)


def template(config: ConfigDict) -> tuple[Tree, Tree]:
  """(params, state) of the config's model, as `jax.ShapeDtypeStruct`s: nothing is computed."""
  task = task_of(config)
  batch = {name: np.zeros((1, *field.shape), field.dtype) for name, field in task.spec.items()}
  init = functools.partial(hk.transform_with_state(task.forward).init, is_training=True)
  return jax.eval_shape(init, jax.ShapeDtypeStruct((2,), np.uint32), batch)  # of a random key


def build(config: ConfigDict, params: Tree, state: Tree) -> Model:
  """The model on the default device, in float32 or whatever the weights are."""
  apply = hk.transform_with_state(task_of(config).forward).apply
  params, state = jax.device_put((params, state))

  @functools.partial(jax.jit, static_argnames='capture')
  def compiled(params: Tree, state: Tree, batch: Batch, capture: bool) -> dict[str, Any]:
    return apply(params, state, None, batch, is_training=False, capture=capture)[0]

  def run(batch: Batch, *, capture: bool = False) -> dict[str, Any]:
    return jax.tree.map(np.asarray, compiled(params, state, dict(batch), capture))

  return Model(config, params, state, run)


def check_image(image: np.ndarray, what: str) -> np.ndarray:
  """[H, W, 3] uint8 of an image that is grey or has a transparency too. Raises UserError for any other array."""
  array = np.asarray(image)
  if array.ndim == 2:
    array = array[..., None]
  if array.ndim != 3 or array.shape[-1] not in (1, 3, 4) or 0 in array.shape:
    raise UserError(f'{what} is [height, width, 3], not {list(np.shape(image))}')
  if array.dtype != np.uint8:
    raise UserError(f'{what} is uint8, 0 to 255, not {array.dtype}: multiply by 255 and round what is in 0..1')
  return np.broadcast_to(array[..., :3], (*array.shape[:2], 3))
