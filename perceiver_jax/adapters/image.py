"""Images in: pixels and where they sit (2103.03206, section 4.1; 2107.14795, appendix A)."""

from __future__ import annotations

import jax.numpy as jnp
from ml_collections import ConfigDict

from perceiver_jax.core.input_array import InputArray
from perceiver_jax.core.position_encoding import LearnedTable, Positions, fourier_grid
from perceiver_jax.types import Array, UserError


def pixel_inputs(image: Array, position: ConfigDict, order: Array | None = None) -> InputArray:
  """Every pixel as one input element.

  Args:
    image: [B, H, W, C] uint8, or float already in [-1, 1].
    position: config.model.position: `kind`, and what that kind needs.
    order: [H * W] int: the grid cell that the pixel in place m comes from, for an image whose pixels were moved and
      shall keep their coordinates; None where every pixel is at home.

  Returns:
    H * W elements in row-major order, features [B, H * W, C] in [-1, 1].
  """
  if jnp.issubdtype(image.dtype, jnp.integer):
    image = image / 127.5 - 1.0
  batch_size, height, width, num_channels = image.shape
  features = image.reshape(batch_size, height * width, num_channels)
  return InputArray(features, _positions((height, width), position, order))


def _positions(shape: tuple[int, int], position: ConfigDict, order: Array | None) -> Positions:
  if position.kind == 'fourier':
    return fourier_grid(shape, position.num_bands, spacing=position.spacing, order=order)
  if position.kind == 'learned':
    table = LearnedTable(shape[0] * shape[1], position.channels)()
    return table if order is None else table[order]
  raise UserError(f"model.position.kind is 'fourier' or 'learned', not {position.kind!r}")
