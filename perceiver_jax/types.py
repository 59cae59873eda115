"""The words everyone shares. Imports nothing of ours, and no JAX when it runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np

if TYPE_CHECKING:
  import jax

Array: TypeAlias = 'jax.Array | np.ndarray'
Tree: TypeAlias = Any                       # a nested dict, tuple or named tuple of arrays
Batch: TypeAlias = Mapping[str, Array]      # {name: [B, ...]}; 'mask' [B], float32, is an example's weight, 0 = padding
Mean: TypeAlias = 'tuple[Array | float, Array | float]'  # (weighted sum, weight): adds up; divided once, at the end
History: TypeAlias = list[dict[str, float]]  # the lines of metrics.jsonl

AXIS = 'devices'                            # the axis that parallel.over_devices maps over


class Field(NamedTuple):
  """Shape (without the batch axis) and NumPy dtype name of one entry of an example."""

  shape: tuple[int, ...]
  dtype: str


Spec: TypeAlias = Mapping[str, Field]       # what one example holds: the contract between data and model


class Task(NamedTuple):
  """What a run needs to know about an experiment; made by `tasks/<name>.make(config)`.

  All but `batches` and `draw` are pure. `forward` calls Haiku modules: it must run under `hk.transform_with_state`.
  A task without `batches`, `loss` and `metrics` is a model that can be used but not yet trained.
  """

  spec: Spec
  forward: Callable[..., dict[str, Any]]    # (batch, *, is_training, capture=False) -> outputs;
                                            #   capture adds outputs['captured']: attention maps and latents
  batches: Callable[..., Any] | None = None  # (split, *, batch_size, is_training, first_step=0, rows=slice(None))
                                            #   -> generator of batches: of each of batch_size rows those of `rows`
  loss: Callable[[Any, Batch], Mean] | None = None  # (outputs, batch) -> (sum, weight)
  metrics: Callable[[Any, Batch], dict[str, Mean]] | None = None  # (outputs, batch) -> {name: (sum, weight)}
  draw: Callable[..., None] | None = None   # (predict, history, path): writes the task's picture, a PNG;
                                            #   predict(batch, *, capture=False) -> host outputs


class TrainState(NamedTuple):
  """Everything that a step changes, and so everything a checkpoint must hold."""

  step: Array                               # [] int32, the number of steps taken
  params: Tree
  state: Tree                               # Haiku state (BatchNorm averages); {} where a model has none
  opt_state: Tree
  ema: Tree                                 # exponential moving average of params; None where not asked for
  num_skipped: Array                        # [] int32, non-finite updates skipped in a row up to now


class UserError(Exception):
  """A mistake that the person who started the run can mend. Its message, a line or two: what, where, what to do."""


class NumericsError(Exception):
  """The run diverged: too many non-finite updates in a row, or a final result that is not finite."""
