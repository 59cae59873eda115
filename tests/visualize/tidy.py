"""What is true of every picture: no text runs into another one, into an image or a bar, or out of the picture."""

import itertools

from matplotlib.axes import Axes
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle
from matplotlib.text import Text


def boxes_of_texts(figure):
  """{(text, n): box in pixels}, without the labels of ticks that lie outside the axes and so are not drawn."""
  outside = set()
  for axes in figure.findobj(Axes):
    for axis in (axes.xaxis, axes.yaxis):
      low, high = sorted(axis.get_view_interval())
      ticks = zip(axis.get_majorticklocs(), axis.get_major_ticks(), strict=True)
      outside |= {tick.label1 for place, tick in ticks if not low <= place <= high or not axes.axison}
  texts = [text for text in figure.findobj(Text) if text.get_text() and text.get_visible() and text not in outside]
  return {(text.get_text(), n): text.get_window_extent() for n, text in enumerate(texts)}


def assert_tidy(figure):
  texts = boxes_of_texts(figure)
  assert len(texts) >= 3
  for name, box in texts.items():
    assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.width and box.y1 <= figure.bbox.height, name
  for one, other in itertools.combinations(texts, 2):
    assert not texts[one].padded(-1).overlaps(texts[other].padded(-1)), (one, other)
  bars = [patch for axes in figure.findobj(Axes) for patch in axes.patches
          if isinstance(patch, Rectangle) and patch.get_fill()]
  for thing in (*figure.findobj(AxesImage), *bars):
    box = thing.get_window_extent().padded(-1)
    assert [name for name, text in texts.items() if text.padded(-1).overlaps(box)] == [], box
