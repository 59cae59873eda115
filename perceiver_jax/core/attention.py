"""Attention, and the layer of the latent Transformer (2107.14795, eqs 1-6; 2103.03206, appendix C).

Shapes: B batch, T queries, S keys, H heads, K channels of a query or key head, V channels of a value head, C channels.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

import haiku as hk
import jax
import jax.numpy as jnp

from perceiver_jax.core.chunks import in_chunks
from perceiver_jax.types import Array, UserError

MASKED = -1e30       # the logit of a key that may not be attended to
LARGE_HEAD = 2**16   # T * S from which, on a CPU, XLA multiplies heads faster one by one than all at once
MOST_LOGITS = 2**26  # in memory at once where nothing is differentiated; 256 MiB of float32


def attend(
  query: Array,
  key: Array,
  value: Array,
  *,
  valid: Array | None = None,
  query_mask: Array | None = None,
  dropout_prob: float = 0.0,
  masked_rows: str = 'zero',
  most_logits: int | None = None,
  capture: bool = False,
) -> tuple[jax.Array, jax.Array | None]:
  """Scaled dot-product attention (eq. 1). Logits and softmax are float32, or wider if the arguments are.

  Args:
    query: [B, T, H, K].
    key: [B, S, H, K].
    value: [B, S, H, V].
    valid: [B, S], non-zero = a key that may be attended to.
    query_mask: [B, T], non-zero = a query that may attend.
    dropout_prob: in [0, 1), dropout on the attention weights; needs a Haiku random key when above 0.
    masked_rows: what a query reads that may not attend, or has no valid key: 'zero', as in the authors' code; or
      'mean', as in Hugging Face's: query masks are ignored; with no valid key, attention is uniform.
    most_logits: how many of the B * H * T * S logits to hold at once: beyond it queries are answered in chunks, with
      the same result. None = all.
    capture: also return the weights.

  Returns:
    [B, T, H * V], and the weights [B, H, T, S], float32 or wider, or None; both exactly 0 in a row that is masked to
    'zero'.
  """
  if masked_rows not in ('zero', 'mean'):
    raise ValueError(f"masked_rows is 'zero' or 'mean', not {masked_rows!r}")
  if masked_rows == 'mean':
    query_mask = None
  elif valid is not None:
    value = jnp.where(valid[:, :, None, None] != 0, value, 0)  # 0 * NaN is not 0
  batch_size, num_queries, num_heads, _ = query.shape
  num_keys = key.shape[1]
  attending = may_attend(valid, query_mask) if masked_rows == 'zero' else None
  if attending is not None:
    attending = jnp.broadcast_to(attending, (batch_size, num_queries))
  capability = getattr(jax.devices()[0], 'compute_capability', '')
  is_fused = not capture and not dropout_prob and suits_cudnn(capability, query, key, value, valid)
  num_parts = num_heads if jax.default_backend() == 'cpu' and num_queries * num_keys >= LARGE_HEAD else 1

  def answer(rows: slice | jax.Array) -> tuple[jax.Array, jax.Array | None]:
    some, who = jnp.asarray(query)[:, rows], None if attending is None else attending[:, rows]
    if is_fused:
      return fused(some, key, value, valid=valid, attending=who, implementation='cudnn'), None
    queries, keys, values = (_split_heads(x, num_parts) for x in (some, key, value))
    answers = [_weigh(*part, valid, who, dropout_prob) for part in zip(queries, keys, values, strict=True)]
    outputs = jnp.concatenate([outputs for outputs, _ in answers], axis=2).reshape(batch_size, some.shape[1], -1)
    return outputs, jnp.concatenate([weights for _, weights in answers], axis=1).swapaxes(1, 2) if capture else None

  chunk_size = num_queries if most_logits is None else most_logits // (batch_size * num_heads * num_keys)
  outputs, weights = in_chunks(answer, num_queries, max(1, chunk_size))
  return outputs, weights.swapaxes(1, 2) if capture else None


def _split_heads(x: Array, num_parts: int) -> Sequence[jax.Array]:
  # The gradient of a split is a concatenation; that of as many slices is as many sums of whole arrays.
  return jax.lax.split(jnp.asarray(x), [x.shape[2] // num_parts] * num_parts, axis=2)


def _weigh(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  valid: Array | None,
  attending: Array | None,
  dropout_prob: float,
) -> tuple[jax.Array, jax.Array]:
  """Returns outputs [B, T, H, V] and weights [B, H, T, S]; `attending` [B, T] is False where a query reads zeros."""
  precise = jnp.promote_types(query.dtype, jnp.float32)
  logits = jnp.einsum('bthk,bshk->bhts', query, key, preferred_element_type=precise) * query.shape[-1] ** -0.5
  if valid is not None:
    logits = jnp.where(valid[:, None, None, :] != 0, logits, MASKED)
  weights = jax.nn.softmax(logits)
  if attending is not None:
    weights = jnp.where(attending[:, None, :, None], weights, 0)
  dropped = hk.dropout(hk.next_rng_key(), dropout_prob, weights) if dropout_prob else weights
  return jnp.einsum('bhts,bshv->bthv', dropped.astype(value.dtype), value), weights


def fused(
  query: Array,
  key: Array,
  value: Array,
  *,
  valid: Array | None,
  attending: Array | None,
  implementation: Literal['cudnn', 'xla'],
) -> jax.Array:
  """Computes `attend` by `jax.nn.dot_product_attention`: [B, T, H * V]. 'cudnn' never holds the weights in memory.

  Its 'xla' does what `attend` does by itself, and so serves to test the masks. No test has run 'cudnn', which takes a
  GPU.
  """
  (batch_size, num_queries), num_keys = query.shape[:2], key.shape[1]
  mask = None
  if valid is not None:
    mask = jnp.broadcast_to(valid[:, None, None, :] != 0, (batch_size, 1, num_queries, num_keys))
  query, key, value = (jnp.asarray(x) for x in (query, key, value))
  outputs = jax.nn.dot_product_attention(query, key, value, mask=mask, implementation=implementation)
  if attending is not None:
    outputs = jnp.where(attending[:, :, None, None], outputs, 0)
  return outputs.reshape(batch_size, num_queries, -1)


def suits_cudnn(capability: str, query: Array, key: Array, value: Array, valid: Array | None) -> bool:
  """Whether cuDNN's flash attention takes these arguments of `attend`: 16 bits, heads of at most 128 channels.

  Elsewhere `attend` by itself does as well as `jax.nn.dot_product_attention`, whose other kernel is plain XLA. With a
  mask, gradients need even numbers of queries and keys.

  Args:
    capability: of the device, '9.0' on an H100; 8 and later will do. GPUs of other makers have 'gfx90a', others ''.
    query, key, value, valid: as in `attend`.
  """
  is_able = re.fullmatch(r'([89]|\d\d)\.\d', capability) is not None
  sizes_fit = query.shape[-1] == value.shape[-1] <= 128 and query.shape[-1] % 8 == 0
  mask_fits = valid is None or (query.shape[1] % 2 == 0 and key.shape[1] % 2 == 0)
  is_narrow = query.dtype == key.dtype == value.dtype and query.dtype in (jnp.bfloat16, jnp.float16)
  return is_able and sizes_fit and mask_fits and is_narrow


def may_attend(valid: Array | None, query_mask: Array | None) -> Array | None:
  """Returns which queries may attend and have a valid key, [B, T] or [B, 1]; None where nothing is masked."""
  has_key = None if valid is None else jnp.any(valid != 0, axis=-1, keepdims=True)
  if query_mask is None:
    return has_key
  return query_mask != 0 if has_key is None else (query_mask != 0) & has_key


def layer_norm(x: Array, name: str, dtype: jnp.dtype | None = None) -> jax.Array:
  """LayerNorm over channels, eps 1e-5, with statistics in float32 or wider; returns `dtype`, by default that of `x`."""
  precise = jnp.asarray(x, jnp.promote_types(x.dtype, jnp.float32))
  return hk.LayerNorm(axis=-1, create_scale=True, create_offset=True, name=name)(precise).astype(dtype or x.dtype)


def dropout(x: jax.Array, prob: float, is_training: bool) -> jax.Array:
  """Zeroes entries of `x` with `prob` in training, and scales up the others."""
  return hk.dropout(hk.next_rng_key(), prob, x) if prob and is_training else x


def _linear(x: jax.Array, num_channels: int, name: str) -> jax.Array:
  """Projects [..., C] to [..., num_channels], as a matrix: XLA's gradient of three axes is slower on a CPU."""
  linear = hk.Linear(num_channels, w_init=hk.initializers.VarianceScaling(1.0), name=name)
  return linear(x.reshape(-1, x.shape[-1])).reshape(*x.shape[:-1], num_channels)


