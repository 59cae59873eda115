"""The Perceiver (2103.03206) and Perceiver IO (2107.14795): inputs -> latents -> outputs.

Shapes: B batch, M inputs, N latents, D latent channels, O queries, E output channels, T cross-attends.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import haiku as hk
import jax
import jax.numpy as jnp

from perceiver_jax.core.attention import SelfAttend
from perceiver_jax.core.cross_attend import CrossAttend
from perceiver_jax.core.factored.decoder import FactoredCrossAttend, Linear, is_factored
from perceiver_jax.core.factored.encoder import Parameters, check_word
from perceiver_jax.core.input_array import InputArray, Pack, check_query, dense, size
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
    """Returns the initial latents, [B, N, D], the same for every example."""
    latents = hk.get_parameter('latents', self.latents_shape, init=hk.initializers.TruncatedNormal(0.02))
    return jnp.broadcast_to(latents, (batch_size, *self.latents_shape))

  def __call__(
    self, latents: jax.Array, inputs: InputArray | Pack, t: int, *, is_training: bool, capture: bool = False,
  ) -> tuple[jax.Array, jax.Array | None]:
    """The cross-attend number `t`: latents [B, N, D] -> [B, N, D] and, if captured, the weights [B, H, N, M]."""
    index = min(t, 1) if self.share_cross_attends else t
    cross_attend = CrossAttend(**self.cross_attend, name=f'cross_attend_{index}')
    return cross_attend(latents, inputs, is_training=is_training, capture=capture)


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

  def __call__(
    self, latents: jax.Array, block: int, *, is_training: bool, remat: str = 'none', capture: bool = False,
  ) -> tuple[jax.Array, jax.Array | None]:
    """Block number `block`: latents [B, N, D] -> [B, N, D] and, if captured, the weights [layers, B, H, N, N].

    `remat` is that of `encode`.
    """
    first = 0 if self.share_blocks else block * self.num_self_attends_per_block
    maps = []
    for index in range(first, first + self.num_self_attends_per_block):
      self_attend = SelfAttend(**self.self_attend, name=f'self_attend_{index}')
      layer = _rematerialised(functools.partial(self_attend, is_training=is_training, capture=capture), remat)
      latents, weights = layer(latents)
      maps.append(weights)
    return latents, jnp.stack([weights for weights in maps if weights is not None]) if capture else None


def encode(
  encoder: Encoder,
  processor: Processor,
  inputs: InputArray | Pack,
  *,
  is_training: bool,
  arrangement: str = 'interleaved',
  remat: str = 'none',
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
    remat: the rematerialisation policy. 'none' keeps everything; 'dots' keeps of each layer of the latent Transformer
      its matrix products with weights alone; 'layers' recomputes whole layers and cross-attends. Gradients are the
      same, memory is less and less.
    capture: also return what each attention looked at.

  Returns:
    Latents [B, N, D]; and {}, or if captured {'cross_attends': [T, B, H, N, M], 'latents': [B, N, D],
    'self_attends': [num_blocks, layers, B, H, N, N]}.
  """
  num_blocks_after = _arrange(encoder.num_cross_attends, processor.num_blocks, arrangement)

  def stage(latents: jax.Array, t: int) -> tuple[jax.Array, Captured]:
    read = functools.partial(encoder, inputs=inputs, t=t, is_training=is_training, capture=capture)
    latents, weights = (_rematerialised(read, remat) if remat == 'layers' else read)(latents)
    first = sum(num_blocks_after[:t])
    blocks = range(first, first + num_blocks_after[t])
    latents, captured = _repeat(block, latents, blocks, same=processor.share_blocks)
    return latents, {} if weights is None else {'cross_attends': weights[None], **captured}

  def block(latents: jax.Array, index: int) -> tuple[jax.Array, Captured]:
    latents, weights = processor(latents, index, is_training=is_training, remat=remat, capture=capture)
    return latents, {} if weights is None else {'self_attends': weights[None]}

  latents, first = stage(encoder.latents(size(inputs)[0]), 0)
  same = encoder.share_cross_attends and processor.share_blocks and len(set(num_blocks_after[1:])) == 1
  latents, others = _repeat(stage, latents, range(1, encoder.num_cross_attends), same=same)
  return latents, {**_join([first, others]), 'latents': latents} if capture else {}


