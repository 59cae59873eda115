"""Drawing a picture, and looking at it both as Matplotlib's figure and as pixels."""

import warnings

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.image import imread


@pytest.fixture
def drawn(monkeypatch, tmp_path):
  """(function of visualize, its arguments but the path) -> its figure, and [height, width, 3] in 0..1 as read back."""
  figures = []
  print_png = FigureCanvasAgg.print_png

  def remember(canvas, *arguments, **options):
    figures.append(canvas.figure)
    return print_png(canvas, *arguments, **options)

  def draw(function, *arguments, **options):
    path = tmp_path / 'picture.png'
    with warnings.catch_warnings():
      warnings.simplefilter('error')                   # of a missing glyph, of a division by 0 ...
      function(path, *arguments, **options)
    assert [file.name for file in tmp_path.iterdir()] == ['picture.png']
    return figures.pop(), imread(path)[..., :3]

  monkeypatch.setattr(FigureCanvasAgg, 'print_png', remember)
  return draw
