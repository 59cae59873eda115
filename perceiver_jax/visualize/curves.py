"""Training curves: loss above accuracy, both against the step."""

from __future__ import annotations

import os
from itertools import cycle
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullLocator, PercentFormatter, StrMethodFormatter

from perceiver_jax.types import History
from perceiver_jax.visualize.canvas import (
  BLUE,
  GREY,
  HEADING_HEIGHT,
  INK,
  MARGIN,
  ORANGE,
  SMALL,
  Panel,
  new_figure,
  page_of,
  place,
  save,
  style_axes,
)

HEIGHT = 620

TRAIN: dict[str, Any] = dict(color=BLUE, linewidth=2, linestyle='-', marker='')
VALIDATION: dict[str, Any] = dict(color=ORANGE, linewidth=2, linestyle='-', marker='o', markersize=5)
TEST: dict[str, Any] = dict(color=INK, linestyle='', marker='*', markersize=13, markeredgecolor='white')


def training_curves(panel: Panel, history: History) -> None:
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


def curves_picture(path: str | os.PathLike[str], history: History) -> None:
  """Draws the loss of a run, and below it the first other figure that its evaluations measured, as one PNG.

  Args:
    path: where the PNG goes.
    history: the lines of metrics.jsonl; the names of the splits are those that it holds.
  """
  figure = new_figure(HEIGHT, 'Training')
  panel: Any = figure.subfigures(1, 1)
  page_of(panel, '')
  splits = list(dict.fromkeys(name.partition('/')[0] for line in history for name in line if name.endswith('/loss')))
  evaluated = [split for split in splits if split != 'train']
  others = [name for line in history for name in line
            if name.partition('/')[0] in evaluated and not name.endswith('/loss')]
  names = ['loss', *(others[0].partition('/')[2] for _ in others[:1])]
  left, top, gap, bottom = MARGIN + 42, HEADING_HEIGHT + 26, 56, 62
  height = (panel.bbox.height - top - bottom - gap * (len(names) - 1)) / len(names)
  for row, name in enumerate(names):
    axes = place(panel, left, top + row * (height + gap), panel.bbox.width - left - MARGIN, height)
    style_axes(axes)
    for split, colour in zip(['train', *evaluated], cycle((BLUE, ORANGE, INK, GREY)), strict=False):
      steps, values = series(history, f'{split}/{name}')
      style = TRAIN | dict(color=colour, marker='' if len(steps) > 1 else 'o', markersize=5)
      axes.plot(steps, values, **style, label=split)
    axes.set_title(name, loc='left', fontsize=SMALL + 1, color=INK, weight='bold', pad=8)
    axes.legend(fontsize=SMALL, labelcolor=INK, frameon=False)
  axes.set_xlabel('step', fontsize=SMALL, color=GREY)
  save(figure, path)


def curve_legend(panel: Panel, axes: Axes) -> None:
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
