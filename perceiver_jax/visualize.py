"""Pictures of a run, for people: how it trained, what it predicts, where its latents look.

Every picture is drawn on a figure of its own and never through pyplot, so a notebook's backend, style and open figures
stay as they are. Hence the explicit colours and sizes: a reader's dark style must not leave white text on white.
Lengths are pixels, counted from the top left corner of a panel; text sizes are points.
"""

from __future__ import annotations

import bisect
import contextlib
import math
import os
import pathlib
from collections.abc import Sequence
from typing import Any, TypeAlias

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure, SubFigure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import Rectangle
from matplotlib.textpath import text_to_path
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullLocator, PercentFormatter, StrMethodFormatter

from perceiver_jax.types import History, UserError

Size: TypeAlias = tuple[float, float]                 # width, height
WIDTH, HEIGHT, DPI = 1400, 700, 100
MARGIN, GAP, HEADING_HEIGHT = 24, 10, 118             # a heading: the title, a panel's name, the line below it, and air
LINE_HEIGHT, CAPTION_HEIGHT = 17, 46                  # a caption: two lines below an image, and air
SMALL, MEDIUM, LARGE = 11, 14, 18
INK, GREY, PALE = '#222222', '#666666', '#DDDDDD'
BLUE, ORANGE, RED = '#0077BB', '#EE7733', '#CC3311'   # Paul Tol's 'vibrant' set: distinct to colour-blind readers too

