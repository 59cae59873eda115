"""From answers on a coarse grid to pixels: patches, transposed convolutions, or a convex mix of neighbours.

Sources: 2107.14795, appendices A, H and I. Shapes: B batch, T frames, H height, W width, C channels, t frames of a
block, s rows and columns of a block; h = H / s, w = W / s.
"""

from __future__ import annotations

import chex
import haiku as hk
import jax
import jax.numpy as jnp

from perceiver_jax.types import Array, UserError


def depth_to_space(x: Array, patch_size: int, num_frames: int = 1) -> Array:
  """Undoes `space_to_depth`: channels back to pixels.

  Args:
    x: [B, h, w, s * s * C], channels row, column, colour; or [B, T / t, h, w, t * s * s * C], frame first.
    patch_size: s.
    num_frames: t.

  Returns:
    [B, H, W, C], or with frames [B, T, H, W, C].

  Raises:
    UserError: channels that do not make whole patches.
  """
  block_size = num_frames * patch_size**2
  chex.assert_rank(x, {4, 5} if num_frames == 1 else 5)
  if x.shape[-1] % block_size:
    raise UserError(f'{list(x.shape)} does not hold patches of {num_frames} x {patch_size} x {patch_size}')
  grid = x if x.ndim == 5 else x[:, None]
  batch_size, length, height, width, num_channels = grid.shape
  blocks = grid.reshape(
    batch_size, length, height, width, num_frames, patch_size, patch_size, num_channels // block_size)
  frames = blocks.transpose(0, 1, 4, 2, 5, 3, 6, 7).reshape(
    batch_size, length * num_frames, height * patch_size, width * patch_size, -1)
  return frames if x.ndim == 5 else frames[:, 0]


class ConvUpsample(hk.Module):
  """Transposed convolutions, each of which doubles the resolution, with ReLU between (the authors' code).

  A kernel spans 4 cells along every axis; the last layer has `num_channels` channels, each before it twice as many.
  """

  def __init__(self, num_channels: int, factor: int = 4, time_factor: int = 1, name: str = 'upsample'):
    """factor: H / h, a power of 2. time_factor: the same of frames; an axis stops doubling when it is there."""
    super().__init__(name=name)
    for each in (factor, time_factor):
      if each < 1 or each & (each - 1):
        raise UserError(f'{self.module_name}: convolutions upsample by powers of 2, not {each}')
    self.num_channels = num_channels
    self.num_doublings = factor.bit_length() - 1
    self.num_time_doublings = time_factor.bit_length() - 1

  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps [B, h, w, C] to [B, H, W, num_channels], with frames [B, T / t, h, w, C] to [B, T, H, W, num_channels]."""
    chex.assert_rank(x, 5 if self.num_time_doublings else {4, 5})
    num_layers = max(self.num_doublings, self.num_time_doublings)
    for layer in range(num_layers):
      stride = 2 if layer < self.num_doublings else 1
      time_stride = 2 if layer < self.num_time_doublings else 1
      strides = (stride, stride) if x.ndim == 4 else (time_stride, stride, stride)
      num_channels = self.num_channels * 2**(num_layers - 1 - layer)
      x = jax.nn.relu(x) if layer else x
      x = hk.ConvNDTranspose(x.ndim - 2, num_channels, 4, strides, name=f'conv_{layer}')(x)
    return x


def convex_upsample(coarse: Array, logits: Array, factor: int) -> jax.Array:
  """Fine flow, each pixel of it a weighted mean of the 3 x 3 coarse cells around its own (2003.12039, section 3.3).

  Args:
    coarse: [B, h, w, C], displacements in coarse cells; outside the frame they count as 0.
    logits: [B, h, w, s * s * 9], of the weights: row and column in the cell, then neighbour, row-major.
    factor: s.

  Returns:
    [B, H, W, C], displacements in fine pixels (s times the coarse ones), float32 or wider.
  """
  chex.assert_rank(coarse, 4)
  chex.assert_shape(logits, (*coarse.shape[:3], 9 * factor**2))
  batch_size, height, width, num_channels = coarse.shape
  precise = jnp.promote_types(logits.dtype, jnp.float32)
  weights = jax.nn.softmax(jnp.asarray(logits, precise).reshape(batch_size, height, width, factor, factor, 9))
  padded = jnp.pad(coarse, ((0, 0), (1, 1), (1, 1), (0, 0)))
  neighbours = jnp.stack([padded[:, i:i + height, j:j + width] for i in range(3) for j in range(3)], axis=3)
  fine = factor * jnp.einsum('bhwijn,bhwnc->bhiwjc', weights, neighbours)
  return fine.reshape(batch_size, height * factor, width * factor, num_channels)


def raft_flow(features: jax.Array, factor: int) -> jax.Array:
  """Fine flow of the decoder's answers on a coarse grid (2107.14795, appendix H).

  The paper says that a linear makes the coarse flow, and that it is upsampled as in RAFT, but not what the weights are
  made of: that they come of the same answers, by a 3 x 3 convolution, ReLU and a linear, is ours.

  Args:
    features: [B, h, w, C].
    factor: s.

  Returns:
    [B, H, W, 2], displacements in fine pixels, float32 or wider.
  """
  chex.assert_rank(features, 4)
  coarse = hk.Linear(2, name='coarse_flow')(features)
  hidden = jax.nn.relu(hk.Conv2D(features.shape[-1], 3, name='upsample_hidden')(features))
  return convex_upsample(coarse, hk.Linear(9 * factor**2, name='upsample_weights')(hidden), factor)
