"""The factors of the position encoding of a whole grid: a table per axis, and the columns of its channels among C.

Shapes: B batch, M = n_1 * ... * n_d cells, F channels of features, P_a of the positions along axis a, K of padding,
C = F + P_1 + ... + P_d + K.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from perceiver_jax.core.input_array import InputArray
from perceiver_jax.core.position_encoding import FourierGrid
from perceiver_jax.types import Array

EPSILON = 1e-5  # of LayerNorm


def whole_grid(inputs: InputArray) -> FourierGrid | None:
  """The grid of which there is one element for each cell, in an order known before tracing; else None."""
  grid, num_elements = inputs.positions, inputs.features.shape[1]
  if not isinstance(grid, FourierGrid) or isinstance(grid.order, jax.core.Tracer):
    return None
  is_whole = math.prod(shape_of(grid)) == num_elements
  is_whole &= grid.order is None or np.array_equal(np.sort(grid.order), np.arange(num_elements))
  return grid if is_whole else None


def shape_of(grid: FourierGrid) -> tuple[int, ...]:
  """Cells along each axis."""
  return tuple(len(axis) for axis in grid.coordinates)


def tables(grid: FourierGrid, dtype: jnp.dtype) -> list[jax.Array]:
  """Per axis [n_a, P_a]: coordinate, sines, cosines."""
  parts = zip(grid.coordinates, grid.sines, grid.cosines, strict=True)
  return [jnp.concatenate([raw[:, None], sines, cosines], axis=1).astype(dtype) for raw, sines, cosines in parts]


def columns(grid: FourierGrid, num_features: int) -> list[np.ndarray]:
  """Per axis [P_a]: which of the C channels of joined elements are those of its table."""
  widths = [*(1 for _ in grid.coordinates), *(x.shape[1] for x in grid.sines), *(x.shape[1] for x in grid.cosines)]
  ends = num_features + np.cumsum(widths)
  parts = [np.arange(end - width, end) for end, width in zip(ends, widths, strict=True)]
  return [np.concatenate(parts[axis::len(grid.coordinates)]) for axis in range(len(grid.coordinates))]


def along(x: jax.Array, axis: int, num_axes: int) -> jax.Array:
  """Reshapes [B, n, R] to [B, 1, n, 1, R], with `num_axes` axes between, to broadcast over the grid."""
  return x.reshape(x.shape[0], *(-1 if i == axis else 1 for i in range(num_axes)), x.shape[-1])


def inverse_deviation(features: jax.Array, axes: Sequence[jax.Array], padding: jax.Array) -> jax.Array:
  """One over the deviation of each element's C channels, as LayerNorm has it, from the moments of its parts.

  features [B, n_1, ..., n_d, F], `axes` the tables [n_a, P_a], padding [K] -> [B, n_1, ..., n_d].
  """
  parts = [features] if features.shape[-1] else []
  parts += [along(table[None], axis, len(axes)) for axis, table in enumerate(axes)]
  parts += [padding] if len(padding) else []
  num_channels = sum(part.shape[-1] for part in parts)
  mean = sum(jnp.sum(part, axis=-1) / num_channels for part in parts)
  squares = jnp.zeros(features.shape[:-1], features.dtype)
  for part in parts:
    own = jnp.mean(part, axis=-1)
    squares += jnp.sum(jnp.square(part - own[..., None]), axis=-1) + part.shape[-1] * jnp.square(own - mean)
  return jax.lax.rsqrt(squares / num_channels + EPSILON)


def standardised(x: jax.Array) -> jax.Array:
  """LayerNorm over channels without gain and offset, in the dtype of `x`."""
  centred = x - jnp.mean(x, axis=-1, keepdims=True)
  return centred * jax.lax.rsqrt(jnp.mean(jnp.square(centred), axis=-1, keepdims=True) + EPSILON)


def at_home(inputs: InputArray, grid: FourierGrid) -> InputArray:
  """The elements in the order of the grid's cells."""
  if grid.order is None:
    return inputs
  home, valid = np.argsort(grid.order), inputs.valid
  return inputs._replace(features=inputs.features[:, home], valid=None if valid is None else valid[:, home])


def logit_tables(
  rows: jax.Array, features: jax.Array, grid: FourierGrid, padding: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Returns the factors of the logits of a grid of S rows of W cells: scale (features . rows[:F] + lead + last).

  rows [B, C, R], centred over C; features [B, M, F], in the order of the cells; padding [K] -> lead [B, S, R], last
  [B, W, R], scale [B, S, W].
  """
  shape, (batch_size, _, num_features) = shape_of(grid), features.shape
  axes, own = tables(grid, rows.dtype), columns(grid, num_features)
  *of_lead, last = (dot('np,bpr->bnr', axis, rows[:, those]) for axis, those in zip(axes, own, strict=True))
  lead = jnp.zeros((batch_size, *shape[:-1], rows.shape[-1]), rows.dtype)
  for axis, x in enumerate(of_lead):
    lead += along(x, axis, len(shape) - 1)
  last += dot('k,bkr->br', padding, rows[:, rows.shape[1] - len(padding):])[:, None]
  scale = inverse_deviation(features.reshape(batch_size, *shape, num_features), axes, padding)
  num_rows, row_size = rows_of(grid)
  return lead.reshape(batch_size, num_rows, -1), last, scale.reshape(batch_size, num_rows, row_size)


def rows_of(grid: FourierGrid) -> tuple[int, int]:
  """Returns (number of rows, row length) of a grid: rows run along its last axis."""
  shape = shape_of(grid)
  return math.prod(shape[:-1]), shape[-1]


def dot(subscripts: str, *arrays: Array) -> jax.Array:
  """Computes `jnp.einsum` in full precision."""
  return jnp.einsum(subscripts, *arrays, precision=jax.lax.Precision.HIGHEST)