class Attention(hk.Module):
  """Multi-head attention: projections to `query`, `key`, `value`, and `output` (eqs 1-3), all with a bias."""

  def __init__(
    self,
    num_heads: int,
    qk_channels: int,
    v_channels: int,
    output_channels: int,
    dropout_prob: float = 0.0,
    masked_rows: str = 'zero',
    name: str = 'attention',
  ):
    super().__init__(name=name)
    for what, channels in (('qk_channels', qk_channels), ('v_channels', v_channels)):
      if channels % num_heads:
        raise UserError(f'{self.module_name}: {num_heads} heads do not divide {what} = {channels}')
    self.num_heads = num_heads
    self.qk_channels = qk_channels
    self.v_channels = v_channels
    self.output_channels = output_channels
    self.dropout_prob = dropout_prob
    self.masked_rows = masked_rows

  def __call__(
    self,
    query: jax.Array,
    inputs: jax.Array,
    *,
    is_training: bool,
    valid: Array | None = None,
    query_mask: Array | None = None,
    capture: bool = False,
  ) -> tuple[jax.Array, jax.Array | None]:
    """query [B, T, Cq], inputs [B, S, C], masks as in `attend` -> [B, T, output_channels], weights [B, H, T, S].

    There are no weights, but None, unless they are to be captured.
    """
    outputs, weights = attend(
      self._heads(query, self.qk_channels, 'query'),
      self._heads(inputs, self.qk_channels, 'key'),
      self._heads(inputs, self.v_channels, 'value'),
      valid=valid,
      query_mask=query_mask,
      dropout_prob=self.dropout_prob if is_training else 0.0,
      masked_rows=self.masked_rows,
      most_logits=None if is_training else MOST_LOGITS,
      capture=capture,
    )
    return _linear(outputs, self.output_channels, 'output'), weights

  @hk.transparent
  def _heads(self, x: jax.Array, num_channels: int, name: str) -> jax.Array:
    x = _linear(x, num_channels, name)
    return x.reshape(*x.shape[:-1], self.num_heads, -1)


