"""Computes cross-attention for queries on a grid, without materialising them.

The factored attention with its roles swapped: the latents are few, so the query projection, its LayerNorm and, where
that is cheaper, the output projection move to their side. The logit of the query in cell (y, x) is then
scale (A[y] + B[x] + its features . p) + bias. Rows of the grid are answered one after the other, all the way to the
outputs; nothing of them but their outputs is kept, and the backward pass computes it again.

Shapes: B batch, O queries = S rows of W, F channels of their features, Q of joined queries, N latents, H heads,
R = H * N logits of a query, V channels of the values, E of the outputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np

from perceiver_jax.core.attention import MOST_LOGITS, layer_norm
from perceiver_jax.core.factored.encoder import WORTHWHILE, Parameters
from perceiver_jax.core.factored.grid import at_home, dot, logit_tables, rows_of, shape_of, standardised, whole_grid
from perceiver_jax.core.input_array import InputArray, dense, size
from perceiver_jax.core.position_encoding import FourierGrid
from perceiver_jax.types import Array, UserError

TILE = 2**20  # logits at once on a CPU; 4 MiB of float32

Linear: TypeAlias = tuple[Array, Array]  # weights and bias


class LinearParameters(hk.Module):
  """Holds weights and bias of an `hk.Linear` of this name, so that they may be multiplied with another's."""

  def __init__(self, num_inputs: int, num_outputs: int, name: str):
    super().__init__(name=name)
    self.shape = num_inputs, num_outputs

  def __call__(self) -> Linear:
    init = hk.initializers.TruncatedNormal(self.shape[0] ** -0.5)
    return hk.get_parameter('w', self.shape, init=init), hk.get_parameter('b', self.shape[1:], init=jnp.zeros)


def is_factored(
  attention_impl: str, query: InputArray, num_latents: int, num_heads: int, qk_channels: int,
) -> bool:
  """Whether queries are answered by the factors of their positions; `attention` as in `CrossAttend`.

  'auto' says so of many queries on a whole grid of two axes or more, unless many heads or feature channels make it
  dearer than projected queries. Raises UserError where 'factored' is asked for of positions that are no whole grid.
  """
  grid = whole_grid(query)
  if attention_impl == 'factored' and grid is None:
    raise UserError(
      'attention_impl=factored needs queries on a whole Fourier grid, each cell once, in an order known before '
      'tracing; '
      f'the positions of these are {type(query.positions).__name__}. Ask for attention_impl=auto or dense')
  if attention_impl != 'auto' or grid is None:
    return attention_impl == 'factored'
  _, num_queries, num_features = query.features.shape
  if num_queries * num_latents < WORTHWHILE or 8 * sum(rows_of(grid)) > num_queries:
    return False
  _, _, num_channels = size(query)
  factored = num_heads * num_latents * (10 + 2 * num_features)  # operations per query
  return factored < 2 * qk_channels * (num_channels + num_latents)


class _Queries(NamedTuple):
  """Some rows of the queries of one example."""

  features: Array          # [S, W, F]
  scale: Array             # [S, W], one over the deviation of a query's channels
  cells: Array             # [S, axes but the last], where a row is
  lead: Array              # [S, R], A: what its logits have from that
  mask: Array | None       # [S, W], False where a query reads zeros


class _Latents(NamedTuple):
  """Holds what the queries of one example read from."""

  last: Array              # [W, R], B: what logits have from the place in a row
  content: Array           # [F, R], p
  bias: Array              # [R]
  values: Array            # [H, N, Q] where the output projection is in them, else [H, N, V / H]


