"""A classifier's run in one picture: how it trained, what it predicts, where its latents look."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import SubFigure

from perceiver_jax.types import History
from perceiver_jax.visualize.attention import (
  attention_rows,
  brightness_key,
  column_names,
  different_latents,
  row_height,
  share_of_peak,
)
from perceiver_jax.visualize.canvas import (
  CAPTION_HEIGHT,
  GAP,
  INK,
  LINE_HEIGHT,
  PALE,
  RED,
  body,
  fitted,
  new_figure,
  page_of,
  save,
  shorten,
  show_image,
  text_width,
  write,
)
from perceiver_jax.visualize.curves import training_curves

HEIGHT = 700


def classification_summary(
    path: str | os.PathLike[str], *, history: History, images: np.ndarray, labels: np.ndarray,
    probabilities: np.ndarray, attention: np.ndarray | None, class_names: Sequence[str], title: str,
) -> None:
  """Draws a classifier's run as one PNG of 1400 x 700 pixels: curves, test predictions, attention over the pixels.

  Args:
    path: where the PNG goes; it is replaced whole or not at all.
    history: the lines of metrics.jsonl; any metric may be absent or not finite.
    images: [B, H, W, C] uint8, C = 1 or 3, B at least 1; real examples only, no padding.
    labels: [B] integers.
    probabilities: [B, E] floats.
    attention: [T, A, N, M] softmax weights of T cross-attends, mean over heads, for the first A images; the M = H * W
      pixels, or the cells of a coarser grid of the same proportions, are in row-major order. None, as of a model
      without cross-attends, leaves that panel out.
    class_names: E names.
    title: one line.

  Raises:
    UserError: the file cannot be written.
    ValueError: `attention` is not over the pixels of `images`, nor over such a grid.
  """
  figure = new_figure(HEIGHT, title)
  widths = (400, 480, 520) if attention is not None else (400, 1000)
  panels = figure.subfigures(1, len(widths), squeeze=False, width_ratios=widths)[0]
  training_curves(panels[0], history)
  prediction_grid(panels[1], images, labels, probabilities, class_names)
  if attention is not None:
    attention_maps(panels[2], images, labels, attention)
  save(figure, path)


def prediction_grid(
    panel: SubFigure, images: np.ndarray, labels: np.ndarray, probabilities: np.ndarray, class_names: Sequence[str]
) -> None:
  """Images with their predicted class; a row of mistakes comes first, framed in red and with the true class."""
  predictions = probabilities.argmax(-1)
  is_wrong = predictions != labels
  count = f'{is_wrong.sum():,} of {len(labels):,} wrong'
  page = page_of(panel, 'Test predictions', count + ': red frame, true class below' * bool(is_wrong.any()))
  longest = max(text_width(f'{class_names[i]} · 100%') for i in {*predictions, *labels})
  rows, columns = grid_shape(page, images.shape, min(longest + GAP, 140))
  shown = mistakes_first(is_wrong, labels, rows * columns, at_most=columns)
  left, top, width, height = body(page)
  pitch = width / columns
  size = fitted(pitch - GAP, height / rows - CAPTION_HEIGHT, images.shape)
  for row in range(0, len(shown), columns):
    for column, i in enumerate(shown[row:row + columns]):
      centre = left + (column + 0.5) * pitch
      show_image(page, images[i], centre, top, size, frame=RED if is_wrong[i] else PALE)
      names = [class_names[c] for c in ((predictions[i], labels[i]) if is_wrong[i] else (predictions[i],))]
      caption(page, centre, top + size[1] + 14, pitch - GAP / 2, names, float(probabilities[i].max()))
    top += size[1] + (CAPTION_HEIGHT if is_wrong[shown[row:row + columns]].any() else CAPTION_HEIGHT - LINE_HEIGHT)


def caption(page: Axes, centre: float, middle: float, width: float, names: list[str], prob: float) -> None:
  """The prediction, with its probability where there is room; below it the true class, if `names` has a second one."""
  line = f'{names[0]} · {prob:.0%}'
  if text_width(line) > width:
    line = shorten(names[0], width)
  write(page, line, centre, middle, color=RED if names[1:] else INK, ha='center')
  for truth in names[1:]:
    write(page, shorten(f'true: {truth}', width), centre, middle + LINE_HEIGHT, ha='center')


def grid_shape(page: Axes, shape: tuple[int, ...], caption_width: float) -> tuple[int, int]:
  """Rows and columns: first as many of the images [B, H, W, C] as stay readable, then those as large as they can be."""
  _, _, width, height = body(page)
  aspect = shape[2] / shape[1]
  most_columns = max(1, int(width / max(caption_width, 100 * math.sqrt(aspect))))
  most_rows = max(1, int(height / (90 / math.sqrt(aspect) + CAPTION_HEIGHT)))
  count = min(shape[0], most_columns * most_rows)
  shapes = [(math.ceil(count / columns), columns) for columns in range(1, min(count, most_columns) + 1)]
  return max(shapes, key=lambda grid: fitted(width / grid[1], height / grid[0] - CAPTION_HEIGHT, shape))


def mistakes_first(is_wrong: np.ndarray, labels: np.ndarray, count: int, *, at_most: int) -> np.ndarray:
  """Chooses `at_most` mistakes, then right ones of varied classes, mistakes. is_wrong, labels [B] -> count indices."""
  wrong, right = np.flatnonzero(is_wrong), np.flatnonzero(~is_wrong)
  right = right[different_examples(labels[right], count)]
  return np.concatenate([wrong[:at_most], right, wrong[at_most:]])[:count]


def attention_maps(panel: SubFigure, images: np.ndarray, labels: np.ndarray, attention: np.ndarray) -> None:
  """A few latents' attention over a few images, in the first and (where there are several) the last cross-attend."""
  num_turns, num_images, _, num_cells = attention.shape
  grid = cells_of(images.shape[1:3], num_cells)
  turns = {'': 0} if num_turns == 1 else {'first': 0, 'last': num_turns - 1}
  which = 'averaged over heads' if num_turns == 1 else f'first and last of {num_turns} cross-attends'
  over = 'the pixels' if grid == images.shape[1:3] else f'{grid[0]} x {grid[1]} cells'
  page = page_of(panel, 'Where latents look', f'attention over {over}, {which}')
  left, top, width, height = body(page)
  examples = different_examples(labels[:num_images], 4 // len(turns))
  room = (height - 60) / (len(examples) * len(turns))
  num_latents = int(np.clip(width / fitted(width, room, images.shape)[0], 4, 6)) - 1
  latents = different_latents([attention[turn, i] for turn in turns.values() for i in examples], num_latents)
  pitch = (width - 20) / (1 + len(latents))
  size = fitted(pitch - GAP, room - GAP, images.shape)
  centres = [left + (column + 0.5) * pitch + 20 * (column > 0) for column in range(1 + len(latents))]
  column_names(page, centres, latents, top + 6)
  top += 18
  for i in examples:
    rows = [(name, share_of_peak(attention[turn, i, latents]).reshape(-1, *grid)) for name, turn in turns.items()]
    show_image(page, images[i], centres[0], top + (len(rows) - 1) * row_height(size) / 2, size)
    top = attention_rows(page, images[i], rows, centres, top, size)
  brightness_key(page, min(centres[1] - size[0] / 2, left + width - 316), top + 10)


def cells_of(shape: tuple[int, ...], num_cells: int) -> tuple[int, int]:
  """Rows and columns of `num_cells` cells in the proportions of an image [H, W]; ValueError where there are none."""
  height, width = shape
  rows = round(math.sqrt(num_cells * height / width))
  columns = round(math.sqrt(num_cells * width / height))
  if rows * columns != num_cells or rows > height:
    raise ValueError(f'attention over {num_cells} cells does not fit images of {height} x {width}')
  return rows, columns


def different_examples(labels: np.ndarray, count: int) -> list[int]:
  """The first examples of different classes, and then simply the first. labels [B] -> count indices, or B."""
  _, first = np.unique(labels, return_index=True)
  return sorted(range(len(labels)), key=lambda i: (i not in first, i))[:count]
