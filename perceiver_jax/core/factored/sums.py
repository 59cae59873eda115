"""The core of the factored attention: a softmax over many elements, of which only sums are kept.

Shapes, of an example: R rows of logits, S tiles of W elements, F channels of their features.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from perceiver_jax.types import Array

MASKED = -1e30    # the logit of an element that does not count
TILE = 2**16      # logits of a tile on a CPU; 256 KiB of float32, which stay in a core's cache
FEW_CHANNELS = 4  # up to which products with features are written out, as XLA then fuses them with what follows


class Tables(NamedTuple):
  """Holds the parts of the logits that depend on the place on a grid: per tile, and per place in a tile."""

  lead: jax.Array  # [B, S, R]
  last: jax.Array  # [B, W, R]


class Scores(NamedTuple):
  """Holds the factors of the logits: logit = scale (features . content + lead + last)."""

  content: jax.Array             # [B, F, R]
  tables: Tables | None = None


class Tiles(NamedTuple):
  """The elements, as S tiles of W."""

  features: jax.Array             # [B, S, W, F]
  scale: jax.Array | None = None  # [B, S, W], one over the deviation of an element's channels; None is 1
  valid: jax.Array | None = None  # [B, S, W] bool, of the elements that count; None is all


@jax.custom_vjp
def weighted_sums(scores: Scores, tiles: Tiles) -> tuple[Scores, jax.Array]:
  """Sums of w = softmax(logits) * scale: over all elements of w times features, of w per tile, per place in a tile.

  Returns a tree like `scores`; and [B, R], the logarithm of the sum of exp(logits), by which the sums over several
  sets of elements are added. Where nothing is valid the sums are finite and the logarithm is `MASKED`.

  Holds the logits of one tile at a time, forward and in the first, reverse derivative. The second derivative holds all
  of them, and is not for GPUs, where kernels do the work (weighted_sums_kernel.py); there is none in forward mode.
  """
  return _forward(scores, tiles)[0]


def _forward(scores: Scores, tiles: Tiles) -> tuple[tuple[Scores, jax.Array], Any]:
  """The results, and what the backward pass needs to know of the softmax; None of the kernels'."""
  if _has_kernel(scores):
    from perceiver_jax.core.factored import kernels
    return kernels.forward(scores, tiles), None
  sums, (highest, total) = _scanned(scores, tiles)
  return (sums, highest + jnp.log(total)), (highest, total)


def _has_kernel(scores: Scores) -> bool:
  if jax.default_backend() != 'gpu':
    return False
  from perceiver_jax.core.factored import kernels
  return kernels.suits(scores)


def _over_examples(function: Callable[..., Any]) -> Callable[..., Any]:
  """One example after the other on a CPU, whose cache holds one tile; all at once elsewhere."""
  def mapped(*arguments: Any) -> Any:
    if jax.default_backend() != 'cpu':
      return jax.vmap(function)(*arguments)
    if jax.tree.leaves(arguments)[0].shape[0] == 1:  # XLA compiles even a loop of one turn as a loop
      return jax.tree.map(lambda x: x[None], function(*jax.tree.map(lambda x: x[0], arguments)))
    return jax.lax.map(lambda example: function(*example), arguments)
  return mapped


