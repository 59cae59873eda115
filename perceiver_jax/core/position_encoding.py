"""Positions: Fourier features of coordinates, kept as per-axis factors on a grid, and learned tables.

Shapes: M elements, d axes, K bands, P = d * (2 K + 1) channels of a Fourier encoding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import chex
import haiku as hk
import jax
import jax.numpy as jnp

from perceiver_jax.types import Array, UserError


class FourierGrid(NamedTuple):
  """Fourier features of a full grid, as one table per axis: n1 + n2 rows where the joined encoding has n1 * n2.

  Element m of the input array sits at grid cell `order[m]` (row-major), or at cell m where `order` is None.
  """

  coordinates: tuple[Array, ...]  # per axis [n], in [-1, 1]
  sines: tuple[Array, ...]        # per axis [n, K]
  cosines: tuple[Array, ...]      # per axis [n, K]
  order: Array | None = None      # [M] int


Positions: TypeAlias = 'FourierGrid | Array'  # or any encoding, [M, P] shared by the batch or [B, M, P]


def grid_coordinates(shape: Sequence[int]) -> tuple[jax.Array, ...]:
  """Per axis [n] float32, from -1 to 1, both included (2107.14795, appendix G). An axis of one cell sits at -1."""
  return tuple(jnp.linspace(-1.0, 1.0, n) for n in shape)


def frequencies(num_bands: int, max_resolution: int, spacing: str = 'linear') -> jax.Array:
  """Returns [K] frequencies from 1 (one period over [-1, 1]) to the Nyquist one, max_resolution / 2, both included.

  `spacing='linear'` is the published form (2103.03206 v2, section 3.2); `'log'` that of the first arXiv version.
  """
  if spacing == 'linear':
    return jnp.linspace(1.0, max_resolution / 2, num_bands)
  if spacing == 'log':
    return jnp.geomspace(1.0, max_resolution / 2, num_bands)
  raise ValueError(f"position spacing is 'linear' or 'log', not {spacing!r}")


def fourier_features(
  coordinates: Array,
  num_bands: int,
  max_resolution: Sequence[int],
  spacing: str = 'linear',
) -> jax.Array:
  """Fourier features of any coordinates (2103.03206, section 3.2).

  Args:
    coordinates: [..., d], in [-1, 1].
    num_bands: K.
    max_resolution: d sampling rates (cells per axis); the top frequency of an axis is half of its own.
    spacing: see `frequencies`.

  Returns:
    [..., d * (2 K + 1)]: the coordinates, then all sines (axis-major, band-minor), then all cosines.
  """
  _check_axes(coordinates.shape[-1], max_resolution)
  sines, cosines = zip(*(
    _waves(coordinates[..., axis], frequencies(num_bands, resolution, spacing))
    for axis, resolution in enumerate(max_resolution)
  ), strict=True)
  return jnp.concatenate([coordinates, *sines, *cosines], axis=-1)


def fourier_grid(
  shape: Sequence[int],
  num_bands: int,
  max_resolution: Sequence[int] | None = None,
  spacing: str = 'linear',
  order: Array | None = None,
  coordinates: Sequence[Array] | None = None,
) -> FourierGrid:
  """The factors of `fourier_features` on a full grid of `shape`; `max_resolution` defaults to `shape`.

  `coordinates`, per axis [n], say where cells sit, if not where `grid_coordinates` has them.
  """
  _check_axes(len(shape), max_resolution or shape)
  with jax.ensure_compile_time_eval():  # once, where a step is traced, and not in each step
    coordinates = tuple(coordinates or grid_coordinates(shape))
    chex.assert_shape(coordinates, [(n,) for n in shape])
    sines, cosines = zip(*(
      _waves(axis, frequencies(num_bands, resolution, spacing))
      for axis, resolution in zip(coordinates, max_resolution or shape, strict=True)
    ), strict=True)
  return FourierGrid(coordinates, sines, cosines, order)


def _check_axes(num_axes: int, max_resolution: Sequence[int]) -> None:
  if num_axes != len(max_resolution):
    raise UserError(f'positions have {num_axes} axes, but max_resolution '
                    f'{tuple(max_resolution)} has {len(max_resolution)}')


def _waves(coordinates: Array, bands: Array) -> tuple[jax.Array, jax.Array]:
  angles = jnp.pi * (coordinates[..., None] * bands)
  return jnp.sin(angles), jnp.cos(angles)


def joined(positions: Positions) -> Array:
  """The encoding as one array: [M, P] for a grid; any other encoding is one already."""
  if not isinstance(positions, FourierGrid):
    return positions
  shape = tuple(len(axis) for axis in positions.coordinates)
  raw = [_spread(axis[:, None], i, shape) for i, axis in enumerate(positions.coordinates)]
  sines = [_spread(axis, i, shape) for i, axis in enumerate(positions.sines)]
  cosines = [_spread(axis, i, shape) for i, axis in enumerate(positions.cosines)]
  table = jnp.concatenate([*raw, *sines, *cosines], axis=-1)
  table = table.reshape(-1, table.shape[-1])
  return table if positions.order is None else table[positions.order]


def _spread(table: Array, axis: int, shape: tuple[int, ...]) -> jax.Array:
  """Repeats the rows of one axis, [n, K], over the whole grid, [*shape, K]."""
  lifted = table.reshape(*(-1 if i == axis else 1 for i in range(len(shape))), table.shape[-1])
  return jnp.broadcast_to(lifted, (*shape, table.shape[-1]))


class LearnedTable(hk.Module):
  """A trained array, [num_rows, num_channels]: positions, or queries (2103.03206, appendix B; init 0.02)."""

  def __init__(self, num_rows: int, num_channels: int, init_scale: float = 0.02, name: str = 'positions'):
    super().__init__(name=name)
    self.shape = (num_rows, num_channels)
    self.init_scale = init_scale

  def __call__(self) -> jax.Array:
    return hk.get_parameter('table', self.shape, init=hk.initializers.TruncatedNormal(self.init_scale))
