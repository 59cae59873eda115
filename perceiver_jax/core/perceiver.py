"""The Perceiver (2103.03206) and Perceiver IO (2107.14795): inputs -> latents -> outputs.

Shapes: B batch, M inputs, N latents, D latent channels, O queries, E output channels, T cross-attends.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import haiku as hk
import jax
import jax.numpy as jnp

from perceiver_jax.core.attention import CrossAttend, SelfAttend
from perceiver_jax.core.input_array import InputArray
from perceiver_jax.core.position_encoding import LearnedTable
from perceiver_jax.types import UserError

Captured: TypeAlias = dict[str, jax.Array]


class Encoder(hk.Module):
  """The learned latents, and the cross-attends by which they read the inputs.

  `num_cross_attends` is 1 in Perceiver IO and 8 in the original on ImageNet. With `share_cross_attends` those after the
  first have one set of parameters; the first always has its own (2103.03206, section 3.1: sharing it was unstable).
  """

  def __init__(
    self,
    num_latents: int,
    latent_channels: int,
    num_cross_attends: int = 1,
    share_cross_attends: bool = True,
    name: str = 'encoder',
    **cross_attend: Any,
  ):
    """cross_attend: arguments of `CrossAttend`."""
    super().__init__(name=name)
    self.latents_shape = (num_latents, latent_channels)
    self.num_cross_attends = num_cross_attends
    self.share_cross_attends = share_cross_attends
    self.cross_attend = cross_attend

  def latents(self, batch_size: int) -> jax.Array:
    """[B, N, D]: the latents before they have read anything, the same for every example."""
    latents = hk.get_parameter('latents', self.latents_shape, init=hk.initializers.TruncatedNormal(0.02))
    return jnp.broadcast_to(latents, (batch_size, *self.latents_shape))

  def __call__(
    self, latents: jax.Array, inputs: InputArray, t: int, *, is_training: bool,
  ) -> tuple[jax.Array, jax.Array]:
    """The cross-attend number `t`: latents [B, N, D] -> [B, N, D] and the attention weights [B, H, N, M]."""
    index = min(t, 1) if self.share_cross_attends else t
    return CrossAttend(**self.cross_attend, name=f'cross_attend_{index}')(latents, inputs, is_training=is_training)


class Processor(hk.Module):
  """The latent Transformer: `num_blocks` blocks of `num_self_attends_per_block` layers.

  With `share_blocks` all blocks are one block.
  """

  def __init__(
    self,
    num_blocks: int,
    num_self_attends_per_block: int,
    share_blocks: bool = True,
    name: str = 'processor',
    **self_attend: Any,
  ):
    """self_attend: arguments of `SelfAttend`."""
    super().__init__(name=name)
    self.num_blocks = num_blocks
    self.num_self_attends_per_block = num_self_attends_per_block
    self.share_blocks = share_blocks
    self.self_attend = self_attend

  def __call__(self, latents: jax.Array, block: int, *, is_training: bool) -> tuple[jax.Array, jax.Array]:
    """Block number `block`: latents [B, N, D] -> [B, N, D] and the attention weights [layers, B, H, N, N]."""
    first = 0 if self.share_blocks else block * self.num_self_attends_per_block
    maps = []
    for index in range(first, first + self.num_self_attends_per_block):
      latents, weights = SelfAttend(**self.self_attend, name=f'self_attend_{index}')(latents, is_training=is_training)
      maps.append(weights)
    return latents, jnp.stack(maps)


def encode(
  encoder: Encoder,
  processor: Processor,
  inputs: InputArray,
  *,
  is_training: bool,
  arrangement: str = 'interleaved',
  capture: bool = False,
) -> tuple[jax.Array, Captured]:
  """Reads the inputs into latents and processes them, in the order of the first paper's figure 1 or of its table 6.

  Args:
    encoder: T cross-attends.
    processor: its blocks are spread evenly, each cross-attend followed by its share ('interleaved'), or all come after
      the last cross-attend ('start').
    inputs: M elements.
    is_training: turns dropout on.
    arrangement: 'interleaved' or 'start'; the same where T is 1.
    capture: also return what each attention looked at.

  Returns:
    Latents [B, N, D]; and {}, or if captured {'cross_attends': [T, B, H, N, M], 'latents': [B, N, D],
    'self_attends': [num_blocks, layers, B, H, N, N]}.
  """
  num_blocks_after = _arrange(encoder.num_cross_attends, processor.num_blocks, arrangement)

  def stage(latents: jax.Array, t: int) -> tuple[jax.Array, Captured]:
    latents, weights = encoder(latents, inputs, t, is_training=is_training)
    first = sum(num_blocks_after[:t])
    blocks = range(first, first + num_blocks_after[t])
    latents, captured = _repeat(block, latents, blocks, same=processor.share_blocks)
    return latents, {'cross_attends': weights[None], **captured} if capture else {}

  def block(latents: jax.Array, index: int) -> tuple[jax.Array, Captured]:
    latents, weights = processor(latents, index, is_training=is_training)
    return latents, {'self_attends': weights[None]} if capture else {}

  latents, first = stage(encoder.latents(inputs.features.shape[0]), 0)
  same = encoder.share_cross_attends and processor.share_blocks and len(set(num_blocks_after[1:])) == 1
  latents, others = _repeat(stage, latents, range(1, encoder.num_cross_attends), same=same)
  return latents, {**_join([first, others]), 'latents': latents} if capture else {}


def _arrange(num_cross_attends: int, num_blocks: int, arrangement: str) -> list[int]:
  """How many blocks follow each cross-attend."""
  if arrangement == 'start':
    return [0] * (num_cross_attends - 1) + [num_blocks]
  if arrangement != 'interleaved':
    raise UserError(f"cross-attends are 'interleaved' or at the 'start', not {arrangement!r}")
  if num_blocks % num_cross_attends:
    raise UserError(f'{num_cross_attends} interleaved cross-attends do not divide {num_blocks} blocks')
  return [num_blocks // num_cross_attends] * num_cross_attends


def _repeat(
  body: Callable[[jax.Array, int], tuple[jax.Array, Captured]],
  latents: jax.Array,
  indices: Sequence[int],
  *,
  same: bool,
) -> tuple[jax.Array, Captured]:
  """Applies `body(latents, index)` for each index, compiled once where all are the `same`; joins their captures."""
  if same and len(indices) > 1:
    latents, stacked = hk.scan(lambda carry, _: body(carry, indices[0]), latents, None, length=len(indices))
    return latents, jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), stacked)
  captured = []
  for index in indices:
    latents, maps = body(latents, index)
    captured.append(maps)
  return latents, _join(captured)


def _join(captured: Sequence[Captured]) -> Captured:
  names = dict.fromkeys(name for maps in captured for name in maps)
  return {name: jnp.concatenate([maps[name] for maps in captured if name in maps]) for name in names}


class Decoder(hk.Module):
  """Answers queries from the latents: one cross-attend, then a linear `output` (2107.14795, section 3.2)."""

  def __init__(
    self,
    output_channels: int | None,
    query_residual: bool = False,
    output_init: hk.initializers.Initializer | None = None,
    name: str = 'decoder',
    **cross_attend: Any,
  ):
    """output_channels: E; None leaves out `output`, so that E = Q. output_init: of its weights; None is Haiku's own.

    cross_attend: arguments of `CrossAttend`.
    """
    super().__init__(name=name)
    self.output_channels = output_channels
    self.output_init = output_init
    self.cross_attend = dict(query_residual=query_residual, **cross_attend)

  def __call__(
    self,
    query: jax.Array,
    latents: jax.Array,
    *,
    is_training: bool,
    query_mask: jax.Array | None = None,
  ) -> tuple[jax.Array, jax.Array]:
    """query [B, O, Q], latents [B, N, D], query_mask [B, O] -> [B, O, E] and the attention weights [B, H, O, N]."""
    cross_attend = CrossAttend(**self.cross_attend)
    answers, weights = cross_attend(query, InputArray(latents), query_mask=query_mask, is_training=is_training)
    if self.output_channels is None:
      return answers, weights
    return hk.Linear(self.output_channels, w_init=self.output_init, name='output')(answers), weights


def learned_query(num_queries: int, num_channels: int, batch_size: int, name: str = 'query') -> jax.Array:
  """[B, O, Q]: trained queries, the same for every example (2107.14795, section 3.2)."""
  table = LearnedTable(num_queries, num_channels, name=name)()
  return jnp.broadcast_to(table, (batch_size, num_queries, num_channels))


def pool(latents: jax.Array, output_channels: int, name: str = 'output') -> jax.Array:
  """[B, N, D] -> [B, E]: the mean over latents, then a linear that starts at zero (2103.03206, section 3.1)."""
  return hk.Linear(output_channels, w_init=jnp.zeros, name=name)(jnp.mean(latents, axis=1))
