"""Queries: what to ask the latents for: points of a grid, tasks, or outputs of several kinds (2107.14795, section 3.2).

Shapes: B batch, O queries, Q channels of a query, d axes of a grid, K bands.

Other queries need nothing more: one trained array is core's `learned_query`, and inputs that ask for themselves are
core's `dense(inputs)`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import chex
import jax
import jax.numpy as jnp

from perceiver_jax.core.input_array import InputArray
from perceiver_jax.core.perceiver import learned_query
from perceiver_jax.core.position_encoding import LearnedTable, fourier_features, fourier_grid, grid_coordinates
from perceiver_jax.types import Array, UserError


def cell_coordinates(indices: Array, shape: Sequence[int]) -> jax.Array:
  """Returns the coordinates of cells of a grid by the authors' rule for sampled points, -1 + 2 i / n, always below 1.

  The released video model was trained with it, and all its outputs are to be asked for by it. `end_to_end_coordinates`
  differs by up to 2 / n: 0.001 along an axis of 1,920 cells, 0.0089 of 224, 0.125 of 16.

  Args:
    indices: [...] int, flat and row-major, in 0..prod(shape) - 1.
    shape: d axes, cells along each.

  Returns:
    [..., d] float32, in [-1, 1).
  """
  cells = jnp.unravel_index(jnp.asarray(indices), tuple(shape))
  return jnp.stack([-1.0 + 2 * cell / n for cell, n in zip(cells, shape, strict=True)], axis=-1)


def end_to_end_coordinates(indices: Array, shape: Sequence[int]) -> jax.Array:
  """Returns the coordinates of the same cells as inputs have them: from -1 to 1, both included (2107.14795, app. G).

  Arguments and shapes as in `cell_coordinates`; [..., d] float32, in [-1, 1].
  """
  cells = jnp.unravel_index(jnp.asarray(indices), tuple(shape))
  return jnp.stack([axis[cell] for cell, axis in zip(cells, grid_coordinates(shape), strict=True)], axis=-1)


def fourier_query(coordinates: Array, num_bands: int, max_resolution: Sequence[int], batch_size: int) -> jax.Array:
  """Asks for points by the Fourier features of where they are.

  Args:
    coordinates: [O, d], the same for every example, or [B, O, d]; in [-1, 1].
    num_bands: K.
    max_resolution: of each axis, see core's `fourier_features`.
    batch_size: B.

  Returns:
    [B, O, d * (2 K + 1)].
  """
  chex.assert_rank(coordinates, {2, 3})
  if coordinates.ndim == 3:
    chex.assert_axis_dimension(coordinates, 0, batch_size)
  query = fourier_features(coordinates, num_bands, max_resolution)
  return jnp.broadcast_to(query, (batch_size, *query.shape[-2:]))


def padded_query(query: Array, num_channels: int, name: str) -> jax.Array:
  """Makes a query, or an input element, as wide as those of other modalities; what is added says which this one is.

  Args:
    query: [B, O, Q].
    num_channels: at least Q.
    name: of the trained vector, [1, num_channels - Q], that every element gets; there is none where nothing is missing.

  Returns:
    [B, O, num_channels], in the wider of the two dtypes.

  Raises:
    UserError: too wide already.
  """
  chex.assert_rank(query, 3)
  if query.shape[-1] > num_channels:
    raise UserError(f'{name}: {list(query.shape)} cannot be padded to {num_channels} channels')
  num_missing = num_channels - query.shape[-1]
  if not num_missing:
    return jnp.asarray(query)
  padding = jnp.broadcast_to(LearnedTable(1, num_missing, name=name)(), (*query.shape[:2], num_missing))
  return jnp.concatenate([query, padding], axis=-1)


def grid_query(
  shape: Sequence[int], num_bands: int, max_resolution: Sequence[int], num_channels: int, batch_size: int, name: str,
) -> InputArray:
  """Returns `padded_query(fourier_query(...))` for all cells of a grid, without materialising it.

  Args:
    shape: d axes, cells along each; O cells in all, row-major.
    num_bands: K.
    max_resolution: of each axis, see core's `fourier_features`.
    num_channels: more than d * (2 K + 1).
    batch_size: B.
    name: of the trained vector that every element gets.
  """
  coordinates = [cell_coordinates(jnp.arange(n), (n,))[:, 0] for n in shape]
  positions = fourier_grid(shape, num_bands, max_resolution, coordinates=coordinates)
  padding = LearnedTable(1, num_channels - len(shape) * (2 * num_bands + 1), name=name)()
  return InputArray(jnp.zeros((batch_size, math.prod(shape), 0)), positions, padding=padding[0])


def task_queries(names: Sequence[str], num_channels: int, batch_size: int) -> jax.Array:
  """Returns [B, O, Q], one trained query per task, in the order of `names`; parameters `{name}_query:table`, [1, Q].

  Named, not numbered, so that a trained model may be given other tasks and keep those that it knows. Raises UserError
  if there is no name, or one comes twice, or could not be an identifier.
  """
  if not names or len(set(names)) < len(names) or not all(name.isidentifier() for name in names):
    raise UserError(f'tasks need different names, of letters, digits and underscores, not {list(names)}')
  queries = [learned_query(1, num_channels, batch_size, name=f'{name}_query') for name in names]
  return jnp.concatenate(queries, axis=1)
