"""Exact cross-attention over an input array that is never joined, nor projected to keys and values.

The logits are those of `attend` in another order: the key projection and the LayerNorm of the inputs move to the side
of the query, where there are few rows. Of a grid, whose positions are a table per axis, the logit of the element in
cell (y, x) is then scale (A[y] + B[x] + its features . p): a handful of operations, whatever the width of the encoding.
What remains on the side of the values is linear too, so sums per row and per column of the grid are all that is kept.

Shapes: B batch, N queries, H heads, R = H * N rows of logits, M elements = S tiles of W, F channels of their features,
C of joined elements. A tile is a row of the grid, or a chunk of what has none.
"""

from __future__ import annotations

from collections.abc import Sequence

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np

from perceiver_jax.core.factored.grid import (
  at_home,
  columns,
  dot,
  logit_tables,
  rows_of,
  shape_of,
  standardised,
  tables,
  whole_grid,
)
from perceiver_jax.core.factored.sums import TILE, Scores, Tables, Tiles, weighted_sums
from perceiver_jax.core.input_array import InputArray, Pack, dense, parts_of, size
from perceiver_jax.core.position_encoding import FourierGrid
from perceiver_jax.types import Array, UserError

WORTHWHILE = 2**15  # weights per example from which 'auto' leaves the dense path: fewer take a millisecond either way


def choose(
  attention_impl: str, inputs: InputArray | Pack, num_queries: int, num_heads: int, qk_channels: int, v_channels: int,
) -> str:
  """The path that a cross-attend takes: 'dense', 'factored' or 'chunked'; `attention` is one of them, or 'auto'.

  'auto' leaves the dense path on CPUs, where it was measured, for what is large and cheaper on another: a whole grid of
  two axes or more is factored unless it has many heads or feature channels; else one head is chunked. Of a pack, the
  parts that are no grid go in chunks. Raises UserError for another word, and where 'factored' is asked for of positions
  that are no whole grid.
  """
  check_word(attention_impl)
  grids = [(grid, part) for part in parts_of(inputs) if (grid := whole_grid(part)) is not None]
  if attention_impl == 'factored' and not grids:
    kinds = ', '.join(sorted({_kind(part) for part in parts_of(inputs)}))
    raise UserError(
      'attention_impl=factored needs positions on a whole Fourier grid, each cell once, in an order known before '
      'tracing; '
      f'here are {kinds}. Ask for attention_impl=auto or chunked')
  if attention_impl != 'auto':
    return attention_impl
  _, num_elements, _ = size(inputs)
  if jax.default_backend() != 'cpu' or num_queries * num_elements < WORTHWHILE:
    return 'dense'
  operations = 2 * (qk_channels + v_channels)  # per weight, of the dense path
  widths = [
    part.features.shape[-1] for grid, part in grids if 8 * sum(rows_of(grid)) <= part.features.shape[1]]
  if widths and all(num_heads * (10 + 4 * width) < operations for width in widths):
    return 'factored'
  return 'chunked' if num_heads == 1 else 'dense'


def _kind(inputs: InputArray) -> str:
  """Describes the positions of inputs, for an error message."""
  positions, num_elements = inputs.positions, inputs.features.shape[1]
  if positions is None:
    return 'no positions'
  if not isinstance(positions, FourierGrid):
    return f'positions {list(positions.shape)} as one array'
  order = 'no order' if positions.order is None else 'an order'
  return f'a grid of {" x ".join(map(str, shape_of(positions)))} cells and {order}, of {num_elements} elements'


def check_word(attention_impl: str) -> None:
  """Raises ValueError for an unknown path."""
  if attention_impl not in ('auto', 'dense', 'factored', 'chunked'):
    raise ValueError(f"attention_impl is 'auto', 'dense', 'factored' or 'chunked', not {attention_impl!r}")