class Mlp(hk.Module):
  """Linear, GELU, linear back to the width of the input (eq. 6)."""

  def __init__(self, widening: int = 1, gelu: str = 'tanh', name: str = 'mlp'):
    """widening: hidden channels per input channel. gelu: 'tanh', the authors' approximation, or 'exact'."""
    super().__init__(name=name)
    if gelu not in ('tanh', 'exact'):
      raise ValueError(f"gelu is 'tanh' or 'exact', not {gelu!r}")
    self.widening = widening
    self.is_approximate = gelu == 'tanh'

  def __call__(self, x: jax.Array) -> jax.Array:
    num_channels = x.shape[-1]
    hidden = jax.nn.gelu(_linear(x, self.widening * num_channels, 'hidden'), approximate=self.is_approximate)
    return _linear(hidden, num_channels, 'output')


class SelfAttend(hk.Module):
  """One layer of the latent Transformer, pre-norm (2103.03206, section 3.1; 2107.14795, eqs 4-6).

  The query and key width defaults to that of the latents, the value width to that of the queries.
  """

  def __init__(
    self,
    num_heads: int = 8,
    qk_channels: int | None = None,
    v_channels: int | None = None,
    widening: int = 1,
    dropout_prob: float = 0.0,
    attention_dropout_prob: float = 0.0,
    gelu: str = 'tanh',
    name: str = 'self_attend',
  ):
    super().__init__(name=name)
    self.num_heads = num_heads
    self.qk_channels = qk_channels
    self.v_channels = v_channels
    self.widening = widening
    self.dropout_prob = dropout_prob
    self.attention_dropout_prob = attention_dropout_prob
    self.gelu = gelu

  def __call__(
    self, x: jax.Array, *, is_training: bool, capture: bool = False,
  ) -> tuple[jax.Array, jax.Array | None]:
    """x [B, N, D] -> [B, N, D] and, if captured, the attention weights [B, H, N, N]."""
    qk_channels = self.qk_channels or x.shape[-1]
    normed = layer_norm(x, 'attention_norm')
    attention = Attention(
      self.num_heads, qk_channels, self.v_channels or qk_channels, x.shape[-1], self.attention_dropout_prob)
    attended, weights = attention(normed, normed, is_training=is_training, capture=capture)
    x = x + dropout(attended, self.dropout_prob, is_training)
    mlp = Mlp(self.widening, self.gelu)(layer_norm(x, 'mlp_norm'))
    return x + dropout(mlp, self.dropout_prob, is_training), weights