TRAIN: dict[str, Any] = dict(color=BLUE, linewidth=2, linestyle='-', marker='')
VALIDATION: dict[str, Any] = dict(color=ORANGE, linewidth=2, linestyle='-', marker='o', markersize=5)
TEST: dict[str, Any] = dict(color=INK, linestyle='', marker='*', markersize=13, markeredgecolor='white')


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
      pixels are in row-major order. None leaves that panel out.
    class_names: E names.
    title: one line.

  Raises:
    UserError: the file cannot be written.
    ValueError: `attention` is not over the pixels of `images`.
  """
  figure = Figure(figsize=(WIDTH / DPI, HEIGHT / DPI), dpi=DPI, facecolor='white')
  font: dict[str, Any] = dict(size=LARGE, weight='bold')
  title = shorten(title, WIDTH - 2 * MARGIN, **font)
  figure.text(MARGIN / WIDTH, 1 - 24 / HEIGHT, title, color=INK, va='center', parse_math=False, **font)
  widths = (400, 480, 520) if attention is not None else (400, 1000)
  panels = figure.subfigures(1, len(widths), squeeze=False, width_ratios=widths)[0]
  training_curves(panels[0], history)
  prediction_grid(panels[1], images, labels, probabilities, class_names)
  if attention is not None:
    attention_maps(panels[2], images, labels, attention)
  save(figure, pathlib.Path(path))


def save(figure: Figure, path: pathlib.Path) -> None:
  """Writes a PNG beside `path` and moves it there, so that nobody meets half a picture."""
  partial = path.with_name(f'.{path.name}.{os.getpid()}.partial')
  try:
    with partial.open('wb') as file:
      FigureCanvasAgg(figure).print_png(file)
    os.replace(partial, path)
  except OSError as error:
    raise UserError(f'cannot write the picture {path}: {error.strerror}; name a folder that can be written') from error
  finally:
    with contextlib.suppress(OSError):                # gone already, or never made
      partial.unlink()


def training_curves(panel: SubFigure, history: History) -> None:
  """Loss above accuracy, both against the step."""
  page_of(panel, 'Training')
  left, top, gap, bottom = MARGIN + 42, HEADING_HEIGHT + 26, 56, 62
  width = panel.bbox.width - left - MARGIN
  height = (panel.bbox.height - top - gap - bottom) / 2
  loss = place(panel, left, top, width, height)
  accuracy = place(panel, left, top + height + gap, width, height)
  metric_curves(loss, history, 'loss', '{:.3g}')
  scale_loss(loss)
  curve_legend(panel, loss)
  metric_curves(accuracy, history, 'accuracy', '{:.1%}')
  accuracy.yaxis.set_major_formatter(PercentFormatter(1))
  accuracy.set_ylim(top=min(accuracy.get_ylim()[1], 1.02))
  accuracy.set_xlabel('step', fontsize=SMALL, color=GREY)


def curve_legend(panel: SubFigure, axes: Axes) -> None:
  """One key for both plots, where no curve can run into it."""
  anchor = ((MARGIN - 8) / panel.bbox.width, 1 - 80 / panel.bbox.height)
  panel.legend(axes.lines[1:], ('train', 'validation', 'test'), loc='upper left', bbox_to_anchor=anchor, ncols=3,
               fontsize=SMALL, labelcolor=INK, frameon=False, columnspacing=1.4, handlelength=1.6)


def metric_curves(axes: Axes, history: History, name: str, number: str) -> None:
  """Training as measured (faint) and smoothed, validation as marked points, the test result as a star and a number."""
  style_axes(axes)
  steps, values = series(history, f'train/{name}')
  axes.plot(steps, values, **TRAIN | dict(linewidth=1, alpha=0.3))
  axes.plot(steps, smooth(values), **TRAIN | dict(marker='o' if len(steps) == 1 else ''))
  steps, values = series(history, f'validation/{name}')
  axes.plot(steps, values, **VALIDATION, markevery=1 + len(steps) // 25)
  steps, values = series(history, f'test/{name}')
  axes.plot(steps[-1:], values[-1:], **TEST, clip_on=False, zorder=5)
  axes.set_xlim(0, 1.03 * max([1, *(line['step'] for line in history)]))
  axes.set_title(name.capitalize(), loc='left', fontsize=SMALL + 1, color=INK, weight='bold', pad=8)
  if len(values):
    axes.set_title('test ' + number.format(values[-1]), loc='right', fontsize=SMALL + 1, color=INK, pad=8)
  if not any(np.size(line.get_xdata()) for line in axes.lines):
    axes.set(xticks=[], yticks=[])
    axes.text(0.5, 0.5, 'nothing measured yet', transform=axes.transAxes, ha='center', va='center', color=GREY)


def series(history: History, name: str) -> tuple[np.ndarray, np.ndarray]:
  """The finite values of one metric: steps [n] and values [n], float64."""
  points = [(line['step'], line[name]) for line in history if np.isfinite(line.get(name, np.nan))]
  steps, values = np.array(points, np.float64).reshape(-1, 2).T
  return steps, values


def smooth(values: np.ndarray) -> np.ndarray:
  """The mean over a centred window of about a fifteenth of the curve, narrower at its steep start. [n] -> [n]."""
  position = np.arange(len(values))
  start = position - np.minimum(position, len(values) // 30)
  end = np.minimum(2 * position - start + 1, len(values))
  total = np.concatenate([[0.0], np.cumsum(values)])
  return (total[end] - total[start]) / (end - start)


def scale_loss(axes: Axes) -> None:
  """A logarithmic axis where the loss fell far enough to need one."""
  values = np.concatenate([line.get_ydata() for line in axes.lines])
  if len(values) and 0 < 10 * values.min() < values.max():
    axes.set_yscale('log')
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 3)))
    axes.yaxis.set_major_formatter(StrMethodFormatter('{x:g}'))
    axes.yaxis.set_minor_locator(NullLocator())


def style_axes(axes: Axes) -> None:
  """Two spines, a pale grid, a few ticks."""
  axes.set_facecolor('white')
  for side, spine in axes.spines.items():
    spine.set(visible=side in ('left', 'bottom'), color=GREY, linewidth=0.8)
  axes.grid(True, color=PALE, linewidth=0.8, linestyle='-')
  axes.set_axisbelow(True)
  axes.tick_params(labelsize=SMALL, color=GREY, labelcolor=GREY, width=0.8, length=3)
  axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
  axes.xaxis.set_major_formatter(EngFormatter(sep=''))
  axes.yaxis.set_major_locator(MaxNLocator(5))


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
  """`at_most` mistakes, then right ones of varied classes, more mistakes. is_wrong, labels [B] -> count indices."""
  wrong, right = np.flatnonzero(is_wrong), np.flatnonzero(~is_wrong)
  right = right[different_examples(labels[right], count)]
  return np.concatenate([wrong[:at_most], right, wrong[at_most:]])[:count]


def attention_maps(panel: SubFigure, images: np.ndarray, labels: np.ndarray, attention: np.ndarray) -> None:
  """A few latents' attention over a few images, in the first and (where there are several) the last cross-attend."""
  num_turns, num_images, _, num_pixels = attention.shape
  if num_pixels != images.shape[1] * images.shape[2]:
    raise ValueError(f'attention over {num_pixels} pixels does not fit images of {images.shape[1]} x {images.shape[2]}')
  turns = {'': 0} if num_turns == 1 else {'first': 0, 'last': num_turns - 1}
  which = 'averaged over heads' if num_turns == 1 else f'first and last of {num_turns} cross-attends'
  page = page_of(panel, 'Where latents look', f'attention over the pixels, {which}')
  left, top, width, height = body(page)
  examples = different_examples(labels[:num_images], 4 // len(turns))
  row_height = (height - 60) / (len(examples) * len(turns))
  num_latents = int(np.clip(width / fitted(width, row_height, images.shape)[0], 4, 6)) - 1
  latents = different_latents([attention[turn, i] for turn in turns.values() for i in examples], num_latents)
  pitch = (width - 20) / (1 + len(latents))
  size = fitted(pitch - GAP, row_height - GAP, images.shape)
  centres = [left + (column + 0.5) * pitch + 20 * (column > 0) for column in range(1 + len(latents))]
  for centre, name in zip(centres, ('image', *(f'latent {latent}' for latent in latents)), strict=True):
    write(page, name, centre, top + 6, ha='center')
  top += 18
  for i in examples:
    maps = {name: attention[turn, i, latents] for name, turn in turns.items()}
    top = attention_rows(page, images[i], maps, centres, top, size)
  brightness_key(page, min(centres[1] - size[0] / 2, left + width - 316), top + 10)


def attention_rows(
    page: Axes, image: np.ndarray, maps: dict[str, np.ndarray], centres: list[float], top: float, size: Size
) -> float:
  """The image, and beside it a row of maps [num_latents_shown, M] for each cross-attend, by name; returns their end."""
  row_height = max(size[1] + GAP, 40)                  # a row has room for its name even where images are flat
  show_image(page, image, centres[0], top + (len(maps) - 1) * row_height / 2, size)
  for name, latents in maps.items():
    write(page, name, centres[1] - size[0] / 2 - 12, top + size[1] / 2, color=GREY, ha='center', rotation=90)
    for centre, weights in zip(centres[1:], latents, strict=True):
      show_image(page, overlay(image, weights), centre, top, size)
    top += row_height
  return top


def brightness_key(page: Axes, left: float, middle: float) -> None:
  """What the colours of the maps mean."""
  write(page, 'no attention', left, middle, color=GREY)
  left += text_width('no attention') + 8
  show_image(page, overlay(np.zeros((1, 90, 1)), np.linspace(0, 1, 90)), left + 45, middle - 6, (90, 12))
  write(page, "the map's peak", left + 98, middle, color=GREY)


def different_examples(labels: np.ndarray, count: int) -> list[int]:
  """The first examples of different classes, and then simply the first. labels [B] -> count indices, or B."""
  _, first = np.unique(labels, return_index=True)
  return sorted(range(len(labels)), key=lambda i: (i not in first, i))[:count]


def different_latents(maps: Sequence[np.ndarray], count: int) -> list[int]:
  """Latents that look at few pixels, and at others than an earlier choice does. maps: each [N, M] -> indices."""
  maps = [each.astype(np.float32) / each.sum(-1, keepdims=True, dtype=np.float32) for each in maps]
  entropy = np.mean([-(each * np.log(each + 1e-12)).sum(-1) for each in maps], 0)
  score = np.maximum(math.log(maps[0].shape[1]) - entropy, 1e-6)  # never 0: distance counts for uniform maps too
  distance = np.full_like(score, 2)                    # the most that two distributions can differ by
  chosen: list[int] = []
  for _ in range(min(count, len(score))):
    distance[chosen] = -1
    chosen.append(int(np.argmax(score * distance)))
    distance = np.minimum(distance, np.mean([np.abs(each - each[chosen[-1]]).sum(-1) for each in maps], 0))
  return sorted(chosen)


def overlay(image: np.ndarray, weights: np.ndarray) -> np.ndarray:
  """The image in dim grey, lit by the attention. image [H, W, C] uint8, weights [H * W] -> [H, W, 3] in 0..1."""
  share = weights.astype(np.float32).reshape(image.shape[:2])
  share = share / share.max()
  dim = 0.3 * (1 - share) * image.mean(-1) / 255
  return np.minimum(matplotlib.colormaps['inferno'](0.95 * share)[..., :3] + dim[..., None], 1)


def page_of(panel: SubFigure, heading: str, explanation: str = '') -> Axes:
  """Axes over a whole panel, in pixels (much quicker to fill than axes for every image), and what the panel shows."""
  page = place(panel, 0, 0, panel.bbox.width, panel.bbox.height)
  page.set(xlim=(0, panel.bbox.width), ylim=(panel.bbox.height, 0))
  page.set_axis_off()
  write(page, heading, MARGIN, 68, size=MEDIUM, weight='bold')
  write(page, explanation, MARGIN, 94, color=GREY)
  return page


def place(panel: SubFigure, left: float, top: float, width: float, height: float) -> Axes:
  """Axes at a place given in pixels."""
  across, down = panel.bbox.width, panel.bbox.height
  return panel.add_axes((left / across, 1 - (top + height) / down, width / across, height / down))


def body(page: Axes) -> tuple[float, float, float, float]:
  """Left, top, width and height of what a panel's heading leaves."""
  return MARGIN, HEADING_HEIGHT, page.bbox.width - 2 * MARGIN, page.bbox.height - HEADING_HEIGHT - 8


def fitted(width: float, height: float, shape: tuple[int, ...]) -> Size:
  """The largest width and height of an image of shape [..., H, W, C] in that room."""
  aspect = shape[-2] / shape[-3]
  return min(width, height * aspect), min(height, width / aspect)


def show_image(page: Axes, image: np.ndarray, centre: float, top: float, size: Size, frame: str = PALE) -> None:
  """An image [H, W, 1 or 3], stretched to a width and height, framed."""
  left, (width, height) = centre - size[0] / 2, size
  page.imshow(image, extent=(left, left + width, top + height, top), aspect='auto', origin='upper',
              interpolation='auto', cmap='gray', vmin=0, vmax=255)
  page.add_patch(Rectangle((left, top), width, height, fill=False, color=frame, linewidth=1 if frame == PALE else 3))


def write(page: Axes, text: str, left: float, middle: float, size: int = SMALL, **style: Any) -> None:
  """One line of text; a dollar sign in it is a dollar sign."""
  page.text(left, middle, text, size=size, va='center', parse_math=False, **{'color': INK} | style)


def shorten(text: str, width: float, **font: Any) -> str:
  """The text, its end replaced by an ellipsis where it is wider than `width` pixels."""
  if text_width(text, **font) <= width:
    return text
  too_long = bisect.bisect(range(len(text)), width, key=lambda end: text_width(text[:end] + '…', **font))
  return text[:max(0, too_long - 1)].rstrip() + '…'


def text_width(text: str, **font: Any) -> float:
  """In pixels, in the small font unless `font` (size, weight) says otherwise."""
  font_properties = FontProperties(**{'size': SMALL} | font)
  return text_to_path.get_text_width_height_descent(text, font_properties, ismath=False)[0] * DPI / 72
