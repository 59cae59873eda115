"""The core of the factored attention as kernels: what `weighted_sums` computes, and its derivative, in Pallas.

For elements on a grid with up to MOST_CHANNELS channels of features (`suits`). Shapes: B examples, R rows of logits, S
tiles of W elements, F channels of their features. `Scores`, `Tables` and `Tiles` are those of `weighted_sums`.

A program holds a block of places of a tile by rows of logits, and walks over a run of tiles. What it has summed goes to
memory as partial sums, which XLA adds up: no atomics, and bit for bit the same answer at every run. Nothing of size
S W R is written: of an example, a pass writes S R numbers per block of places and W R per run.

The forward pass goes over the elements twice: for the highest logit of each row and the sum of the exponentials, then
for the sums with the highest known. In one pass it would spare an exponential and the logits, a third of its
arithmetic; but it would rescale all that it holds at every tile, and write a highest logit beside every partial sum.

The lanes of a warp go along the rows of logits, which are contiguous, so that sums over places stay in a thread. Logits
are in units of log 2, as exp2 is one instruction. A few channels are multiplied one by one; more go by PIECE through a
dot in float32 proper, without tensor cores, as TF32 would lose the resolution of positions. Tables are read again for
each tile, from a cache: registers would not hold them too.

On a GPU, by Triton. Nothing here was timed on one: the blocks are the largest that hardly spill, by what Triton 3.9 and
ptxas make of these kernels for sm_90 at 224 x 224 elements and 512 rows. Registers per thread, of 255; bytes spilled
per thread; bytes of shared memory of a program:

  channels   softmax      sums         backward     elements
  3          172, 0, 0    254, 0, 0    221, 0, 0    220, 0, 128
  64         105, 0, 24k  166, 0, 30k  255, 96, 46k  150, 0, 28k

On a TPU, by Mosaic: compiled for a v5e by libtpu 0.0.42, not run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from perceiver_jax.core.factored.kernel_blocks import (
  FEW_CHANNELS,
  LOG2_E,
  MASKED,
  PIECE,
  blocks_of,
  filled,
  filled_rows,
  of_elements,
  operands_of,
  partial_sums,
  where_any,
)

MOST_CHANNELS = 64

Walk = Callable[..., Any]  # see `partial_sums` and `of_elements`


def suits(scores: Any) -> bool:
  """Whether the kernels are for these: float32, with tables, few enough channels."""
  content = scores.content
  return scores.tables is not None and content.shape[1] <= MOST_CHANNELS and content.dtype == jnp.float32


def forward(
  scores: Any, tiles: Any, *, interpret: bool = False, platform: str = 'gpu',
) -> tuple[Any, jax.Array]:
  """The sums, a tree like `scores`, and the logarithm of the sum of exp(logits), [B, R].

  Where nothing is valid all elements count alike, and the logarithm is MASKED. `interpret` runs it without a device;
  `platform` is 'gpu' or 'tpu'.
  """
  block = blocks_of(scores.content.shape[1], platform).forward
  operands = operands_of(scores, tiles, block)
  highest_of_parts, total_of_parts = partial_sums(_softmax_kernel, operands, ['row', 'row'], block, interpret)
  highest = jnp.max(highest_of_parts, axis=1)
  total = jnp.sum(total_of_parts * jnp.exp2(highest_of_parts - highest[:, None]), axis=1)
  parts = partial_sums(_sums_kernel, [*operands, ('row', highest)], ['content', 'lead', 'last'], block, interpret)
  highest, total = (x[..., :scores.content.shape[2]] for x in (highest, total))
  sums = jax.tree.map(lambda x: x / total, _merged(parts, scores))
  lse = (highest / LOG2_E + jnp.log(total))[:, 0]
  return sums, lse if tiles.valid is None else jnp.where(_any(tiles.valid), lse, MASKED)


def backward(
  scores: Any, tiles: Any, sums: Any, lse: jax.Array, cotangents: Any, *, to_tiles: bool, interpret: bool = False,
  platform: str = 'gpu',
) -> tuple[Any, Any]:
  """Gradients, trees like `scores` and `tiles`.

  Args:
    scores, tiles: what `forward` took.
    sums, lse: what it returned.
    cotangents: of both.
    to_tiles: whether features and scale need gradients, from a kernel of their own; None otherwise.
    interpret, platform: as of `forward`.
  """
  (slopes, slope_of_lse), num_channels = cotangents, scores.content.shape[1]
  blocks = blocks_of(num_channels, platform)
  products = jax.tree.map(lambda x, slope: jnp.sum(x * slope, axis=1), sums, slopes)
  shift = slope_of_lse - sum(jax.tree.leaves(products))
  if tiles.valid is not None:
    lse = jnp.where(_any(tiles.valid), lse, math.log(tiles.valid[0].size))  # that of scores of zero
  operands = [
    *operands_of(scores, tiles, blocks.forward), *filled(slopes, blocks.forward),
    *(filled_rows(x, blocks.forward) for x in (lse * LOG2_E, shift))]
  *parts, totals = partial_sums(
    _backward_kernel, operands, ['content', 'lead', 'last', 'row'], blocks.backward, interpret)
  total = jnp.sum(totals, axis=1)
  of_scores = jax.tree.map(lambda x: x / total[..., :scores.content.shape[2]], _merged(parts, scores))
  of_scores = where_any(tiles.valid, of_scores)
  if not to_tiles:
    return of_scores, tiles._replace(features=None, scale=None, valid=None)
  gradients = of_elements(_elements_kernel, [*operands, ('row', 1 / total)], blocks.elements, interpret)
  gradients = gradients[..., :tiles.features.shape[2]]
  features = jnp.swapaxes(gradients[:, :, :num_channels], 2, 3)
  scale = None if tiles.scale is None else gradients[:, :, -1]
  return of_scores, tiles._replace(features=features, scale=scale, valid=None)


def _any(valid: jax.Array) -> jax.Array:
  return jnp.any(valid, axis=(1, 2))[:, None]


def _merged(parts: Sequence[jax.Array], scores: Any) -> Any:
  """Partial sums of content, lead and last, added up to a tree like `scores`."""
  content, lead, last = (jnp.sum(x, axis=1)[..., :scores.content.shape[2]] for x in parts)
  tables = scores.tables._replace(lead=lead, last=last[:, :scores.tables.last.shape[1]])
  return scores._replace(content=content[:, :scores.content.shape[1]], tables=tables)


# Kernels.


def _softmax_kernel(
  content_ref: Any, lead_ref: Any, last_ref: Any, elements_ref: Any, highest_ref: Any, total_ref: Any, *, walk: Walk,
) -> None:
  """Per row, the highest logit and the sum of exp(logit - highest)."""
  content = _pieces(content_ref)

  def step(tile: Any, carry: Any) -> Any:
    highest, total = carry
    features, scale, added = _element(elements_ref, tile)
    logits = _raw(features, content, last_ref[...], lead_ref[tile, :]) * scale + added
    higher = jnp.maximum(highest, jnp.max(logits, axis=0))
    return higher, total * jnp.exp2(highest - higher) + jnp.sum(jnp.exp2(logits - higher[None]), axis=0)

  zeros = jnp.zeros(last_ref.shape[1:], last_ref.dtype)
  highest_ref[0, :], total_ref[0, :] = walk(step, (zeros - jnp.inf, zeros))


def _sums_kernel(
  content_ref: Any, lead_ref: Any, last_ref: Any, elements_ref: Any, highest_ref: Any,
  content_sums_ref: Any, lead_sums_ref: Any, last_sums_ref: Any, *, walk: Walk,
) -> None:
  """The sums of exp(logit - highest) * scale."""
  content, highest = _pieces(content_ref), highest_ref[...]

  def step(tile: Any, carry: Any) -> Any:
    content_sums, last_sums = carry
    features, scale, added = _element(elements_ref, tile)
    logits = _raw(features, content, last_ref[...], lead_ref[tile, :]) * scale + added
    weights = jnp.exp2(logits - highest) * scale
    lead_sums_ref[tile, :] = jnp.sum(weights, axis=0)
    return _plus_summed(content_sums, features, weights), last_sums + weights

  zeros = jnp.zeros(last_ref.shape, last_ref.dtype)
  content_sums, last_sums_ref[...] = walk(step, ([jnp.zeros_like(x) for x in content], zeros))
  _write(content_sums_ref, content_sums)


def _backward_kernel(
  content_ref: Any, lead_ref: Any, last_ref: Any, elements_ref: Any,
  content_slope_ref: Any, lead_slope_ref: Any, last_slope_ref: Any, lse_ref: Any, shift_ref: Any,
  content_sums_ref: Any, lead_sums_ref: Any, last_sums_ref: Any, total_ref: Any, *, walk: Walk,
) -> None:
  """The sums of the logits' gradient * scale; and of the softmax, by which to divide them, as `lse` is rounded."""
  content, content_slope, lse, shift = _pieces(content_ref), _pieces(content_slope_ref), lse_ref[...], shift_ref[...]

  def step(tile: Any, carry: Any) -> Any:
    content_sums, last_sums, total = carry
    features, scale, added = _element(elements_ref, tile)
    logits = _raw(features, content, last_ref[...], lead_ref[tile, :]) * scale + added
    of_weights = _raw(features, content_slope, last_slope_ref[...], lead_slope_ref[tile, :])
    softmax = jnp.exp2(logits - lse)
    of_raw = softmax * scale * (of_weights * scale + shift)
    lead_sums_ref[tile, :] = jnp.sum(of_raw, axis=0)
    total += jnp.sum(softmax, axis=0)
    return _plus_summed(content_sums, features, of_raw), last_sums + of_raw, total

  zeros = jnp.zeros(last_ref.shape, last_ref.dtype)
  content_sums, last_sums_ref[...], total_ref[0, :] = walk(
    step, ([jnp.zeros_like(x) for x in content], zeros, jnp.zeros_like(lse[0])))
  _write(content_sums_ref, content_sums)


