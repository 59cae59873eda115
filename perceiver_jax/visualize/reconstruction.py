"""A clip beside what an autoencoder made of it: frames, sound and labels (2107.14795, section 4.3).

T frames of H x W pixels, S audio samples.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from perceiver_jax.types import UserError
from perceiver_jax.visualize.canvas import (
  BLUE,
  GAP,
  GREY,
  LINE_HEIGHT,
  MARGIN,
  MEDIUM,
  ORANGE,
  SMALL,
  TITLE_HEIGHT,
  WIDTH,
  count_of,
  evenly_spaced,
  fitted,
  place,
  probability_bar,
  save,
  sheet,
  show_image,
  style_axes,
  write,
)

MOST_FRAMES, MOST_LABELS = 8, 5
NAME_WIDTH, LABELS_WIDTH = 30, 420
WAVE_HEIGHT = 90


def reconstruction(
    path: str | os.PathLike[str], video: np.ndarray, video_again: np.ndarray, audio: np.ndarray,
    audio_again: np.ndarray, sample_rate: float, labels: Sequence[tuple[str, float]] | None = None,
) -> None:
  """Draws frames above their reconstructions, the waveforms of the sound in the same order, and the best labels.

  Args:
    path: where the PNG, 1400 pixels wide, goes; it is replaced whole or not at all.
    video, video_again: [T, H, W, 3] uint8, or floats in 0..1, beyond which they are clipped. At most 8 frames are
      drawn, evenly spaced from the first to the last.
    audio, audio_again: [S] floats, usually in -1..1; both are drawn to the same scale.
    sample_rate: samples per second.
    labels: (name, probability), the best first; the first 5 are drawn. None leaves them out.

  Raises:
    UserError: an original and its reconstruction differ in shape, have another rank or are not finite; the sample
      rate is not above 0; a probability is outside 0..1; or the file cannot be written.
  """
  _check_pair('video', video, video_again, 4, '[T, H, W, 3]')
  _check_pair('audio', audio, audio_again, 1, '[S]')
  if not 0 < sample_rate < math.inf:
    raise UserError(f'sample_rate is in samples per second and above 0, not {sample_rate}')
  if labels is not None and not all(0 <= prob <= 1 for _, prob in labels):
    raise UserError(f'labels are (name, probability in 0..1), not {list(labels)[:MOST_LABELS]}')

  steps = evenly_spaced(len(video), MOST_FRAMES)
  pitch = min((WIDTH - 2 * MARGIN - NAME_WIDTH) / len(steps), 330)
  size = fitted(pitch - GAP, 260, video.shape)
  pitch = max(size[0] + GAP, min(pitch, 90))
  row_height = max(size[1], 104) + GAP                  # room for the name of the row, which stands on its side
  sound_top = TITLE_HEIGHT + 18 + 2 * row_height + 34
  what = f'{count_of(len(steps), len(video))} frame' + 's' * (len(video) > 1)
  figure, page = sheet(
    sound_top + 2 * (WAVE_HEIGHT + 2 * GAP) + 60, 'Reconstruction',
    f'{what} of {video.shape[1]} x {video.shape[2]} pixels, {len(audio) / sample_rate:.3g} s of sound at '
    f'{sample_rate:,g} Hz')
  for column, step in enumerate(steps):
    centre = MARGIN + NAME_WIDTH + (column + 0.5) * pitch
    write(page, f'frame {step + 1}', centre, TITLE_HEIGHT + 6, ha='center')
    for row, frames in enumerate((video, video_again)):
      show_image(page, _pixels(frames[step]), centre, TITLE_HEIGHT + 18 + row * row_height, size)
  for row, name in enumerate(('original', 'reconstruction')):
    middle = TITLE_HEIGHT + 18 + row * row_height + max(size[1], 104) / 2
    write(page, name, MARGIN + 8, middle, color=GREY, ha='center', rotation=90)
  width = WIDTH - 2 * MARGIN - 56 - (LABELS_WIDTH + 2 * MARGIN if labels else 0)
  _waveforms(figure, page, audio, audio_again, sample_rate, sound_top, width)
  if labels:
    left = WIDTH - MARGIN - LABELS_WIDTH
    write(page, 'Labels', left, sound_top, size=MEDIUM, weight='bold')
    for line, (name, prob) in enumerate(labels[:MOST_LABELS]):
      middle = sound_top + 32 + line * (LINE_HEIGHT + 6)
      probability_bar(page, name, float(prob), left, middle, LABELS_WIDTH, BLUE if line == 0 else GREY)
  save(figure, path)


def _check_pair(name: str, original: np.ndarray, again: np.ndarray, rank: int, shape: str) -> None:
  is_right = original.ndim == rank and original.size and (rank == 1 or original.shape[-1] == 3)
  if not is_right or original.shape != again.shape:
    raise UserError(f'{name} of shape {original.shape} and its reconstruction of shape {again.shape} cannot be drawn: '
                    f'both need the same {shape}')
  if not (np.isfinite(original).all() and np.isfinite(again).all()):
    raise UserError(f'the {name} or its reconstruction holds values that are not finite')


def _pixels(frame: np.ndarray) -> np.ndarray:
  """Returns [H, W, 3] uint8 of the same, or of floats in 0..1."""
  return frame if frame.dtype == np.uint8 else np.round(255 * np.clip(frame.astype(np.float64), 0, 1)).astype(np.uint8)


def _waveforms(
    figure: Figure, page: Axes, audio: np.ndarray, audio_again: np.ndarray, sample_rate: float, top: float,
    width: float,
) -> None:
  """The original sound above the reconstructed, to one scale."""
  write(page, 'Sound', MARGIN, top, size=MEDIUM, weight='bold')
  loudest = max(float(np.abs(wave).max()) for wave in (audio, audio_again)) or 1.0
  for row, (name, wave, colour) in enumerate((('original', audio, BLUE), ('reconstruction', audio_again, ORANGE))):
    axes = place(figure, MARGIN + 44, top + 32 + row * (WAVE_HEIGHT + 2 * GAP), width, WAVE_HEIGHT)
    style_axes(axes)
    axes.plot(*outline(wave, sample_rate, int(width)), color=colour, linewidth=1, linestyle='-', marker='')
    axes.set(xlim=(0, len(wave) / sample_rate), ylim=(-1.08 * loudest, 1.08 * loudest))
    axes.xaxis.set_major_locator(MaxNLocator(8))
    axes.xaxis.set_major_formatter(StrMethodFormatter('{x:.3g}'))
    axes.yaxis.set_major_locator(MaxNLocator(2, symmetric=True))
    axes.set_title(name, loc='left', fontsize=SMALL, color=colour, pad=2)
    if row == 0:
      axes.tick_params(labelbottom=False)
    else:
      axes.set_xlabel('seconds', fontsize=SMALL, color=GREY)


def outline(wave: np.ndarray, sample_rate: float, num_columns: int) -> tuple[np.ndarray, np.ndarray]:
  """Times in seconds and values: the wave itself, or the lowest and highest value of each column where it is longer."""
  if len(wave) <= 2 * num_columns:
    return np.arange(len(wave)) / sample_rate, wave
  starts = np.arange(num_columns) * len(wave) // num_columns
  extremes = np.stack([np.minimum.reduceat(wave, starts), np.maximum.reduceat(wave, starts)], -1)
  return np.repeat(starts / sample_rate, 2), extremes.ravel()