class FactoredCrossAttend(hk.Module):
  """Computes `CrossAttend` for queries on a grid, and the linears behind it; `CrossAttend` makes the parameters."""

  def __init__(
    self,
    num_heads: int = 1,
    qk_channels: int | None = None,
    v_channels: int | None = None,
    widening: int = 1,
    query_residual: bool = True,
    gelu: str = 'tanh',
    masked_rows: str = 'zero',
    name: str = 'cross_attend',
    **_: Any,
  ):
    """Takes the arguments of `CrossAttend`; those of dropout are ignored, as there is none here."""
    super().__init__(name=name)
    self.num_heads = num_heads
    self.qk_channels = qk_channels
    self.v_channels = v_channels
    self.widening = widening
    self.query_residual = query_residual
    self.is_approximate = gelu == 'tanh'
    self.masked_rows = masked_rows

  def __call__(
    self, query: InputArray, latents: Array, linears: Sequence[Linear], query_mask: Array | None = None,
  ) -> jax.Array:
    """query of O elements on a whole grid, latents [B, N, D], query_mask [B, O] -> [B, O, E].

    `linears` take the answers [B, O, Q] to the outputs, one after the other; E = Q where there is none.
    """
    grid = whole_grid(query)
    assert grid is not None  # as `is_factored` says
    joined = jax.eval_shape(dense, query)
    num_channels, dtype = joined.shape[-1], joined.dtype
    norm = Parameters('query_norm')(scale=(num_channels,), offset=(num_channels,))
    normed = layer_norm(latents, 'inputs_norm', dtype)
    qk_channels = self.qk_channels or latents.shape[-1]
    v_channels = self.v_channels or qk_channels
    with hk.name_scope('attention'):
      project = Parameters('query')(w=(num_channels, qk_channels), b=(qk_channels,))
      keys = _heads(hk.Linear(qk_channels, name='key')(normed), self.num_heads)
      values = _heads(hk.Linear(v_channels, name='value')(normed), self.num_heads)
      output, output_bias = Parameters('output')(w=(v_channels, num_channels), b=(num_channels,))
    num_latents = latents.shape[1]
    is_projected = self.num_heads * num_latents * num_channels <= v_channels * (num_latents + num_channels)
    if is_projected:  # as it costs less per query
      values = jnp.einsum('bhnv,hvq->bhnq', values, output.reshape(self.num_heads, -1, num_channels))
    finish = self._finish(num_channels, linears, dtype)
    query = at_home(query._replace(valid=query_mask if self.masked_rows == 'zero' else None), grid)
    queries, sides = _factors(query, grid, keys, values, norm, project)

    def answer(rows: _Queries, latents: _Latents) -> jax.Array:
      read = _attended(rows, latents, is_projected)
      read = read if is_projected else jnp.dot(read, output)
      if rows.mask is not None:
        read = jnp.where(rows.mask.reshape(-1, 1), read, 0)
      read = read + output_bias
      return finish(_joined(rows, grid, query.padding).astype(dtype) + read if self.query_residual else read)

    answers = jax.lax.map(lambda example: _by_rows(answer, *example), (queries, sides))
    return answers if grid.order is None else answers[:, grid.order]

  @hk.transparent
  def _finish(
    self, num_channels: int, linears: Sequence[Linear], dtype: jnp.dtype,
  ) -> Callable[[jax.Array], jax.Array]:
    """Returns the MLP and what follows it, [O, Q] -> [O, E]; linears are multiplied where that is cheaper."""
    num_hidden = self.widening * num_channels
    norm = Parameters('mlp_norm')(scale=(num_channels,), offset=(num_channels,))
    with hk.name_scope('mlp'):
      hidden_weights, hidden_bias = Parameters('hidden')(w=(num_channels, num_hidden), b=(num_hidden,))
      output, output_bias = Parameters('output')(w=(num_hidden, num_channels), b=(num_channels,))

    def hidden(x: jax.Array) -> jax.Array:
      return jax.nn.gelu(jnp.dot(_normed(x, *norm), hidden_weights) + hidden_bias, approximate=self.is_approximate)

    def apart(x: jax.Array) -> jax.Array:
      return _through(x + (jnp.dot(hidden(x), output) + output_bias), linears)

    cost = num_hidden * num_channels + sum(math.prod(weights.shape) for weights, _ in linears)
    if not linears or (num_hidden + num_channels) * linears[-1][0].shape[1] >= cost:
      return apart
    precise = jnp.promote_types(dtype, jnp.float32)
    (weights, bias), *others = ((weights.astype(precise), bias.astype(precise)) for weights, bias in linears)
    for each, offset in others:
      weights, bias = jnp.dot(weights, each), jnp.dot(bias, each) + offset
    bias = jnp.dot(output_bias, weights) + bias
    of_hidden = jnp.dot(output.astype(precise), weights)
    weights, of_hidden, bias = weights.astype(dtype), of_hidden.astype(dtype), bias.astype(dtype)
    return lambda x: jnp.dot(x, weights) + jnp.dot(hidden(x), of_hidden) + bias


def _heads(x: jax.Array, num_heads: int) -> jax.Array:
  """Splits channels into heads: [B, N, V] to [B, H, N, V / H]."""
  return x.reshape(*x.shape[:2], num_heads, -1).swapaxes(1, 2)


def _through(x: jax.Array, linears: Sequence[Linear]) -> jax.Array:
  for weights, bias in linears:
    x = jnp.dot(x, weights) + bias
  return x


def _normed(x: jax.Array, scale: Array, offset: Array) -> jax.Array:
  """LayerNorm, as `layer_norm` of core/attention.py."""
  return (standardised(x.astype(jnp.promote_types(x.dtype, jnp.float32))) * scale + offset).astype(x.dtype)


