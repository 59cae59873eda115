"""The words everyone shares. Imports nothing of ours, and no JAX when it runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np

if TYPE_CHECKING:
  import jax

  from perceiver_jax.data.dataset import Dataset

Array: TypeAlias = 'jax.Array | np.ndarray'
Tree: TypeAlias = Any                       # a nested dict, tuple or named tuple of arrays
Batch: TypeAlias = Mapping[str, Array]      # {name: [B, ...]}; always with 'mask' and 'key', see below
Mean: TypeAlias = 'tuple[Array | float, Array | float]'  # (weighted sum, weight): adds up; divided once, at the end
History: TypeAlias = list[dict[str, float]]  # the lines of metrics.jsonl

AXIS = 'devices'                            # the axis that parallel.over_devices maps over


class Field(NamedTuple):
  """Describes one entry of an example: its shape, without the batch axis, and the name of its NumPy dtype."""

  shape: tuple[Any, ...]                    # sizes; of an optional entry also words, for axes of any size
  dtype: str
  bound: int | None = None                  # of integers: they lie in 0 .. bound - 1
  is_optional: bool = False                 # of an input that a batch may leave out


Spec: TypeAlias = Mapping[str, Field]       # what one example holds: the contract between data and model

# Every batch also has 'mask', [B] float32, the weight of an example, 0 for padding; and 'key', a random key for each
# example: [B, 2] uint32 on the host, a typed key [B] in `forward` and `measure`.
ALWAYS: Spec = {'mask': Field((), 'float32'), 'key': Field((2,), 'uint32')}


class Task(NamedTuple):
  """Tells a run what it needs to know about an experiment; `tasks/<name>.make(config)` returns it.

  All but `dataset` and `draw` are pure. `forward` calls Haiku modules: it runs under `hk.transform_with_state`.
  A task without `measure` or `dataset` is a model that can be used but not yet trained.
  """

  inputs: Spec                              # what forward reads: enough to initialise and to infer
  targets: Spec                             # what measure reads besides
  forward: Callable[..., Any]               # (batch, *, is_training, capture=False) -> outputs, a dict of arrays;
                                            #   capture adds outputs['captured']: attention maps and latents
  measure: Callable[[Any, Batch], dict[str, Mean]] | None = None  # (outputs, batch) -> {'loss': (sum, weight), ...}
  dataset: Callable[..., Dataset] | None = None  # (split, *, is_training) -> Dataset
  per_example: Callable[[Any, Batch], dict[str, Array]] | None = None  # (outputs, batch) -> {name: [B, ...]}: what
                                            #   `scores` needs of each example
  scores: Callable[[Mapping[str, np.ndarray]], dict[str, float]] | None = None  # ({name: [N, ...]} of a whole split)
                                            #   -> {name: value}; NaN where a score cannot be computed
  draw: Callable[..., None] | None = None   # (predict, history, path): writes the task's picture, a PNG;
                                            #   predict(batch, *, capture=False) -> host outputs


class TrainState(NamedTuple):
  """Holds everything that a step changes, and so everything a checkpoint must hold."""

  step: Array                               # [] int32, the number of steps taken
  params: Tree
  state: Tree                               # Haiku state (BatchNorm averages); {} where a model has none
  opt_state: Tree
  ema: Tree                                 # exponential moving average of params; None where not asked for
  num_skipped: Array                        # [] int32, non-finite updates skipped in a row up to now


def to_array(name: str, value: Any) -> np.ndarray:
  """Returns numbers of any library as a NumPy array: lists, JAX's, PyTorch's on any device and with a gradient.

  bfloat16 and narrower floats become float32. Raises UserError, with the name, for what is no array.
  """
  try:
    if hasattr(value, 'detach'):            # PyTorch's; NumPy knows no bfloat16
      value = value.detach().cpu()
      array = np.asarray(value.float() if value.is_floating_point() and value.element_size() < 4 else value)
    elif isinstance(value, list | tuple) and value and hasattr(value[0], 'detach'):
      array = np.stack([to_array(name, each) for each in value])
    else:
      array = np.asarray(value)
  except (RuntimeError, TypeError, ValueError) as error:  # PyTorch's refusals are of all kinds
    raise UserError(f'{name} cannot be made an array: {error}') from error
  return array.astype(np.float32) if array.dtype.name.startswith(('bfloat', 'float8')) else array


def blank_batch(spec: Spec, size: int) -> dict[str, np.ndarray]:
  """Returns a batch of zeros, of weight 1, that takes no memory: it serves to trace and to initialise.

  Args:
    spec: of one example; optional entries are left out.
    size: B, the number of examples.
  """
  fields = {name: field for name, field in {**spec, **ALWAYS}.items() if not field.is_optional}
  batch = {
    name: np.broadcast_to(np.zeros((), field.dtype), (size, *field.shape)) for name, field in fields.items()}
  return {**batch, 'mask': np.broadcast_to(np.ones((), np.float32), (size,))}


class UserError(Exception):
  """Tells the person who started the run of a mistake to correct, in a line or two: what, where, what to do."""


class NumericsError(Exception):
  """Tells that the run diverged: too many non-finite updates in a row, or a final result that is not finite."""
