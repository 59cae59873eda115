"""What holds for whatever writes a picture: a reader's style changes nothing, and a bad place is refused in a line."""

import matplotlib
import numpy as np
import pytest

from perceiver_jax import visualize
from perceiver_jax.types import UserError

FRAME = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
SOUND = np.sin(np.arange(20.0))
PICTURES = {
  'attention_over_pixels': (FRAME, np.eye(16)[None]),
  'flow_picture': (FRAME, FRAME, np.ones((4, 4, 2))),
  'masked_words': (['to be or', None, 'to be'], [[(' not ', 0.9), (' nut ', 0.1)]], [' not ']),
  'curves_picture': ([{'step': 1, 'train/loss': 2.0, 'test/loss': 1.0, 'test/epe': 3}, {'step': 2, 'train/loss': 1}],),
  'reconstruction': (FRAME[None], FRAME[None], SOUND, SOUND / 2, 10, [('a label', 0.5)]),
}
STYLE = {
  'savefig.dpi': 50, 'savefig.bbox': 'tight', 'savefig.facecolor': 'black', 'figure.facecolor': 'black',
  'axes.facecolor': 'black', 'axes.edgecolor': 'white', 'axes.labelcolor': 'white', 'axes.titlecolor': 'white',
  'axes.grid': False, 'axes.titlesize': 30, 'grid.color': 'white', 'text.color': 'white', 'xtick.color': 'white',
  'ytick.color': 'white', 'image.cmap': 'jet', 'image.origin': 'lower', 'lines.linestyle': ':', 'lines.marker': 'x',
  'lines.linewidth': 9, 'patch.facecolor': 'white', 'patch.force_edgecolor': True, 'text.parse_math': True,
}


def test_every_public_function_that_writes_a_picture_is_tried():
  not_here = {'classification_summary', 'flow_colours'}  # which has tests like these; which writes no file
  assert PICTURES.keys() | not_here == set(visualize.__all__)


@pytest.mark.parametrize('name', PICTURES)
def test_a_style_of_the_reader_changes_nothing(name, tmp_path):
  function, arguments = getattr(visualize, name), PICTURES[name]
  function(tmp_path / 'plain.png', *arguments)
  with matplotlib.rc_context(STYLE):
    function(tmp_path / 'styled.png', *arguments)
  assert (tmp_path / 'styled.png').read_bytes() == (tmp_path / 'plain.png').read_bytes()


@pytest.mark.parametrize('name', PICTURES)
def test_a_path_may_be_text_and_a_bad_one_is_one_line(name, tmp_path):
  function, arguments = getattr(visualize, name), PICTURES[name]
  function(str(tmp_path / 'picture.png'), *arguments)
  assert (tmp_path / 'picture.png').read_bytes().startswith(b'\x89PNG')
  with pytest.raises(UserError, match='cannot write the picture') as error:
    function(tmp_path / 'missing' / 'picture.png', *arguments)
  assert '\n' not in str(error.value)