def absorbed(query: Array, inputs: InputArray | Pack, norm_scale: Array, key: Array, path: str) -> jax.Array:
  """Computes the sum of softmax * LayerNorm(inputs) for each query, before the LayerNorm's gain and offset.

  Args:
    query: [B, N, H, K].
    inputs: M elements of C channels.
    norm_scale: [C], the gain of the LayerNorm of the inputs. Its offset cancels in the softmax, as a key's bias does.
    key: [C, H, K], weights of the projection.
    path: 'factored', where inputs that are not a full grid of two or more axes fall back to chunks; or 'chunked'.

  Returns:
    [B, N, H, C], float32 or wider. Where no element is valid all count alike.
  """
  parts: Sequence[InputArray] = parts_of(inputs)
  precise = jnp.result_type(query.dtype, jnp.float32, *(part.features.dtype for part in parts))
  batch_size, num_queries, num_heads, num_channels = query.shape
  weights = norm_scale.astype(precise)[:, None, None] * key.astype(precise) * num_channels ** -0.5
  rows = dot('bnhk,chk->bchn', query.astype(precise), weights)
  rows = rows.reshape(batch_size, -1, num_heads * num_queries)
  rows = rows - jnp.mean(rows, axis=1, keepdims=True)  # so that what reads by them need not subtract its mean
  parts, rows = _without_nothing(parts, rows)
  read = [_read(rows, part._replace(features=jnp.asarray(part.features, precise)), path) for part in parts]
  sums = _joined(read)
  sums = sums - jnp.mean(sums, axis=1, keepdims=True)
  return sums.reshape(batch_size, -1, num_heads, num_queries).transpose(0, 3, 2, 1)


def _without_nothing(
  parts: Sequence[InputArray], rows: jax.Array,
) -> tuple[Sequence[InputArray], jax.Array]:
  """Makes all elements of an example valid that has no valid element, with equal logits."""
  if all(part.valid is None for part in parts):
    return parts, rows
  counts = [jnp.any(part.valid != 0, axis=1) for part in parts if part.valid is not None]
  is_any = jnp.stack(counts).any(axis=0) | (len(counts) < len(parts))
  parts = [
    part if part.valid is None else part._replace(valid=(part.valid != 0) | ~is_any[:, None]) for part in parts]
  return parts, jnp.where(is_any[:, None, None], rows, 0)


def _joined(read: Sequence[tuple[jax.Array, jax.Array]]) -> jax.Array:
  """Combines sums over parts, [B, C, R] each, by the logarithms of what they were divided by, [B, R] each."""
  if len(read) == 1:
    return read[0][0]
  shares = jax.nn.softmax(jnp.stack([log_total for _, log_total in read]), axis=0)
  return sum(share[:, None] * sums for share, (sums, _) in zip(shares, read, strict=True))


def _read(rows: jax.Array, inputs: InputArray, path: str) -> tuple[jax.Array, jax.Array]:
  """Returns sums [B, C, R] for rows [B, C, R], and the logarithm of the sum of exp(logits), [B, R]."""
  if inputs.valid is not None:
    features = jnp.where(inputs.valid[..., None], inputs.features, 0)  # 0 * NaN is not 0
    inputs = inputs._replace(features=features)
  grid = whole_grid(inputs) if path == 'factored' else None
  if grid is None or len(shape_of(grid)) == 1:
    return _of_chunks(rows, inputs)
  return _of_grid(rows, inputs, grid)


