"""A table of masked words says what was filled in, where, how surely, and whether that was right."""

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from perceiver_jax import visualize
from perceiver_jax.types import UserError
from perceiver_jax.visualize.canvas import BLUE, RED, TEAL, text_width
from perceiver_jax.visualize.text import shorten_start, visible
from tests.visualize.tidy import assert_tidy, boxes_of_texts

PIECES = ['Some words are', None, '. They went', None, '.']
CANDIDATES = [[(' missing', 0.75), (' lost', 0.125)], [(' by', 0.5), (' away', 0.25), (' home', 0.125)]]
LONG = 'a sentence that goes on and on '
ODD = 'tab\t line\n nul\0 😀 犬 \ud800 \u202e שלום مرحبا e\u0301 \U0001f468\u200d\U0001f469 $x^2$ \\ %'

CASES = {
  'plain': (PIECES, CANDIDATES, None),
  'with the truth': (PIECES, CANDIDATES, [' missing', ' away']),
  'only a mask': ([None], [[('all', 1.0)]], ['all']),
  'odd characters': ([ODD, None, ODD], [[(ODD, 0.5), ('', 0.5)]], ['\n']),
  'long texts': ([LONG * 99, None, LONG * 99], [[('W' * 500, 0.1), (LONG * 9, 0.1)] * 4], [LONG]),
  'no context, a long word': ([None, LONG], [[('W' * 500, 1)]], ['M' * 500]),
  'many spans': ([LONG, None] * 60, [[(' x', 0.5)]] * 60, [' x'] * 60),
}


@pytest.mark.parametrize('case', CASES)
def test_a_picture_is_tidy(case, drawn):
  figure, picture = drawn(visualize.masked_words, *CASES[case])
  assert picture.shape[1] == 1400
  assert_tidy(figure)


def texts_of(figure):
  return [text for text, _ in boxes_of_texts(figure)]


def test_a_row_holds_the_context_the_filled_word_and_the_candidates(drawn):
  figure, _ = drawn(visualize.masked_words, PIECES, CANDIDATES)
  texts = texts_of(figure)
  assert texts[texts.index('1'):texts.index('2')] == [
    '1', 'Some words are', '␣missing', '. They went▁▁▁.', '␣missing', '75.0%', '␣lost', '12.5%']
  assert texts[texts.index('2'):texts.index('2') + 10] == [
    '2', 'Some words are▁▁▁. They went', '␣by', '.', '␣by', '50.0%', '␣away', '25.0%', '␣home', '12.5%']


def num_of(picture, colour):
  return int((np.abs(picture - to_rgb(colour)).max(-1) < 0.01).sum())


def test_colours_say_right_wrong_or_unknown(drawn):
  unknown = drawn(visualize.masked_words, PIECES, CANDIDATES)[1]
  assert num_of(unknown, BLUE) > 200 and num_of(unknown, RED) == num_of(unknown, TEAL) == 0
  right = drawn(visualize.masked_words, PIECES, CANDIDATES, [' missing', ' by'])[1]
  assert num_of(right, TEAL) > 200 and num_of(right, RED) == num_of(right, BLUE) == 0
  figure, wrong = drawn(visualize.masked_words, PIECES, CANDIDATES, [' missed', 'by'])
  assert num_of(wrong, RED) > 200 and num_of(wrong, TEAL) == num_of(wrong, BLUE) == 0
  assert {'true: ␣missed', 'true: by', '2 masked spans, 0 filled in right (teal), 2 wrong (red)'} <= {*texts_of(figure)}


def test_bars_are_as_long_as_probabilities(drawn):
  figure, _ = drawn(visualize.masked_words, PIECES, CANDIDATES)
  widths = [patch.get_width() for patch in figure.axes[0].patches]
  np.testing.assert_allclose(np.divide(widths[1::2], widths[::2]), [0.75, 0.125, 0.5, 0.25, 0.125])


def test_of_many_spans_the_first_are_shown_and_all_are_counted(drawn):
  figure, _ = drawn(visualize.masked_words, *CASES['many spans'])
  texts = texts_of(figure)
  assert '60 masked spans, 60 filled in right (teal), 0 wrong (red); the first 24 are shown' in texts
  assert '24' in texts and '25' not in texts


def test_a_context_keeps_its_end_where_it_is_too_wide():
  assert shorten_start('daisy', 200) == 'daisy'
  cut = shorten_start('German short-haired pointer', 100)
  assert cut.startswith('…') and cut.endswith('pointer') and 60 < text_width(cut) <= 100


def test_spaces_at_the_ends_are_visible():
  assert [visible(text) for text in (' in', 'in ', 'i n', '   ', '')] == ['␣in', 'in␣', 'i n', '␣␣␣', '∅']


@pytest.mark.parametrize(('pieces', 'candidates', 'truth', 'says'), [
  (PIECES, CANDIDATES[:1], None, 'candidates for 1 spans do not fit a text with 2 masked spans'),
  (PIECES, CANDIDATES, [' missing'], 'truth for 1 spans do not fit a text with 2 masked spans'),
  (['no mask'], [], None, 'no span of the text is masked'),
  (PIECES, [CANDIDATES[0], []], None, 'masked span 2 needs one or more candidates'),
  (PIECES, [[(' x', 1.5)], CANDIDATES[1]], None, r'masked span 1 .* in 0..1, not \[1.5\]'),
  (PIECES, [[(' x', np.nan)], CANDIDATES[1]], None, 'masked span 1'),
])
def test_what_does_not_fit_is_refused(pieces, candidates, truth, says, tmp_path):
  with pytest.raises(UserError, match=says):
    visualize.masked_words(tmp_path / 'picture.png', pieces, candidates, truth)
