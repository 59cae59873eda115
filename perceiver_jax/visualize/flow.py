"""Optical flow: how far, and in which direction, each pixel of a frame moves until the next.

Flow is [H, W, 2] in pixels: to the right (x) and down (y). Direction is hue and length is saturation, as in the
notebook that the authors of 2107.14795 released: still is white, right is red, left is cyan.
"""

from __future__ import annotations

import math
import os

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import hsv_to_rgb
from matplotlib.patches import Circle

from perceiver_jax.types import UserError
from perceiver_jax.visualize.canvas import (
  CAPTION_HEIGHT,
  GAP,
  GREY,
  INK,
  LINE_HEIGHT,
  MARGIN,
  TITLE_HEIGHT,
  WIDTH,
  fitted,
  save,
  sheet,
  shorten,
  show_image,
  write,
)

UNKNOWN = 128                                         # grey; no flow has it, as every colour of a flow holds a 255
WHEEL_HEIGHT = 180                                    # a wheel, and the names around it


def flow_colours(flow: np.ndarray, max_magnitude: float = 24.0) -> np.ndarray:
  """Flow [H, W, 2] in pixels -> [H, W, 3] uint8 colours.

  Hue is the angle from the right, clockwise as y points down; saturation is the length, full from `max_magnitude`
  pixels on (24 in the authors' notebook); value is full. Where either number is not finite the colour is grey.

  Raises:
    UserError: `flow` has another shape, or `max_magnitude` is not above 0.
  """
  if flow.ndim != 3 or flow.shape[2] != 2:
    raise UserError(f'flow colours need a flow of shape [H, W, 2], not {flow.shape}')
  if not 0 < max_magnitude < math.inf:
    raise UserError(f'max_magnitude is a length in pixels above 0, not {max_magnitude}')
  is_known = np.isfinite(flow).all(-1)
  x, y = np.moveaxis(np.where(is_known[..., None], flow, 0).astype(np.float64), -1, 0)
  hue = np.arctan2(y, x) / (2 * np.pi) % 1
  saturation = np.minimum(np.hypot(x, y) / max_magnitude, 1)
  colours = np.round(255 * hsv_to_rgb(np.stack([hue, saturation, np.ones_like(hue)], -1)))
  return np.where(is_known[..., None], colours, UNKNOWN).astype(np.uint8)


def flow_picture(
    path: str | os.PathLike[str], first: np.ndarray, second: np.ndarray, flow: np.ndarray, max_magnitude: float = 24.0
) -> None:
  """Draws two frames, the flow from the first to the second in colours, and a wheel that says what the colours mean.

  Args:
    path: where the PNG, 1400 pixels wide, goes; it is replaced whole or not at all.
    first, second: [H, W, 1 or 3] uint8.
    flow: [H, W, 2] floats in pixels, to the right and down. What is not finite is grey, and counted in the caption.
    max_magnitude: the length in pixels from which on colours are full.

  Raises:
    UserError: the shapes do not fit each other, or the file cannot be written.
  """
  for frame in (first, second):
    if frame.ndim != 3 or frame.shape[2] not in (1, 3) or frame.dtype != np.uint8 or not frame.size:
      raise UserError(f'a picture of flow needs frames [H, W, 1 or 3] of uint8, not {frame.dtype} of shape '
                      f'{frame.shape}')
  if not first.shape == second.shape == (*flow.shape[:2], first.shape[2]):
    raise UserError(f'frames of shapes {first.shape} and {second.shape} do not fit a flow of shape {flow.shape}: '
                    'all three cover the same H x W pixels')
  colours = flow_colours(flow, max_magnitude)
  columns = 2 if first.shape[1] > first.shape[0] else 4
  pitch = (WIDTH - 2 * MARGIN + GAP) / columns
  size = fitted(pitch - GAP, 500, first.shape)
  row_height = max(size[1], WHEEL_HEIGHT + LINE_HEIGHT) + CAPTION_HEIGHT
  figure, page = sheet(
    TITLE_HEIGHT + 4 // columns * row_height, 'Optical flow',
    'how far each pixel of the first frame moves until the second: hue is direction, saturation is length')
  captions = ('first frame', 'second frame', _figures(flow))
  for i, (image, caption) in enumerate(zip((first, second, colours), captions, strict=True)):
    left, top = MARGIN + i % columns * pitch, TITLE_HEIGHT + i // columns * row_height
    show_image(page, image, left + size[0] / 2, top, size)
    for line, text in enumerate(caption.split('\n')):
      write(page, shorten(text, pitch - GAP), left, top + size[1] + 14 + line * LINE_HEIGHT)
  _wheel(page, MARGIN + (columns - 1) * pitch, TITLE_HEIGHT + (4 // columns - 1) * row_height, max_magnitude)
  save(figure, path)


def _figures(flow: np.ndarray) -> str:
  """A caption: how long the flow is, and at how many pixels it is unknown."""
  is_known = np.isfinite(flow).all(-1)
  lengths = np.hypot(*flow[is_known].astype(np.float64).T)
  caption = f'flow: mean {lengths.mean():.3g} px, longest {lengths.max():.3g} px' if len(lengths) else 'flow'
  if not is_known.all():
    caption += f'\nnot finite at {(~is_known).sum():,} of {is_known.size:,} pixels: grey'
  return caption


def _wheel(page: Axes, left: float, top: float, max_magnitude: float) -> None:
  """Every direction and length in its colour, and the scale in pixels."""
  radius = (WHEEL_HEIGHT - 2 * LINE_HEIGHT) / 2 - 4
  x, y = left + radius + 40, top + WHEEL_HEIGHT / 2
  offsets = np.stack(np.meshgrid(*[np.arange(-radius, radius + 1)] * 2), -1)
  image = page.imshow(flow_colours(offsets * (max_magnitude / radius), max_magnitude), aspect='auto', origin='upper',
                      extent=(x - radius, x + radius, y + radius, y - radius))
  rim = Circle((x, y), radius, fill=False, color=GREY, linewidth=1)
  page.add_patch(rim)
  image.set_clip_path(rim)
  page.add_patch(Circle((x, y), radius / 2, fill=False, color=INK, linewidth=0.8, linestyle=':'))
  for name, across, down, align in (
      ('up', 0, -radius - 11, 'center'), ('down', 0, radius + 11, 'center'), ('left', -radius - 8, 0, 'right'),
      ('right', radius + 8, 0, 'left')):
    write(page, name, x + across, y + down, ha=align)
  scale = f'white: still\ndotted circle: {max_magnitude / 2:.3g} px\nrim: {max_magnitude:.3g} px or more'
  for line, text in enumerate(scale.split('\n')):
    write(page, text, x, top + WHEEL_HEIGHT + 10 + line * LINE_HEIGHT, color=GREY, ha='center')
