"""Shared parts of all pictures: sheets and panels, colours and sizes, text that fits, images with frames, bars.

Every picture is drawn on a figure of its own and never through pyplot, so a notebook's backend, style and open figures
stay as they are. Hence the explicit colours and sizes: a reader's dark style must not leave white text on white.
Lengths are pixels, counted from the top left corner of a panel; text sizes are points.
"""

from __future__ import annotations

import bisect
import contextlib
import os
import pathlib
import unicodedata
from typing import Any, TypeAlias

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure, SubFigure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.patches import Rectangle
from matplotlib.textpath import text_to_path
from matplotlib.ticker import EngFormatter, MaxNLocator

from perceiver_jax.types import UserError

Panel: TypeAlias = Figure | SubFigure
Size: TypeAlias = tuple[float, float]                 # width, height
WIDTH, DPI = 1400, 100
MARGIN, GAP, HEADING_HEIGHT = 24, 10, 118             # a heading: the title, a panel's name, the line below it, and air
TITLE_HEIGHT = 82                                     # of a picture with a single panel: the title, a line, and air
LINE_HEIGHT, CAPTION_HEIGHT = 17, 46                  # a caption: two lines below an image, and air
SMALL, MEDIUM, LARGE = 11, 14, 18
INK, GREY, PALE = '#222222', '#666666', '#DDDDDD'
BLUE, ORANGE, RED = '#0077BB', '#EE7733', '#CC3311'   # Paul Tol's 'vibrant' set: distinct to colour-blind readers too
TEAL = '#009988'
STAND_INS = {'\n': '↵', '\r': '↵', '\u2028': '↵', '\u2029': '↵', '\t': '⇥'}


def new_figure(height: float, title: str) -> Figure:
  """A picture of 1400 x `height` pixels with a title of one line."""
  figure = Figure(figsize=(WIDTH / DPI, height / DPI), dpi=DPI, facecolor='white')
  font: dict[str, Any] = dict(size=LARGE, weight='bold')
  title = drawable(shorten(title, WIDTH - 2 * MARGIN, **font), 'bold')
  figure.text(MARGIN / WIDTH, 1 - 24 / height, title, color=INK, va='center', parse_math=False, **font)
  return figure


def sheet(height: float, title: str, explanation: str) -> tuple[Figure, Axes]:
  """A picture with a single panel, and axes over the whole of it; what `TITLE_HEIGHT` leaves is free."""
  figure = new_figure(height, title)
  page = blank_page(figure)
  write(page, shorten(explanation, WIDTH - 2 * MARGIN), MARGIN, 53, color=GREY)
  return figure, page


def save(figure: Figure, path: str | os.PathLike[str]) -> None:
  """Writes a PNG beside `path` and moves it there, so that nobody meets half a picture."""
  path = pathlib.Path(path)
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


def page_of(panel: Panel, heading: str, explanation: str = '') -> Axes:
  """Axes over a whole panel, and what the panel shows."""
  page = blank_page(panel)
  write(page, heading, MARGIN, 68, size=MEDIUM, weight='bold')
  write(page, explanation, MARGIN, 94, color=GREY)
  return page


def blank_page(panel: Panel) -> Axes:
  """Axes over a whole panel, in pixels: much quicker to fill than axes for every image."""
  page = place(panel, 0, 0, panel.bbox.width, panel.bbox.height)
  page.set(xlim=(0, panel.bbox.width), ylim=(panel.bbox.height, 0))
  page.set_axis_off()
  return page


def place(panel: Panel, left: float, top: float, width: float, height: float) -> Axes:
  """Axes at a place given in pixels."""
  across, down = panel.bbox.width, panel.bbox.height
  return panel.add_axes((left / across, 1 - (top + height) / down, width / across, height / down))


def body(page: Axes) -> tuple[float, float, float, float]:
  """Left, top, width and height of what a panel's heading leaves."""
  return MARGIN, HEADING_HEIGHT, page.bbox.width - 2 * MARGIN, page.bbox.height - HEADING_HEIGHT - 8


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


def probability_bar(page: Axes, name: str, prob: float, left: float, middle: float, width: float, colour: str) -> None:
  """One line: a name, a bar, and the probability as a number. The name gets what is left of `width`."""
  number_width, bar_width = 66, 90
  write(page, shorten(name, width - bar_width - number_width - GAP), left, middle, color=colour)
  left += width - bar_width - number_width
  page.add_patch(Rectangle((left, middle - 5), bar_width, 10, facecolor=PALE, linewidth=0))
  page.add_patch(Rectangle((left, middle - 5), bar_width * prob, 10, facecolor=colour, linewidth=0))
  write(page, f'{prob:.1%}', left + bar_width + number_width, middle, color=GREY, ha='right')


def evenly_spaced(total: int, count: int) -> list[int]:
  """At most `count` of `total` positions, the first and the last among them."""
  return np.linspace(0, total - 1, min(count, total)).round().astype(int).tolist()


def count_of(shown: int, total: int) -> str:
  """Returns '8 of 16', or '16' where all are shown."""
  return f'{total:,}' if shown == total else f'{shown:,} of {total:,}'


def write(page: Axes, text: str, left: float, middle: float, size: int = SMALL, **style: Any) -> None:
  """One line of text; a dollar sign in it is a dollar sign."""
  text = drawable(text, style.get('weight', 'normal'))
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
  text = drawable(text, font.get('weight', 'normal'))
  return text_to_path.get_text_width_height_descent(text, font_properties, ismath=False)[0] * DPI / 72


def drawable(text: str, weight: str = 'normal') -> str:
  """The text with a stand-in for every character that breaks the line, controls it, or is missing from the font.

  One character stays one character, so a text may be cut before or after.
  """
  fonts = [get_font(findfont(FontProperties(family=name, weight=weight))) for name in FontProperties().get_family()]
  is_known = lambda character: any(font.get_char_index(ord(character)) for font in fonts)

  def stand_in(character: str) -> str:
    category = unicodedata.category(character)
    if category[0] != 'C' and category not in ('Zl', 'Zp') and is_known(character):
      return character
    better = STAND_INS.get(character, '\N{REPLACEMENT CHARACTER}')
    return better if is_known(better) else '?'

  return text if text.isascii() and text.isprintable() else ''.join(map(stand_in, text))
