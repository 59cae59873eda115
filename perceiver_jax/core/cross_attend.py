"""The block by which a query reads from an input array (2107.14795, eqs 4-6; 2103.03206, appendix C)."""

from __future__ import annotations

import warnings

import haiku as hk
import jax
import jax.numpy as jnp

from perceiver_jax.core.attention import Attention, Mlp, dropout, layer_norm, may_attend
from perceiver_jax.core.factored.encoder import AbsorbedAttention, Parameters, choose
from perceiver_jax.core.input_array import InputArray, Pack, check_query, dense, size, valid_elements
from perceiver_jax.types import Array


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
    attention_impl: str = 'auto',
    name: str = 'cross_attend',
  ):
    """attention: 'dense', 'factored', 'chunked' or 'auto', all with the same result and parameters: see `choose`."""
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
    self.attention_impl = attention_impl

  def __call__(
    self,
    query: jax.Array,
    inputs: InputArray | Pack,
    *,
    is_training: bool,
    query_mask: Array | None = None,
    capture: bool = False,
  ) -> tuple[jax.Array, jax.Array | None]:
    """Returns [B, T, Cq] and, if captured, the attention weights [B, H, T, M].

    A query masked out by `query_mask` [B, T], or with no valid input, reads what `masked_rows` of `attend` says, and
    goes on through bias, residual and MLP. To capture the weights, and dropout on them, take the dense path. Raises
    UserError for shapes that do not fit.
    """
    check_query(query.shape, inputs, query_mask)
    normed = layer_norm(query, 'query_norm')
    *_, num_channels = size(inputs)
    qk_channels = self.qk_channels or num_channels
    v_channels = self.v_channels or qk_channels
    widths = self.num_heads, qk_channels, v_channels, query.shape[-1]
    path = choose(self.attention_impl, inputs, query.shape[1], *widths[:3])
    is_dropped = is_training and self.attention_dropout_prob > 0
    if is_dropped and self.attention_impl in ('factored', 'chunked'):
      warnings.warn(
        f'{self.module_name}: attention_impl={self.attention_impl} holds no weights to drop (attention_dropout_prob = '
        f'{self.attention_dropout_prob}), so training takes the dense path', stacklevel=2)
    weights = None
    if path == 'dense' or capture or is_dropped or hk.running_init():
      attended, weights = Attention(*widths, self.attention_dropout_prob, self.masked_rows)(
        normed,
        layer_norm(self._that_count(inputs), 'inputs_norm', query.dtype),
        valid=valid_elements(inputs),
        query_mask=query_mask,
        is_training=is_training,
        capture=capture,
      )
    else:
      norm = Parameters('inputs_norm')(scale=(num_channels,), offset=(num_channels,))
      mask = may_attend(valid_elements(inputs), query_mask) if self.masked_rows == 'zero' else None
      attended = AbsorbedAttention(*widths)(normed, inputs, norm, path, mask)
    attended = dropout(attended, self.dropout_prob, is_training)
    x = query + attended if self.query_residual else attended
    mlp = Mlp(self.widening, self.gelu)(layer_norm(x, 'mlp_norm'))
    return x + dropout(mlp, self.dropout_prob, is_training), weights

  def _that_count(self, inputs: InputArray | Pack) -> jax.Array:
    """Returns the inputs [B, M, C] with zeros for masked elements, which may hold NaN: 0 * NaN is not 0."""
    joined, valid = jnp.asarray(dense(inputs)), valid_elements(inputs)
    if valid is None:
      return joined
    if self.masked_rows == 'mean':  # of an example of which nothing is valid, all elements count alike
      valid = (valid != 0) | ~jnp.any(valid != 0, axis=1, keepdims=True)
    return jnp.where(valid[..., None] != 0, joined, 0)
