"""Two frames in, for optical flow: every pixel with its neighbourhood (2107.14795, appendix H).

Shapes: B batch, H height, W width, C colours, P = patch_size ** 2 * C values of a patch.
"""

from __future__ import annotations

from collections.abc import Sequence

import chex
import haiku as hk
import jax.numpy as jnp

from perceiver_jax.core.input_array import InputArray
from perceiver_jax.core.position_encoding import FourierGrid, fourier_grid
from perceiver_jax.types import Array


def frame_patches(frames: Array, patch_size: int = 3) -> Array:
  """Returns the square around every pixel, [B, 2, H, W, P] of frames [B, 2, H, W, C], with zeros outside the frame."""
  chex.assert_shape(frames, (None, 2, None, None, None))
  height, width = frames.shape[2:4]
  border = patch_size // 2
  padded = jnp.pad(frames, ((0, 0), (0, 0), (border, border), (border, border), (0, 0)))
  shifted = [
    padded[:, :, row:row + height, column:column + width]
    for row in range(patch_size) for column in range(patch_size)
  ]
  return jnp.concatenate(shifted, axis=-1)


def flow_inputs(
  patches: Array, num_channels: int, num_bands: int, max_resolution: Sequence[int], *, separate_frames: bool = False,
) -> InputArray:
  """Patches, through a trained linear, with their Fourier positions.

  Args:
    patches: [B, 2, H, W, P].
    num_channels: of an element's features.
    num_bands: of a position, per axis.
    max_resolution: (height, width) whose Nyquist frequencies are the highest bands. Not the frame's own size: a model
      must see the same bands at any.
    separate_frames: an element is a pixel of one frame, at its time, row and column; else of both, at row and column.

  Returns:
    H * W elements, or 2 * H * W, those of the first frame first; features [B, M, num_channels].
  """
  patches = jnp.asarray(patches)
  batch_size, num_frames, height, width, _ = patches.shape
  if separate_frames:
    features = patches.reshape(batch_size, num_frames * height * width, -1)
    positions = fourier_grid((num_frames, height, width), num_bands, (num_frames, *max_resolution))
  else:
    features = patches.transpose(0, 2, 3, 1, 4).reshape(batch_size, height * width, -1)
    positions = fourier_grid((height, width), num_bands, max_resolution)
  return InputArray(hk.Linear(num_channels, name='stem')(features), positions)


def flow_query(inputs: InputArray, num_pixels: int) -> InputArray:
  """Returns the input element of every pixel of the first frame, features and position: it asks for its flow.

  Whether the element counts as an input does not matter. `inputs` are those of `flow_inputs`.
  """
  features, positions = inputs.features, inputs.positions
  if features.shape[1] > num_pixels and isinstance(positions, FourierGrid):
    (first, *coordinates), (sines, *other_sines), (cosines, *other_cosines) = positions[:3]
    positions = FourierGrid(
      (first[:1], *coordinates), (sines[:1], *other_sines), (cosines[:1], *other_cosines), positions.order)
  return InputArray(features[:, :num_pixels], positions)
