"""Attention and the two blocks of a Perceiver (2107.14795, eqs 1-6; 2103.03206, appendix C).

Shapes: B batch, T queries, S keys, H heads, K channels of a query or key head, V channels of a value head, C channels.
"""

from __future__ import annotations

import haiku as hk
import jax
import jax.numpy as jnp

from perceiver_jax.core.chunks import in_chunks
from perceiver_jax.core.input_array import InputArray, dense
from perceiver_jax.types import Array, UserError

MASKED = -1e30       # the logit of a key that may not be attended to
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
) -> tuple[jax.Array, jax.Array]:
  """Scaled dot-product attention (eq. 1). Logits and softmax are float32, or wider if the arguments are.

  Args:
    query: [B, T, H, K].
    key: [B, S, H, K].
    value: [B, S, H, V].
    valid: [B, S], non-zero = a key that may be attended to.
    query_mask: [B, T], non-zero = a query that may attend.
    dropout_prob: in [0, 1), dropout on the attention weights; needs a Haiku random key when above 0.
    masked_rows: what a query reads that may not attend, or has no valid key: 'zero', as in the authors' code; or
      'mean', as in Hugging Face's: query masks count for nothing, and without a valid key all values count alike.
    most_logits: how many of the B * H * T * S logits to hold at once: beyond it queries are answered in chunks, with
      the same result. None = all.

  Returns:
    [B, T, H * V], and the weights [B, H, T, S], float32 or wider; both exactly 0 in a row that is masked to 'zero'.
  """
  if masked_rows not in ('zero', 'mean'):
    raise UserError(f"masked_rows is 'zero' or 'mean', not {masked_rows!r}")
  if masked_rows == 'mean':
    query_mask = None
  elif valid is not None:
    value = jnp.where(valid[:, :, None, None] != 0, value, 0)  # 0 * NaN is not 0
  precise = jnp.promote_types(query.dtype, jnp.float32)
  attending = _attending(valid, query_mask) if masked_rows == 'zero' else None

  def answer(rows: slice | jax.Array) -> tuple[jax.Array, jax.Array]:
    some = jnp.asarray(query)[:, rows]
    logits = jnp.einsum('bthk,bshk->bhts', some, key, preferred_element_type=precise) * some.shape[-1] ** -0.5
    if valid is not None:
      logits = jnp.where(valid[:, None, None, :] != 0, logits, MASKED)
    weights = jax.nn.softmax(logits)
    if attending is not None:
      weights = jnp.where(jnp.broadcast_to(attending, query.shape[:2])[:, None, rows, None], weights, 0)
    dropped = hk.dropout(hk.next_rng_key(), dropout_prob, weights) if dropout_prob else weights
    outputs = jnp.einsum('bhts,bshv->bthv', dropped.astype(value.dtype), value)
    return outputs.reshape(*outputs.shape[:2], -1), weights.swapaxes(1, 2)

  batch_size, num_queries, num_heads, _ = query.shape
  chunk_size = num_queries if most_logits is None else most_logits // (batch_size * num_heads * key.shape[1])
  outputs, weights = in_chunks(answer, num_queries, max(1, chunk_size))
  return outputs, weights.swapaxes(1, 2)


def _attending(valid: Array | None, query_mask: Array | None) -> Array | None:
  """[B, T] or [B, 1]: which queries may attend and have something to attend to; None where nothing is masked."""
  has_key = None if valid is None else jnp.any(valid != 0, axis=-1, keepdims=True)
  if query_mask is None:
    return has_key
  return query_mask != 0 if has_key is None else (query_mask != 0) & has_key


def layer_norm(x: Array, name: str, dtype: jnp.dtype | None = None) -> jax.Array:
  """LayerNorm over channels, eps 1e-5, with statistics in float32 or wider; returns `dtype`, by default that of `x`."""
  precise = jnp.asarray(x, jnp.promote_types(x.dtype, jnp.float32))
  return hk.LayerNorm(axis=-1, create_scale=True, create_offset=True, name=name)(precise).astype(dtype or x.dtype)


def _dropout(x: jax.Array, prob: float, is_training: bool) -> jax.Array:
  return hk.dropout(hk.next_rng_key(), prob, x) if prob and is_training else x


