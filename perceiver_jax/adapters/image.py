"""Images in: pixels, patches or convolved features, and where they sit (2107.14795, appendix A; 2103.03206, 4.1).

Shapes: B batch, T frames, H height, W width, C channels, M = h * w elements after the stem.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import chex
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np

from perceiver_jax.core.input_array import InputArray
from perceiver_jax.core.position_encoding import LearnedTable, Positions, fourier_grid
from perceiver_jax.types import Array, UserError

if TYPE_CHECKING:
  from ml_collections import ConfigDict

# Of ImageNet's training images, per channel, in 0..1 (the authors' input pipeline).
IMAGENET_MEAN = np.array([0.485, 0.456, 0.406], np.float32)
IMAGENET_STD = np.array([0.229, 0.224, 0.225], np.float32)


def image_inputs(
  image: Array,
  stem: ConfigDict,
  position: ConfigDict,
  *,
  is_training: bool,
  order: Array | None = None,
  valid: Array | None = None,
) -> InputArray:
  """An image as input elements, in row-major order of the grid that the stem leaves.

  Args:
    image: [B, H, W, C] uint8, or float, normalised already.
    stem: config.model.stem: `kind`, what that kind needs, and how uint8 is normalised.
    position: config.model.position: `kind`, and what that kind needs.
    is_training: whether BatchNorm uses the batch's statistics.
    order: [M] int: the grid cell that the element in place m comes from, for an image whose pixels were moved and
      shall keep their coordinates; None where every pixel is at home.
    valid: [B, M], non-zero = an element that counts.

  Returns:
    M elements, features [B, M, F].

  Raises:
    UserError: a size that the stem cannot divide.
  """
  chex.assert_rank(image, 4)
  features = _stem(jnp.asarray(normalised(image, stem.normalisation)), stem, is_training)
  batch_size, height, width, num_channels = features.shape
  features = features.reshape(batch_size, height * width, num_channels)
  return InputArray(features, _positions((height, width), position, order), valid)


def normalised(image: Array, kind: str) -> Array:
  """float32 of a uint8 image [..., C]; a float one comes back as it is.

  `kind` is 'symmetric', to [-1, 1]; or 'imagenet', minus the mean and by the deviation of ImageNet's channels.
  """
  if not jnp.issubdtype(image.dtype, jnp.integer):
    return image
  if kind == 'symmetric':
    return image / 127.5 - 1.0
  if kind == 'imagenet':
    return (image - 255 * IMAGENET_MEAN) / (255 * IMAGENET_STD)
  raise ValueError(f"stem.normalisation is 'symmetric' or 'imagenet', not {kind!r}")


def _stem(image: jax.Array, stem: ConfigDict, is_training: bool) -> Array:
  if stem.kind == 'pixels':
    return image
  if stem.kind == 'patches':
    return space_to_depth(image, stem.patch_size)
  if stem.kind == 'conv1x1':
    return hk.Conv2D(stem.channels, 1, name='stem')(as_parameters(image))
  if stem.kind == 'conv':
    return ConvStem(stem.channels, stem.padding)(as_parameters(image), is_training=is_training)
  raise ValueError(f"model.stem.kind is 'pixels', 'patches', 'conv1x1' or 'conv', not {stem.kind!r}")


def as_parameters(image: Array) -> jax.Array:
  """The image in the dtype of the model's parameters: a convolution takes no other. They are float32 when made."""
  dtypes = [x.dtype for x in jax.tree.leaves(hk.get_params())]
  return jnp.asarray(image, dtypes[0] if dtypes else jnp.float32)


class ConvStem(hk.Module):
  """7 x 7 convolution, BatchNorm, ReLU, max-pool: a quarter of the resolution (2107.14795, appendix A.1).

  BatchNorm's statistics are those of one device's examples, as in the authors' code.
  """

  def __init__(self, num_channels: int, padding: str = 'same', name: str = 'stem'):
    """padding: 'same', as in the authors' code; or 'symmetric', as in Hugging Face's: 3 pixels on every side for the
    convolution and none for the max-pool, which moves what an output sees, and leaves 55 of 56 rows.
    """
    super().__init__(name=name)
    if padding not in ('same', 'symmetric'):
      raise ValueError(f"stem.padding is 'same' or 'symmetric', not {padding!r}")
    self.num_channels = num_channels
    self.is_symmetric = padding == 'symmetric'

  def __call__(self, image: jax.Array, *, is_training: bool) -> jax.Array:
    """Maps [B, H, W, C] to [B, H / 4, W / 4, num_channels], rounded up; 'symmetric' to (ceil(H / 2) - 1) / 2, down."""
    around = [(3, 3), (3, 3)] if self.is_symmetric else 'SAME'
    x = hk.Conv2D(self.num_channels, 7, stride=2, padding=around, with_bias=False, name='conv')(image)
    x = hk.BatchNorm(create_scale=True, create_offset=True, decay_rate=0.9, name='norm')(x, is_training)
    return hk.max_pool(jax.nn.relu(x), (3, 3, 1), (2, 2, 1), 'VALID' if self.is_symmetric else 'SAME')


def space_to_depth(x: Array, patch_size: int, num_frames: int = 1) -> Array:
  """Patches as channels.

  Args:
    x: [B, H, W, C], or with frames [B, T, H, W, C].
    patch_size: s, rows and columns of a patch.
    num_frames: t, frames of a patch.

  Returns:
    [B, H / s, W / s, s * s * C], channels row, column, colour; or [B, T / t, H / s, W / s, t * s * s * C], frame first.

  Raises:
    UserError: a size that does not divide.
  """
  frames = x if x.ndim == 5 else x[:, None]
  batch_size, length, height, width, num_channels = frames.shape
  if length % num_frames or height % patch_size or width % patch_size:
    raise UserError(f'patches of {num_frames} x {patch_size} x {patch_size} do not divide {list(x.shape)}')
  grid = length // num_frames, height // patch_size, width // patch_size
  blocks = frames.reshape(
    batch_size, grid[0], num_frames, grid[1], patch_size, grid[2], patch_size, num_channels)
  patches = blocks.transpose(0, 1, 3, 5, 2, 4, 6, 7).reshape(
    batch_size, *grid, num_frames * patch_size**2 * num_channels)
  return patches if x.ndim == 5 else patches[:, 0]


def _positions(shape: tuple[int, int], position: ConfigDict, order: Array | None) -> Positions:
  if position.kind == 'fourier':
    return fourier_grid(shape, position.num_bands, position.max_resolution, position.spacing, order)
  if position.kind == 'learned':
    table = LearnedTable(shape[0] * shape[1], position.channels, position.init_scale)()
    if position.projection_channels:
      table = hk.Linear(position.projection_channels, name='positions_projection')(table)
    return table if order is None else table[order]
  raise UserError(f"model.position.kind is 'fourier' or 'learned', not {position.kind!r}")