def _arrange(num_cross_attends: int, num_blocks: int, arrangement: str) -> list[int]:
  """Returns how many blocks follow each cross-attend."""
  if arrangement == 'start':
    return [0] * (num_cross_attends - 1) + [num_blocks]
  if arrangement != 'interleaved':
    raise ValueError(f"cross-attends are 'interleaved' or at the 'start', not {arrangement!r}")
  if num_blocks % num_cross_attends:
    raise UserError(f'{num_cross_attends} interleaved cross-attends do not divide {num_blocks} blocks')
  return [num_blocks // num_cross_attends] * num_cross_attends


def _rematerialised(
  layer: Callable[[jax.Array], tuple[jax.Array, jax.Array | None]], remat: str,
) -> Callable[[jax.Array], tuple[jax.Array, jax.Array | None]]:
  if remat == 'none':
    return layer
  if remat == 'dots':
    # Without those of attention, which alone have a batch axis: its logits are as many as N * N for each head.
    return hk.remat(layer, policy=jax.checkpoint_policies.dots_with_no_batch_dims_saveable)
  if remat == 'layers':
    return hk.remat(layer)
  raise ValueError(f"remat is 'none', 'dots' or 'layers', not {remat!r}")


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
    attention_impl: str = 'auto',
    name: str = 'decoder',
    **cross_attend: Any,
  ):
    """output_channels: E; None leaves out `output`, so that E = Q. output_init: of its weights; None is Haiku's own.

    attention: 'dense', 'factored', 'chunked' or 'auto', all with the same result and parameters: see `is_factored`.
    cross_attend: other arguments of `CrossAttend`.
    """
    super().__init__(name=name)
    self.output_channels = output_channels
    self.output_init = output_init
    self.attention_impl = attention_impl
    self.cross_attend = dict(query_residual=query_residual, **cross_attend)

  def __call__(
    self,
    query: jax.Array | InputArray,
    latents: jax.Array,
    *,
    is_training: bool,
    query_mask: jax.Array | None = None,
    linear: Linear | None = None,
    capture: bool = False,
  ) -> tuple[jax.Array, jax.Array | None]:
    """The answers [B, O, E] and, if captured, the attention weights [B, H, O, N].

    Args:
      query: [B, O, Q]; or O elements, which on a whole grid are neither joined nor held, where `attention` allows. What
        does not count as an input asks all the same: its `valid` is for the encoder.
      latents: [B, N, D].
      is_training: turns dropout on.
      query_mask: [B, O], see `CrossAttend`.
      linear: weights [E, E'] and bias [E'] of one behind `output`; the answers are then [B, O, E'].
      capture: also return the weights; this, and dropout, take the dense path.

    Raises:
      UserError: shapes that do not fit, or 'factored' of positions that are no whole grid.
    """
    check_word(self.attention_impl)
    shape = size(query) if isinstance(query, InputArray) else query.shape
    check_query(shape, InputArray(latents), query_mask)
    if isinstance(query, InputArray) and self._is_factored(query, latents, is_training, capture):
      if not hk.running_init():
        return self._factored(query, latents, query_mask, linear), None
      # Parameters are all that counts: one query is enough to make them.
      query, query_mask = jnp.zeros((shape[0], 1, shape[2]), jax.eval_shape(dense, query).dtype), None
    if isinstance(query, InputArray):
      query = jnp.asarray(dense(query))
    # The latents have no factors, and are fewer than most queries.
    attention_impl = 'chunked' if self.attention_impl == 'chunked' else 'dense'
    cross_attend = CrossAttend(**self.cross_attend, attention_impl=attention_impl)
    answers, weights = cross_attend(
      query, InputArray(latents), query_mask=query_mask, is_training=is_training, capture=capture)
    if self.output_channels is not None:
      answers = hk.Linear(self.output_channels, w_init=self.output_init, name='output')(answers)
    answers = answers if linear is None else jnp.dot(answers, linear[0]) + linear[1]
    return jnp.broadcast_to(answers, (shape[0], shape[1], answers.shape[2])), weights

  @hk.transparent
  def _is_factored(self, query: InputArray, latents: jax.Array, is_training: bool, capture: bool) -> bool:
    settings = self.cross_attend
    is_dropped = is_training and (settings.get('dropout_prob') or settings.get('attention_dropout_prob'))
    qk_channels = settings.get('qk_channels') or latents.shape[-1]
    is_possible = is_factored(self.attention_impl, query, latents.shape[1], settings.get('num_heads', 1), qk_channels)
    if is_dropped and self.attention_impl == 'factored':
      warnings.warn(
        f'{self.module_name}: attention_impl=factored drops nothing, so training takes the dense path', stacklevel=3)
    return is_possible and not (is_dropped or capture)

  @hk.transparent
  def _factored(
    self, query: InputArray, latents: jax.Array, query_mask: jax.Array | None, linear: Linear | None,
  ) -> jax.Array:
    *_, num_channels = size(query)
    linears = [] if linear is None else [linear]
    if self.output_channels is not None:
      weights, bias = Parameters('output')(w=(num_channels, self.output_channels), b=(self.output_channels,))
      linears = [(weights, bias), *linears]
    return FactoredCrossAttend(**self.cross_attend)(query, latents, linears, query_mask)


def learned_query(num_queries: int, num_channels: int, batch_size: int, name: str = 'query') -> jax.Array:
  """Returns trained queries [B, O, Q], the same for every example (2107.14795, section 3.2)."""
  table = LearnedTable(num_queries, num_channels, name=name)()
  return jnp.broadcast_to(table, (batch_size, num_queries, num_channels))


def pool(latents: jax.Array, output_channels: int, name: str = 'output') -> jax.Array:
  """Maps latents [B, N, D] to [B, E]: their mean, then a linear that starts at zero (2103.03206, section 3.1)."""
  return hk.Linear(output_channels, w_init=jnp.zeros, name=name)(jnp.mean(latents, axis=1))