def _elements_kernel(
  content_ref: Any, lead_ref: Any, last_ref: Any, elements_ref: Any,
  content_slope_ref: Any, lead_slope_ref: Any, last_slope_ref: Any, lse_ref: Any, shift_ref: Any,
  one_over_total_ref: Any, gradients_ref: Any, *, walk: Walk, num_rows: int,
) -> None:
  """The gradients of features and scale."""
  features, scale, added = _element(elements_ref, 0)

  def step(rows: Any, carry: Any) -> Any:
    of_features, of_scale = carry
    content, content_slope = _pieces(content_ref, rows), _pieces(content_slope_ref, rows)
    raw = _raw(features, content, last_ref[:, rows], lead_ref[0, rows])
    of_weights = _raw(features, content_slope, last_slope_ref[:, rows], lead_slope_ref[0, rows])
    softmax = jnp.exp2(raw * scale + added - lse_ref[0, rows][None]) * one_over_total_ref[0, rows][None]
    of_logits = softmax * (of_weights * scale + shift_ref[0, rows][None]) * (1 / LOG2_E)  # as `raw` and `content` are
    of_features = _plus_spread(of_features, content, of_logits * scale)
    return _plus_spread(of_features, content_slope, softmax * scale), of_scale + softmax * of_weights + of_logits * raw

  zeros = jnp.zeros((last_ref.shape[0], num_rows), last_ref.dtype)
  start = [zeros if x.ndim == 1 else jnp.zeros_like(x) for x in features]
  of_features, of_scale = walk(step, (start, zeros))
  if features[0].ndim == 1:
    of_features = [jnp.sum(x, axis=1) for x in of_features]
  _write(gradients_ref, of_features)
  gradients_ref[gradients_ref.shape[0] - 1, :] = jnp.sum(of_scale, axis=1)