def _num_blocks(scores: Scores, tiles: Tiles) -> int:
  """Into how many blocks rows of logits are to be cut, so that a tile has no more than TILE of them."""
  num_rows, tile_size = scores.content.shape[-1], tiles.features.shape[-2]
  if jax.default_backend() != 'cpu':
    return 1
  return next((n for n in range(1, num_rows // 64 + 1) if num_rows % n == 0 and tile_size * num_rows // n <= TILE), 1)


def _cut(tree: Any, num_blocks: int) -> Any:
  """Cuts rows into blocks: [..., R] to [num_blocks, ..., R / num_blocks]."""
  return jax.tree.map(lambda x: jnp.moveaxis(x.reshape(*x.shape[:-1], num_blocks, -1), -2, 0), tree)


def _uncut(tree: Any) -> Any:
  return jax.tree.map(lambda x: jnp.moveaxis(x, 0, -2).reshape(*x.shape[1:-1], -1), tree)


def _times(features: jax.Array, rows: jax.Array) -> jax.Array:
  """Multiplies [W, F] by [F, R]."""
  if 1 <= features.shape[1] <= FEW_CHANNELS:
    products = [features[:, k, None] * rows[k] for k in range(len(rows))]
    return sum(products[1:], products[0])
  return jnp.matmul(features, rows, precision=jax.lax.Precision.HIGHEST)


def _summed(columns: Sequence[jax.Array], weights: jax.Array) -> jax.Array:
  """Columns, each [W, n], transposed, times [W, R]: sums of weights by a matrix product, which reads them but once."""
  return jnp.matmul(jnp.concatenate(columns, axis=1).T, weights, precision=jax.lax.Precision.HIGHEST)


def _raw_and_logits(scores: Scores, lead: Any, tile: Tiles) -> tuple[jax.Array, jax.Array]:
  """Returns the logits of one tile, [W, R]: before the scale, and as the softmax takes them."""
  raw = _times(tile.features, scores.content)
  if scores.tables is not None:
    raw = raw + (scores.tables.last + lead)
  logits = _scaled(raw, tile.scale)
  return raw, logits if tile.valid is None else jnp.where(tile.valid[:, None], logits, MASKED)


def _scaled(x: jax.Array, scale: Array | None) -> jax.Array:
  return x if scale is None else x * scale[:, None]


@_over_examples
def _scanned(scores: Scores, tiles: Tiles) -> tuple[Scores, tuple[jax.Array, jax.Array]]:
  """The sums of one example; and per row its highest logit, and the sum of exp(logit - highest)."""
  num_blocks = _num_blocks(scores, tiles)
  if num_blocks == 1:
    return _scan(scores, tiles)
  return _uncut(jax.lax.map(lambda block: _scan(block, tiles), _cut(scores, num_blocks)))


def _scan(scores: Scores, tiles: Tiles) -> tuple[Scores, tuple[jax.Array, jax.Array]]:
  def step(carry: Any, tile: Any) -> Any:
    (highest, total, last, content), (lead, tile) = carry, tile
    _, logits = _raw_and_logits(scores, lead, tile)
    # Every result is the same whatever is subtracted, so that it has no part in a second derivative.
    higher = jax.lax.stop_gradient(jnp.maximum(highest, jnp.max(logits, axis=0)))
    fade, weights = jnp.exp(highest - higher), jnp.exp(logits - higher)
    ones = jnp.ones((len(weights), 1), weights.dtype)
    scale = ones if tile.scale is None else tile.scale[:, None]
    sums = _summed([tile.features * scale, scale, ones], weights)
    content, total = content * fade + sums[:-2], total * fade + sums[-1]
    if last is None:
      return (higher, total, None, content), None
    return (higher, total, last * fade + weights * scale, content), (sums[-2], higher)

  lead, last = scores.tables or (None, None)
  zeros = jnp.zeros(scores.content.shape[1:], scores.content.dtype)
  start = zeros + 2 * MASKED, zeros, *jax.tree.map(jnp.zeros_like, (last, scores.content))
  (highest, total, last, content), leads = jax.lax.scan(step, start, (lead, tiles))
  tables = None if leads is None else Tables(leads[0] * jnp.exp(leads[1] - highest), last)
  return jax.tree.map(lambda x: x / total, Scores(content, tables)), (highest, total)


def _forward_rule(scores: Any, tiles: Any) -> tuple[tuple[Scores, jax.Array], tuple[Any, ...]]:
  is_leaf = lambda x: isinstance(x, jax.custom_derivatives.CustomVJPPrimal)
  to_tiles = any(x.perturbed for x in jax.tree.leaves(tiles, is_leaf=is_leaf))
  scores, tiles = jax.tree.map(lambda x: x.value, (scores, tiles), is_leaf=is_leaf)
  results, softmax = _forward(scores, tiles)
  return results, (scores, tiles, results, softmax, () if to_tiles else None)


def _backward_rule(residuals: tuple[Any, ...], cotangents: Any) -> tuple[Scores, Tiles]:
  scores, tiles, (sums, log_total), softmax, to_tiles = residuals
  is_zero = lambda x: isinstance(x, jax.custom_derivatives.SymbolicZero)
  cotangents = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype) if is_zero(x) else x, cotangents, is_leaf=is_zero)
  if softmax is None:
    from perceiver_jax.core.factored import kernels
    return kernels.backward(scores, tiles, sums, log_total, cotangents, to_tiles=to_tiles is not None)
  backward = _over_examples(functools.partial(_backward, to_tiles=to_tiles is not None))
  return backward(scores, tiles, sums, softmax, cotangents)


def _backward(
  scores: Scores, tiles: Tiles, sums: Scores, softmax: Any, cotangents: Any, *, to_tiles: bool,
) -> tuple[Scores, Tiles]:
  """Gradients of one example; there are none of its elements unless asked for."""
  backward = functools.partial(_scan_backward, to_tiles=to_tiles)
  of_rows, num_blocks = (scores, sums, softmax, cotangents), _num_blocks(scores, tiles)
  if num_blocks == 1:
    return backward(tiles, *of_rows)

  def step(of_tiles: Tiles, block: Any) -> tuple[Tiles, Scores]:
    of_scores, more = backward(tiles, *block)
    return jax.tree.map(jnp.add, of_tiles, more), of_scores

  nothing: Any = None
  start = jax.tree.map(jnp.zeros_like, tiles._replace(valid=None)) if to_tiles else Tiles(nothing)
  of_tiles, of_scores = jax.lax.scan(step, start, _cut(of_rows, num_blocks))
  return _uncut(of_scores), of_tiles


def _scan_backward(
  tiles: Tiles, scores: Scores, sums: Scores, softmax: Any, cotangents: Any, *, to_tiles: bool,
) -> tuple[Scores, Tiles]:
  (highest, total), (slopes, slope_of_total) = softmax, cotangents
  products = jax.tree.map(lambda x, ct: jnp.sum(x * ct, axis=0), sums, slopes)
  mean = sum(jax.tree.leaves(products)) - slope_of_total  # what softmax takes from every logit's gradient

  def step(carry: Any, tile: Any) -> Any:
    (last, content), (lead, lead_slope, tile) = carry, tile
    raw, logits = _raw_and_logits(scores, lead, tile)
    softmax = jnp.exp(logits - highest) / total
    d_weights = _times(tile.features, slopes.content)
    if slopes.tables is not None:
      d_weights = d_weights + (slopes.tables.last + lead_slope)
    d_logits = softmax * (_scaled(d_weights, tile.scale) - mean)
    d_raw = _scaled(d_logits, tile.scale)
    of_tile: tuple[Any, Any] = None, None
    if to_tiles:
      of_features = _times(d_raw, scores.content.T) + _times(_scaled(softmax, tile.scale), slopes.content.T)
      of_scale = None if tile.scale is None else jnp.sum(softmax * d_weights + d_logits * raw, axis=1)
      of_tile = of_features, of_scale
    sums = _summed([tile.features, jnp.ones((len(d_raw), 1), d_raw.dtype)], d_raw)
    content = content + sums[:-1]
    if last is None:
      return (None, content), (None, *of_tile)
    return (last + d_raw, content), (sums[-1], *of_tile)

  lead, last = scores.tables or (None, None)
  lead_slope = None if slopes.tables is None else slopes.tables.lead
  start = jax.tree.map(jnp.zeros_like, (last, scores.content))
  (last, content), (lead, features, scale) = jax.lax.scan(step, start, (lead, lead_slope, tiles))
  return Scores(content, None if last is None else Tables(lead, last)), Tiles(features, scale)


weighted_sums.defvjp(_forward_rule, _backward_rule, symbolic_zeros=True)
