"""Blocks of the GPU kernels of `weighted_sums`: operands in whole blocks, and partial sums of blocks.

Shapes: B examples, R rows of logits, S tiles of W elements, F channels of their features.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

MASKED = -1e30     # what is added to the logit of an element that does not count
FEW_CHANNELS = 4   # up to which a kernel writes out the products with features; with 8 its registers spill
PIECE = 16         # channels in a dot, the fewest that Triton takes
RUN = 32           # tiles; 224 x 224 elements and 512 rows are then 392 programs or more, for 132 multiprocessors
LOG2_E = math.log2(math.e)

Operands = list[tuple[str, jax.Array]]  # each after the name of the way it is cut


class Block(NamedTuple):
  """Describes what a program holds: powers of two, as Triton asks; on a TPU, multiples of its registers."""

  width: int  # places of a tile
  rows: int   # rows of logits
  warps: int | None = None


class Blocks(NamedTuple):
  """Holds the block of each pass; that of the forward pass is a multiple of the others."""

  forward: Block
  backward: Block
  elements: Block


FEW = Blocks(Block(16, 128, 1), Block(8, 128, 1), Block(16, 32, 1))
MANY = Blocks(Block(32, 64, 8), Block(32, 64, 8), Block(32, 32, 4))
ON_TPU = Blocks(Block(128, 128), Block(128, 128), Block(128, 128))


def blocks_of(num_channels: int, platform: str) -> Blocks:
  """Returns the blocks for a number of channels; `platform` is 'gpu' or 'tpu'."""
  if platform == 'tpu':
    return ON_TPU
  return FEW if num_channels <= FEW_CHANNELS else MANY


def operands_of(scores: Any, tiles: Any, block: Block) -> Operands:
  """Scores in units of log 2; and [B, S, F + 2, W]: features, scale, and what is added to the logit, 0 or MASKED.

  In whole blocks. Where nothing is valid all elements count, with scores of zero.
  """
  valid = tiles.valid
  operands = filled(jax.tree.map(lambda x: x * LOG2_E, where_any(valid, scores)), block)
  scale = jnp.ones_like(tiles.features, shape=tiles.features.shape[:3]) if tiles.scale is None else tiles.scale
  added = jnp.zeros_like(scale)
  if valid is not None:
    added = jnp.where(valid | ~jnp.any(valid, axis=(1, 2), keepdims=True), added, MASKED)
  (_, content), _, (_, last) = operands
  width = last.shape[1]
  elements = jnp.concatenate([
    _fill(jnp.swapaxes(tiles.features, 2, 3), content.shape[1], width),
    _fill(scale, width)[:, :, None],
    _fill(added, width, value=MASKED)[:, :, None]], axis=2)
  return [*operands, ('elements', elements)]


def filled(scores: Any, block: Block) -> Operands:
  """In whole blocks, by zeros."""
  content, (lead, last) = scores.content, scores.tables
  num_channels, num_rows = content.shape[1:]
  channels = max(1, num_channels) if num_channels <= FEW_CHANNELS else _whole(num_channels, PIECE)
  rows, width = _whole(num_rows, block.rows), _whole(last.shape[1], block.width)
  return [('content', _fill(content, channels, rows)), ('lead', _fill(lead, rows)), ('last', _fill(last, width, rows))]


def filled_rows(x: jax.Array, block: Block) -> tuple[str, jax.Array]:
  """Pads rows [B, R] to whole blocks."""
  return 'row', _fill(x[:, None], _whole(x.shape[1], block.rows))


def _whole(size: int, block: int) -> int:
  return pl.cdiv(size, block) * block


def _fill(x: jax.Array, *sizes: int, value: float = 0) -> jax.Array:
  """Up to these sizes along the last axes."""
  more = [size - had for size, had in zip(sizes, x.shape[-len(sizes):], strict=True)]
  return jnp.pad(x, [(0, 0)] * (x.ndim - len(sizes)) + [(0, missing) for missing in more], constant_values=value)


def where_any(valid: jax.Array | None, scores: Any) -> Any:
  """Zeros in examples of which nothing is valid."""
  if valid is None:
    return scores
  return jax.tree.map(lambda x: jnp.where(jnp.any(valid, axis=(1, 2))[:, None, None], x, 0), scores)


def partial_sums(
  kernel: Callable[..., None], operands: Operands, ways: Sequence[str], block: Block, interpret: bool,
) -> list[jax.Array]:
  """Runs `kernel` for every block of rows, strip of places and run of tiles, of every example.

  `ways` are those of the results, of which each has an axis of parts after the first: [B, parts, ..., R]. A kernel
  gets the references and `walk`, which folds a function of tile and carry over the tiles of its run.
  """
  shape = dict(operands)
  (batch_size, channels, num_rows), num_tiles = shape['content'].shape, shape['lead'].shape[1]
  width, tiles = shape['last'].shape[1], min(RUN, num_tiles)
  runs, strips = pl.cdiv(num_tiles, tiles), width // block.width
  example, run = (lambda i: jax.lax.div(i, np.int32(runs))), (lambda i: jax.lax.rem(i, np.int32(runs)))
  cuts = {
    'content': ((channels, block.rows), lambda r, w, i: (example(i), 0, r)),
    'lead': ((tiles, block.rows), lambda r, w, i: (example(i), run(i), r)),
    'last': ((block.width, block.rows), lambda r, w, i: (example(i), w, r)),
    'row': ((1, block.rows), lambda r, w, i: (example(i), 0, r)),
    'elements': ((tiles, channels + 2, block.width), lambda r, w, i: (example(i), run(i), 0, w)),
  }
  part = lambda r, w, i: (example(i), run(i) * strips + w, 0, r)
  results = {
    'content': (part, (runs * strips, channels)),
    'lead': (lambda r, w, i: (example(i), w, run(i), r), (strips, num_tiles)),
    'last': (lambda r, w, i: (example(i), run(i), w, r), (runs, width)),
    'row': (part, (runs * strips, 1)),
  }

  def walk(step: Callable[..., Any], start: Any) -> Any:
    is_whole = num_tiles % tiles == 0
    return jax.lax.fori_loop(
      0, tiles if is_whole else jnp.minimum(tiles, num_tiles - tiles * run(pl.program_id(2))), step, start)

  return pl.pallas_call(
    functools.partial(kernel, walk=walk),
    grid=(num_rows // block.rows, strips, batch_size * runs),
    in_specs=[pl.BlockSpec((None, *cuts[way][0]), cuts[way][1]) for way, _ in operands],
    out_specs=[pl.BlockSpec((None, None, *cuts[way][0]), results[way][0]) for way in ways],
    out_shape=[_like(operands, (batch_size, *results[way][1], num_rows)) for way in ways],
    **_compiled(block, interpret),
  )(*(x for _, x in operands))


def of_elements(
  kernel: Callable[..., None], operands: Operands, block: Block, interpret: bool,
) -> jax.Array:
  """Runs `kernel` for every strip of places of every tile -> [B, S, F + 1, W].

  A kernel gets the references, to all rows of logits, and `walk`, which folds a function of a slice of them and carry.
  """
  shape = dict(operands)
  (batch_size, channels, num_rows), num_tiles = shape['content'].shape, shape['lead'].shape[1]
  width = shape['last'].shape[1]
  cuts = {
    'content': ((channels, num_rows), lambda w, s, i: (i, 0, 0)),
    'lead': ((None, 1, num_rows), lambda w, s, i: (i, s, 0, 0)),
    'last': ((block.width, num_rows), lambda w, s, i: (i, w, 0)),
    'row': ((1, num_rows), lambda w, s, i: (i, 0, 0)),
    'elements': ((1, channels + 2, block.width), lambda w, s, i: (i, s, 0, w)),
  }

  def walk(step: Callable[..., Any], start: Any) -> Any:
    sliced = lambda i, carry: step(pl.ds(i * block.rows, block.rows), carry)
    return jax.lax.fori_loop(0, num_rows // block.rows, sliced, start)

  return pl.pallas_call(
    functools.partial(kernel, walk=walk, num_rows=block.rows),
    grid=(width // block.width, num_tiles, batch_size),
    in_specs=[pl.BlockSpec((None, *cuts[way][0]), cuts[way][1]) for way, _ in operands],
    out_specs=pl.BlockSpec((None, None, channels + 1, block.width), lambda w, s, i: (i, s, 0, w)),
    out_shape=_like(operands, (batch_size, num_tiles, channels + 1, width)),
    **_compiled(block, interpret),
  )(*(x[:, :, None] if way == 'lead' else x for way, x in operands))


def _like(operands: Operands, shape: tuple[int, ...]) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(shape, operands[0][1].dtype)


def _compiled(block: Block, interpret: bool) -> dict[str, Any]:
  params = None if block.warps is None else triton.CompilerParams(num_warps=block.warps, num_stages=1)
  return {'compiler_params': params, 'interpret': interpret}