def _linear(num_channels: int, name: str) -> hk.Linear:
  return hk.Linear(num_channels, w_init=hk.initializers.VarianceScaling(1.0), name=name)


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
  ) -> tuple[jax.Array, jax.Array]:
    """query [B, T, Cq], inputs [B, S, C], masks as in `attend` -> [B, T, output_channels], weights [B, H, T, S]."""
    outputs, weights = attend(
      self._heads(query, self.qk_channels, 'query'),
      self._heads(inputs, self.qk_channels, 'key'),
      self._heads(inputs, self.v_channels, 'value'),
      valid=valid,
      query_mask=query_mask,
      dropout_prob=self.dropout_prob if is_training else 0.0,
      masked_rows=self.masked_rows,
      most_logits=None if is_training else MOST_LOGITS,
    )
    return _linear(self.output_channels, 'output')(outputs), weights

  @hk.transparent
  def _heads(self, x: jax.Array, num_channels: int, name: str) -> jax.Array:
    x = _linear(num_channels, name)(x)
    return x.reshape(*x.shape[:-1], self.num_heads, -1)


class Mlp(hk.Module):
  """Linear, GELU, linear back to the width of the input (eq. 6)."""

  def __init__(self, widening: int = 1, gelu: str = 'tanh', name: str = 'mlp'):
    """widening: hidden channels per input channel. gelu: 'tanh', the authors' approximation, or 'exact'."""
    super().__init__(name=name)
    if gelu not in ('tanh', 'exact'):
      raise UserError(f"gelu is 'tanh' or 'exact', not {gelu!r}")
    self.widening = widening
    self.is_approximate = gelu == 'tanh'

  def __call__(self, x: jax.Array) -> jax.Array:
    num_channels = x.shape[-1]
    hidden = jax.nn.gelu(_linear(self.widening * num_channels, 'hidden')(x), approximate=self.is_approximate)
    return _linear(num_channels, 'output')(hidden)


class CrossAttend(hk.Module):
  """Lets a query [B, T, Cq] read from an input array (eqs 4-6), pre-norm on both sides.

  The query, key and value widths default to the width of the inputs, not of the query (as in the authors' code; the
  first paper's appendix C says the smaller of the two). The result has the query's width.
  """

  def __init__(
    self,
    num_heads: int = 1,
    qk_channels: int | None = None,
    v_channels: int | None = None,
    widening: int = 1,
    dropout_prob: float = 0.0,
    attention_dropout_prob: float = 0.0,
    query_residual: bool = True,
    gelu: str = 'tanh',
    masked_rows: str = 'zero',
    name: str = 'cross_attend',
  ):
    super().__init__(name=name)
    self.num_heads = num_heads
    self.qk_channels = qk_channels
    self.v_channels = v_channels
    self.widening = widening
    self.dropout_prob = dropout_prob
    self.attention_dropout_prob = attention_dropout_prob
    self.query_residual = query_residual
    self.gelu = gelu
    self.masked_rows = masked_rows

  def __call__(
    self,
    query: jax.Array,
    inputs: InputArray,
    *,
    is_training: bool,
    query_mask: Array | None = None,
  ) -> tuple[jax.Array, jax.Array]:
    """Returns [B, T, Cq] and the attention weights [B, H, T, M].

    A query masked out by `query_mask` [B, T], or with no valid input, reads what `masked_rows` of `attend` says, and
    goes on through bias, residual and MLP.
    """
    joined = dense(inputs)
    qk_channels = self.qk_channels or joined.shape[-1]
    v_channels = self.v_channels or qk_channels
    attention = Attention(
      self.num_heads, qk_channels, v_channels, query.shape[-1], self.attention_dropout_prob, self.masked_rows)
    attended, weights = attention(
      layer_norm(query, 'query_norm'),
      layer_norm(joined, 'inputs_norm', query.dtype),
      valid=inputs.valid,
      query_mask=query_mask,
      is_training=is_training,
    )
    attended = _dropout(attended, self.dropout_prob, is_training)
    x = query + attended if self.query_residual else attended
    mlp = Mlp(self.widening, self.gelu)(layer_norm(x, 'mlp_norm'))
    return x + _dropout(mlp, self.dropout_prob, is_training), weights


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

  def __call__(self, x: jax.Array, *, is_training: bool) -> tuple[jax.Array, jax.Array]:
    """x [B, N, D] -> [B, N, D] and the attention weights [B, H, N, N]."""
    qk_channels = self.qk_channels or x.shape[-1]
    normed = layer_norm(x, 'attention_norm')
    attention = Attention(
      self.num_heads, qk_channels, self.v_channels or qk_channels, x.shape[-1], self.attention_dropout_prob)
    attended, weights = attention(normed, normed, is_training=is_training)
    x = x + _dropout(attended, self.dropout_prob, is_training)
    mlp = Mlp(self.widening, self.gelu)(layer_norm(x, 'mlp_norm'))
    return x + _dropout(mlp, self.dropout_prob, is_training), weights
