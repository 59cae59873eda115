"""Text that fits, characters that a font has, files that are whole."""

import itertools

import pytest
from matplotlib.figure import Figure

from perceiver_jax.types import UserError
from perceiver_jax.visualize.canvas import count_of, drawable, evenly_spaced, save, shorten, text_width


@pytest.mark.parametrize('place', ['missing/summary.png', 'file/summary.png', 'folder'])
def test_a_place_that_cannot_be_written_is_one_line_and_leaves_nothing_behind(place, tmp_path):
  (tmp_path / 'file').touch()
  (tmp_path / 'folder').mkdir()
  with pytest.raises(UserError, match='cannot write the picture') as error:
    save(Figure(), tmp_path / place)
  assert '\n' not in str(error.value) and place in str(error.value)
  assert sorted(file.name for file in tmp_path.rglob('*')) == ['file', 'folder']


def test_a_text_is_cut_only_where_it_is_too_wide():
  assert shorten('daisy', 200) == 'daisy'
  cut = shorten('German short-haired pointer', 100)
  assert cut.startswith('German') and cut.endswith('…') and 60 < text_width(cut) <= 100


@pytest.mark.parametrize(('text', 'drawn'), [
  ('plain, naïve, שלום', 'plain, naïve, שלום'),
  ('a\nb\tc', 'a↵b⇥c'),
  ('nul \0, bell \a, half a pair \ud800', 'nul �, bell �, half a pair �'),
  ('犬', '�'),
  ('turn \u202e around', 'turn � around'),
  ('', ''),
])
def test_every_character_has_a_stand_in_of_one_character(text, drawn):
  assert drawable(text) == drawn
  assert drawable(text, 'bold') == drawn


def test_what_only_the_bold_font_lacks_has_a_stand_in_in_bold():
  assert drawable('𝖠') == '𝖠' and drawable('𝖠', 'bold') == '�'


@pytest.mark.parametrize('total', [1, 2, 7, 8, 9, 16, 1000])
def test_positions_are_even_and_hold_both_ends(total):
  positions = evenly_spaced(total, 8)
  assert len(positions) == min(total, 8) and positions[0] == 0 and positions[-1] == total - 1
  steps = [after - before for before, after in itertools.pairwise(positions)]
  assert not steps or (max(steps) - min(steps) <= 1 and min(steps) >= 1)


def test_a_count_says_how_many_there_are_only_where_some_are_missing():
  assert count_of(8, 1600) == '8 of 1,600' and count_of(16, 16) == '16'
