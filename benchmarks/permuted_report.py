"""What the permuted study found: the line for each run, the table beside the paper's, the picture.

A study is {'date', 'hardware', 'versions', 'runs': [{'seed', 'model', 'order': 'raw' | 'permuted', 'parameters',
'examples', 'accuracy': {'25%', '50%', '100%'}}]}, accuracies from 0 to 1 on the test records.
"""

from __future__ import annotations

import json
import pathlib
import statistics
from collections.abc import Mapping
from typing import Any

from matplotlib.ticker import PercentFormatter

from perceiver_jax.visualize import canvas

MARK = '<!-- permuted -->\n'
NAMES = {
  'io': 'Perceiver IO',
  'perceiver': 'Perceiver, the original',
  'transformer': 'Transformer, 10 x 10 pixels',
  'vit': 'ViT, 4 x 4 patches',
  'vit,rgb': 'ViT without Fourier features',
  'resnet20': 'ResNet-20',
  'resnet20,rgb': 'ResNet-20 without Fourier features',
}
# ImageNet top-1 in %, raw and permuted [P1 tables 1, 2], of ResNet-50, ViT-B/16 and the Transformer on 64 x 64.
PRINTED = {
  'perceiver': (78.0, 78.0), 'resnet20': (73.5, 39.4), 'vit': (76.7, 61.7), 'transformer': (57.0, 57.0)}
COLOURS = {'raw': canvas.BLUE, 'permuted': canvas.ORANGE}


def write(study: Mapping[str, Any], path: pathlib.Path, picture: pathlib.Path, readme: pathlib.Path | None) -> None:
  """Writes the JSON, a run per line, and the picture; puts the table into a README between its two marks."""
  path.parent.mkdir(parents=True, exist_ok=True)
  head = json.dumps({name: value for name, value in study.items() if name != 'runs'}, indent=2)
  runs = ',\n'.join('    ' + json.dumps(run) for run in study['runs'])
  path.write_text(f'{head[:-2]},\n  "runs": [\n{runs}\n  ]\n}}\n')
  draw(study, picture)
  if readme:
    before, _, after = readme.read_text().split(MARK)
    readme.write_text(f'{before}{MARK}{table(study)}{MARK}{after}')


def table(study: Mapping[str, Any]) -> str:
  """Markdown: mean accuracies in %, their smallest and largest where there are several seeds, and the paper's."""
  budget = study['runs'][0]['examples']
  lines = [
    f'| test accuracy in % after 25 / 50 / **100 %** of {budget:,} examples | parameters | raw | permuted | change | '
    'ImageNet, printed |',
    '|---|---|---|---|---|---|',
  ]
  for model, name in NAMES.items():
    raw, permuted = _mean(study, model, 'raw', '100%'), _mean(study, model, 'permuted', '100%')
    parameters = _runs(study, model, 'raw')[0]['parameters']
    printed = '{:.1f} -> {:.1f}'.format(*PRINTED[model]) if model in PRINTED else ''
    lines.append(
      f'| {name} | {parameters:,} | {_cell(study, model, "raw")} | {_cell(study, model, "permuted")} | '
      f'{100 * (permuted - raw):+.1f} | {printed} |')
  return '\n'.join(lines) + '\n'


def _runs(study: Mapping[str, Any], model: str, order: str) -> list[dict[str, Any]]:
  return [run for run in study['runs'] if (run['model'], run['order']) == (model, order)]


def _mean(study: Mapping[str, Any], model: str, order: str, share: str) -> float:
  return statistics.fmean(run['accuracy'][share] for run in _runs(study, model, order))


def _cell(study: Mapping[str, Any], model: str, order: str) -> str:
  """'61.2 / 80.3 / **95.1** (94.4 to 96.0)'"""
  early = ' / '.join(f'{100 * _mean(study, model, order, share):.1f}' for share in ('25%', '50%'))
  last = [100 * run['accuracy']['100%'] for run in _runs(study, model, order)]
  spread = f' ({min(last):.1f} to {max(last):.1f})' if len(last) > 1 else ''
  return f'{early} / **{statistics.fmean(last):.1f}**{spread}'


def draw(study: Mapping[str, Any], path: pathlib.Path) -> None:
  """A row for each model: every seed a ring, the means joined, so that what falls is seen to fall."""
  height, left = 132 + 58 * len(NAMES), 340
  budget = study['runs'][0]['examples']
  figure, _ = canvas.sheet(
    height, 'Every pixel moved to a fixed random place, with its position',
    f'Test accuracy after {budget:,} examples of handwritten digits, 12 x 12 pixels anywhere on 20 x 20')
  axes = canvas.place(figure, left, canvas.TITLE_HEIGHT, canvas.WIDTH - left - 60, height - canvas.TITLE_HEIGHT - 50)
  canvas.style_axes(axes)
  for y, model in enumerate(NAMES):
    means = {order: _mean(study, model, order, '100%') for order in COLOURS}
    axes.plot(list(means.values()), [y, y], color=canvas.PALE, linewidth=6, solid_capstyle='round', zorder=1)
    for shift, (order, colour) in zip((-0.16, 0.16), COLOURS.items(), strict=True):
      seeds = [run['accuracy']['100%'] for run in _runs(study, model, order)]
      axes.plot(seeds, [y + shift] * len(seeds), 'o', color=colour, markersize=6, fillstyle='none', zorder=2)
      axes.plot(means[order], y, 'o', color=colour, markersize=11, zorder=3, label=order if y == 0 else None)
  axes.set(yticks=range(len(NAMES)), yticklabels=list(NAMES.values()), ylim=(len(NAMES) - 0.5, -0.5))
  axes.tick_params(axis='y', labelsize=canvas.MEDIUM - 2, labelcolor=canvas.INK)
  axes.xaxis.set_major_formatter(PercentFormatter(1))
  axes.set_xlim(right=1.0)
  axes.legend(loc='lower left', fontsize=canvas.SMALL, labelcolor=canvas.INK, frameon=False)
  canvas.save(figure, path)
