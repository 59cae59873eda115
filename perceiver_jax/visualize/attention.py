"""Draws where latents look: the attention of a cross-attend over the pixels, or over coarser cells.

T cross-attends, N latents, M = h * w or t * h * w cells in row-major order.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes

from perceiver_jax.types import UserError
from perceiver_jax.visualize.canvas import (
  GAP,
  GREY,
  LINE_HEIGHT,
  MARGIN,
  TITLE_HEIGHT,
  WIDTH,
  Size,
  count_of,
  evenly_spaced,
  fitted,
  save,
  sheet,
  show_image,
  text_width,
  write,
)

MOST_LATENTS, MOST_ROWS = 12, 8                       # more latents than that leave no room for their names


def attention_over_pixels(
    path: str | os.PathLike[str], image: np.ndarray, attention: np.ndarray, latents: Sequence[int] | None = None,
    grid: tuple[int, ...] | None = None,
) -> None:
  """Draws an image and, beside it, a row of maps for each cross-attend: what each of some latents attends to.

  The maps are shown over the image in dim grey, each as bright as its own peak allows.

  Args:
    path: where the PNG, 1400 pixels wide, goes; it is replaced whole or not at all.
    image: [H, W, C] uint8, C = 1 or 3; or, for a grid (t, h, w), its frames [t, H, W, C].
    attention: [T, N, M] weights of T cross-attends, averaged over heads, finite and not negative. They need not sum
      to 1: where the inputs hold more than this image, pass the M columns that belong to it.
    latents: which rows of N to show, at most 12. By default six that look at few cells, and at different ones.
    grid: the (h, w) or (t, h, w) that M unfolds to: (56, 56) for a model that takes 224 x 224 pixels in patches of 4.
      By default the pixels themselves. Of many time steps some are shown, evenly spaced.

  Raises:
    UserError: the shapes do not fit each other, a latent does not exist, or the file cannot be written.
  """
  frames, grid = _frames_and_grid(image, attention, grid)
  num_turns, num_latents, _ = attention.shape
  latents = different_latents(list(attention), 6) if latents is None else _existing(latents, num_latents)
  maps = share_of_peak(attention[:, latents]).reshape(num_turns, len(latents), *grid)
  steps = evenly_spaced(grid[0], max(1, MOST_ROWS // num_turns))
  number = '{}/{}' if num_turns < 10 else '{}'         # what fits beside a flat image
  names = [number.format(turn + 1, num_turns) * (num_turns > 1) for turn in range(num_turns)]

  pitch = min((WIDTH - 2 * MARGIN - 20) / (1 + len(latents)), 220)
  size = fitted(pitch - GAP, 200, frames.shape)
  longest = f'step {grid[0]} of {grid[0]}' if grid[0] > 1 else f'latent {num_latents}'
  pitch = max(size[0] + GAP, min(pitch, text_width(longest) + GAP))
  group_height = num_turns * row_height(size) + (LINE_HEIGHT + GAP) * (grid[0] > 1)
  cells = 'pixels' if grid[1:] == frames.shape[1:3] else f'{grid[1]} x {grid[2]} cells'
  what = f'attention over the {cells}, averaged over heads' + f', in {num_turns} cross-attends' * (num_turns > 1)
  what += f', at {count_of(len(steps), grid[0])} time steps' * (grid[0] > 1)
  figure, page = sheet(TITLE_HEIGHT + 18 + len(steps) * group_height + 44, 'Where latents look', what)
  centres = [MARGIN + (column + 0.5) * pitch + 20 * (column > 0) for column in range(1 + len(latents))]
  column_names(page, centres, latents, TITLE_HEIGHT + 6)
  top: float = TITLE_HEIGHT + 18
  for step in steps:
    show_image(page, frames[step], centres[0], top, size)
    attention_rows(page, frames[step], list(zip(names, maps[:, :, step], strict=True)), centres, top, size)
    if grid[0] > 1:
      write(page, f'step {step + 1} of {grid[0]}', centres[0], top + size[1] + 12, color=GREY, ha='center')
    top += group_height
  brightness_key(page, centres[1] - size[0] / 2, top + 10)
  save(figure, path)


def _frames_and_grid(
    image: np.ndarray, attention: np.ndarray, grid: tuple[int, ...] | None
) -> tuple[np.ndarray, tuple[int, int, int]]:
  """The image at each time step [t, H, W, C], and the grid as (t, h, w); or says what does not fit."""
  if image.ndim not in (3, 4) or image.shape[-1] not in (1, 3) or image.dtype != np.uint8 or not image.size:
    raise UserError(f'a picture of attention needs an image [H, W, 1 or 3] of uint8, not {image.dtype} of shape '
                    f'{image.shape}')
  grid = image.shape[:-1] if grid is None else tuple(grid)
  if len(grid) not in (2, 3) or min(grid) < 1:
    raise UserError(f'the grid of the attention is (h, w) or (t, h, w), not {grid}')
  if attention.ndim != 3 or not attention.size or attention.shape[2] != math.prod(grid):
    raise UserError(f'attention of shape {attention.shape} does not fit a grid of {" x ".join(map(str, grid))} = '
                    f'{math.prod(grid)} cells: it needs [cross-attends, latents, cells]; say which grid its cells have')
  if not (np.isfinite(attention).all() and attention.min() >= 0):
    raise UserError('attention holds negative values or values that are not finite; pass the weights after the softmax')
  t, h, w = (1, *grid)[-3:]
  if image.ndim == 4 and len(image) != t:
    raise UserError(f'frames of shape {image.shape} do not fit a grid of {t} x {h} x {w} cells: as many frames as time '
                    'steps, or a single image [H, W, C]')
  return np.broadcast_to(image, (t, *image.shape[-3:])), (t, h, w)


def _existing(latents: Sequence[int], num_latents: int) -> list[int]:
  if not 1 <= len(latents) <= MOST_LATENTS or min(latents) < 0 or max(latents) >= num_latents:
    raise UserError(f'cannot show the latents {list(latents)}: name 1 to {MOST_LATENTS} of the {num_latents} latents, '
                    f'by numbers from 0 to {num_latents - 1}')
  return list(latents)


def column_names(page: Axes, centres: list[float], latents: list[int], middle: float) -> None:
  """Labels the columns: the image, and the maps of some latents."""
  for centre, name in zip(centres, ('image', *(f'latent {latent}' for latent in latents)), strict=True):
    write(page, name, centre, middle, ha='center')


def attention_rows(
    page: Axes, image: np.ndarray, rows: list[tuple[str, np.ndarray]], centres: list[float], top: float, size: Size
) -> float:
  """Rows of maps over an image, right of the first column: a name and shares [num_latents_shown, h, w] each.

  Returns where they end.
  """
  for name, latents in rows:
    write(page, name, centres[1] - size[0] / 2 - 12, top + size[1] / 2, color=GREY, ha='center', rotation=90)
    for centre, share in zip(centres[1:], latents, strict=True):
      show_image(page, overlay(image, share), centre, top, size)
    top += row_height(size)
  return top


def row_height(size: Size) -> float:
  """From one row of maps to the next: room for a row's name even where images are flat."""
  return max(size[1] + GAP, 40)