# Channels, one by one or by the piece: lists of [W] and [R], or of [PIECE, W] and [PIECE, R].


def _channels(count: int) -> list[Any]:
  return list(range(count)) if count <= FEW_CHANNELS else [pl.ds(k, PIECE) for k in range(0, count, PIECE)]


def _pieces(ref: Any, rows: Any = slice(None)) -> list[jax.Array]:
  return [ref[k, rows] for k in _channels(ref.shape[0])]


def _write(ref: Any, pieces: Sequence[jax.Array]) -> None:
  for k, piece in zip(_channels(sum(x.size // x.shape[-1] for x in pieces)), pieces, strict=True):
    ref[k, :] = piece


def _element(ref: Any, tile: Any) -> tuple[list[jax.Array], jax.Array, jax.Array]:
  """Features; scale and what is added to the logit, [W, 1]."""
  count = ref.shape[1] - 2
  return [ref[tile, k, :] for k in _channels(count)], ref[tile, count, :][:, None], ref[tile, count + 1, :][:, None]


def _raw(features: list[jax.Array], content: list[jax.Array], last: jax.Array, lead: jax.Array) -> jax.Array:
  """Computes the logits before the scale, [W, R]."""
  raw = last + lead[None]
  for x, row in zip(features, content, strict=True):
    raw = raw + (x[:, None] * row[None] if x.ndim == 1 else _dot(x, row, 0, 0))
  return raw


def _plus_summed(sums: list[jax.Array], features: list[jax.Array], weights: jax.Array) -> list[jax.Array]:
  """The features, times weights [W, R], are added to sums over W."""
  if features[0].ndim == 1:
    return [x + jnp.sum(feature[:, None] * weights, axis=0) for x, feature in zip(sums, features, strict=True)]
  return [x + _dot(feature, weights, 1, 0) for x, feature in zip(sums, features, strict=True)]


def _plus_spread(sums: list[jax.Array], content: list[jax.Array], weights: jax.Array) -> list[jax.Array]:
  """The content, times weights [W, R], is added to sums over R; of single channels to [W, R], to be summed later."""
  if content[0].ndim == 1:
    return [x + row[None] * weights for x, row in zip(sums, content, strict=True)]
  return [x + _dot(row, weights, 1, 1) for x, row in zip(sums, content, strict=True)]


def _dot(a: jax.Array, b: jax.Array, axis: int, other: int) -> jax.Array:
  return jax.lax.dot_general(a, b, (((axis,), (other,)), ((), ())), precision=jax.lax.Precision.HIGHEST)