def _of_grid(rows: jax.Array, inputs: InputArray, grid: FourierGrid) -> tuple[jax.Array, jax.Array]:
  """Computes `_read` on a grid: tables of all axes but the last make the tables of tiles."""
  inputs, lead_shape = at_home(inputs, grid), shape_of(grid)[:-1]
  features = jnp.asarray(inputs.features)
  batch_size, _, num_features = features.shape
  padding = jnp.zeros(0, rows.dtype) if inputs.padding is None else jnp.asarray(inputs.padding, rows.dtype)
  lead, last, scale = logit_tables(rows, features, grid, padding)
  (content, of_tables), log_total = weighted_sums(
    Scores(rows[:, :num_features], Tables(lead, last)),
    Tiles(
      features.reshape(*scale.shape, num_features), scale,
      None if inputs.valid is None else jnp.asarray(inputs.valid).reshape(scale.shape)))
  assert of_tables is not None  # as there are tables in its `scores`
  lead = of_tables.lead.reshape(batch_size, *lead_shape, -1)
  others = [tuple(1 + i for i in range(len(lead_shape)) if i != axis) for axis in range(len(lead_shape))]
  sums = [*(jnp.sum(lead, axis=axes) for axes in others), of_tables.last, jnp.sum(of_tables.last, axis=1)[:, None]]
  axes = [*tables(grid, rows.dtype), padding[None]]
  own = [*columns(grid, num_features), np.arange(rows.shape[1] - len(padding), rows.shape[1])]
  read = [dot('np,bnr->bpr', table, x) for table, x in zip(axes, sums, strict=True)]
  places = np.argsort(np.concatenate([np.arange(num_features), *own]))
  return jnp.concatenate([content, *read], axis=1)[:, places], log_total


def _of_chunks(rows: jax.Array, inputs: InputArray) -> tuple[jax.Array, jax.Array]:
  """Computes `_read` on joined elements, W at a time; the last tile is padded with masked ones."""
  normed, valid = standardised(jnp.asarray(dense(inputs))), inputs.valid
  batch_size, num_elements, num_channels = normed.shape
  tile_size = min(num_elements, max(1, TILE // rows.shape[-1]))
  num_tiles = -(-num_elements // tile_size)
  if missing := num_tiles * tile_size - num_elements:
    normed = jnp.pad(normed, ((0, 0), (0, missing), (0, 0)))
    valid = jnp.ones((batch_size, num_elements), bool) if valid is None else valid
    valid = jnp.pad(valid, ((0, 0), (0, missing)))
  tile = batch_size, num_tiles, tile_size
  sums, log_total = weighted_sums(Scores(rows), Tiles(
    normed.reshape(*tile, num_channels), valid=None if valid is None else jnp.asarray(valid).reshape(tile)))
  return sums.content, log_total


# With the parameters of `Attention`.


class AbsorbedAttention(hk.Module):
  """Computes `Attention` over inputs that are neither joined nor projected; `Attention` makes the parameters."""

  def __init__(
    self, num_heads: int, qk_channels: int, v_channels: int, output_channels: int, name: str = 'attention',
  ):
    super().__init__(name=name)
    self.num_heads = num_heads
    self.qk_channels = qk_channels
    self.v_channels = v_channels
    self.output_channels = output_channels

  def __call__(
    self,
    query: jax.Array,
    inputs: InputArray | Pack,
    norm: Sequence[jax.Array],
    path: str,
    may_attend: Array | None,
  ) -> jax.Array:
    """query [B, N, Cq], `norm` the LayerNorm's gain and offset [C], `may_attend` [B, N] or [B, 1] -> [B, N, E].

    A query that may not attend reads zeros.
    """
    (scale, offset), (batch_size, num_queries, _) = norm, query.shape
    heads = hk.Linear(self.qk_channels, name='query')(query).reshape(batch_size, num_queries, self.num_heads, -1)
    key, = Parameters('key')(w=(len(scale), self.qk_channels))
    read = absorbed(heads, inputs, scale, key.reshape(len(scale), self.num_heads, -1), path)
    normed = (read * scale + offset).astype(query.dtype)
    weights, bias = Parameters('value')(w=(len(scale), self.v_channels), b=(self.v_channels,))
    values = jnp.einsum('bnhc,chv->bnhv', normed, weights.reshape(len(scale), self.num_heads, -1))
    values = values.reshape(batch_size, num_queries, -1) + bias
    if may_attend is not None:
      values = jnp.where(may_attend[..., None], values, 0)
    return hk.Linear(self.output_channels, name='output')(values)


class Parameters(hk.Module):
  """The parameters of another module of this name, which has made them."""

  def __init__(self, name: str):
    super().__init__(name=name)

  def __call__(self, **shapes: tuple[int, ...]) -> list[jax.Array]:
    """In the order of their names and shapes."""
    return [hk.get_parameter(name, shape) for name, shape in shapes.items()]