def brightness_key(page: Axes, left: float, middle: float) -> None:
  """Explains the colours of the maps."""
  write(page, 'no attention', left, middle, color=GREY)
  left += text_width('no attention') + 8
  show_image(page, overlay(np.zeros((1, 90, 1)), np.linspace(0, 1, 90)[None]), left + 45, middle - 6, (90, 12))
  write(page, "the map's peak", left + 98, middle, color=GREY)


def different_latents(maps: Sequence[np.ndarray], count: int) -> list[int]:
  """Latents that look at few pixels, and at others than an earlier choice does. maps: each [N, M] -> indices."""
  totals = [each.sum(-1, keepdims=True, dtype=np.float32) for each in maps]
  maps = [each.astype(np.float32) / np.maximum(total, 1e-30) for each, total in zip(maps, totals, strict=True)]
  # A latent that looks at nothing here (but at other inputs) is as dull as one that looks everywhere.
  most = math.log(maps[0].shape[1])
  entropy = np.mean([np.where(each.any(-1), -(each * np.log(each + 1e-12)).sum(-1), most) for each in maps], 0)
  score = np.maximum(most - entropy, 1e-6)             # never 0: distance counts for uniform maps too
  distance = np.full_like(score, 2)                    # the most that two distributions can differ by
  chosen: list[int] = []
  for _ in range(min(count, len(score))):
    distance[chosen] = -1
    chosen.append(int(np.argmax(score * distance)))
    distance = np.minimum(distance, np.mean([np.abs(each - each[chosen[-1]]).sum(-1) for each in maps], 0))
  return sorted(chosen)


def share_of_peak(weights: np.ndarray) -> np.ndarray:
  """Weights [..., M] as shares of the largest of the M, float32; 0 where no cell gets any."""
  weights = weights.astype(np.float32)
  peak = weights.max(-1, keepdims=True)
  return weights / np.where(peak > 0, peak, 1)


def overlay(image: np.ndarray, share: np.ndarray) -> np.ndarray:
  """The image in dim grey, lit by the attention. image [H, W, C] uint8, share [h, w] in 0..1 -> [., ., 3] in 0..1.

  The finer of the two decides the size of the result; a cell of the coarser covers the pixels below it, unblurred.
  """
  height, width = np.maximum(image.shape[:2], share.shape)
  grey, share = stretched(image.mean(-1), height, width), stretched(share, height, width)
  dim = 0.3 * (1 - share) * grey / 255
  return np.minimum(matplotlib.colormaps['inferno'](0.95 * share)[..., :3] + dim[..., None], 1)


def stretched(cells: np.ndarray, height: int, width: int) -> np.ndarray:
  """Cells [h, w], each repeated over the pixels it covers -> [height, width]."""
  rows, columns = np.arange(height) * cells.shape[0] // height, np.arange(width) * cells.shape[1] // width
  return cells[rows[:, None], columns]