def _factors(
  query: InputArray, grid: FourierGrid, keys: jax.Array, values: jax.Array, norm: Sequence[Array],
  project: Sequence[Array],
) -> tuple[_Queries, _Latents]:
  """Returns the factors of the logits, with a leading [B]: keys [B, H, N, K], `norm` and `project` of the query."""
  dtype = jnp.promote_types(keys.dtype, jnp.float32)
  gain, offset, weights, bias = (jnp.asarray(x, dtype) for x in (*norm, *project))
  batch_size, num_heads, _, num_channels = keys.shape
  keys = keys.astype(dtype) * num_channels ** -0.5
  heads = (gain[:, None] * weights).reshape(len(gain), num_heads, num_channels)
  rows = dot('qhk,bhnk->bqhn', heads, keys).reshape(batch_size, len(gain), -1)
  rows = rows - jnp.mean(rows, axis=1, keepdims=True)  # so that nobody need subtract the mean of a query
  shared = dot('hk,bhnk->bhn', (dot('q,qk->k', offset, weights) + bias).reshape(num_heads, -1), keys)
  features, num_features = jnp.asarray(query.features, dtype), query.features.shape[-1]
  padding = jnp.zeros(0, dtype) if query.padding is None else jnp.asarray(query.padding, dtype)
  lead, last, scale = logit_tables(rows, features, grid, padding)
  cells = np.stack(np.unravel_index(np.arange(lead.shape[1]), shape_of(grid)[:-1] or (1,)), axis=-1)
  return (
    _Queries(
      features.reshape(*scale.shape, num_features), scale, jnp.broadcast_to(cells, (batch_size, *cells.shape)), lead,
      None if query.valid is None else (jnp.asarray(query.valid) != 0).reshape(scale.shape)),
    _Latents(last, rows[:, :num_features], shared.reshape(batch_size, -1), values))


def _attended(rows: _Queries, latents: _Latents, is_projected: bool) -> jax.Array:
  """Computes what some rows of queries read: [S * W, Q] or [S * W, V]."""
  num_heads, num_latents, _ = latents.values.shape
  logits = latents.last + rows.lead[:, None]
  if num_features := rows.features.shape[-1]:  # two axes: XLA multiplies three more slowly on a CPU
    logits += dot('qf,fr->qr', rows.features.reshape(-1, num_features), latents.content).reshape(logits.shape)
  logits = (logits * rows.scale[..., None] + latents.bias).reshape(-1, num_heads, num_latents)
  weights = jnp.exp(logits - jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True)))
  totals = jnp.sum(weights, axis=-1, keepdims=True)
  read = [
    (jnp.dot(weights[:, head].astype(values.dtype), values) / totals[:, head]).astype(values.dtype)
    for head, values in enumerate(latents.values)]
  return sum(read[1:], read[0]) if is_projected else jnp.concatenate(read, axis=-1)


def _joined(rows: _Queries, grid: FourierGrid, padding: Array | None) -> jax.Array:
  """Joins some rows of queries: [S * W, Q]."""
  num_rows, row_size, num_features = rows.features.shape
  lead = [jnp.repeat(rows.cells[:, axis], row_size) for axis in range(len(grid.coordinates) - 1)]
  cells = [*lead, jnp.tile(jnp.arange(row_size), num_rows)]
  kinds = [axis[:, None] for axis in grid.coordinates], grid.sines, grid.cosines
  columns = [jnp.asarray(table)[cell] for kind in kinds for table, cell in zip(kind, cells, strict=True)]
  columns += [] if padding is None else [jnp.broadcast_to(padding, (num_rows * row_size, len(padding)))]
  return jnp.concatenate([rows.features.reshape(num_rows * row_size, num_features), *columns], axis=-1)


def _by_rows(
  answer: Callable[[_Queries, _Latents], jax.Array], queries: _Queries, latents: _Latents,
) -> jax.Array:
  """Answers the queries of an example, [O, E], some rows at a time, forward and backward."""
  num_rows, row_size = queries.scale.shape
  most_logits = TILE if jax.default_backend() == 'cpu' else MOST_LOGITS
  num_chunks = -(-num_rows // max(1, most_logits // (row_size * len(latents.bias))))
  chunk_size = -(-num_rows // num_chunks)
  missing = num_chunks * chunk_size - num_rows

  def chunked(x: jax.Array) -> jax.Array:
    padded = jnp.pad(x, [(0, missing), *(x.ndim - 1) * [(0, 0)]], mode='edge') if missing else x
    return padded.reshape(num_chunks, chunk_size, *x.shape[1:])

  chunks = jax.tree.map(chunked, queries)
  outputs = jax.lax.map(jax.checkpoint(lambda rows: answer(rows, latents), prevent_cse=False), chunks)
  return outputs.reshape(-1, outputs.shape[-1])[:num_rows * row_size]
