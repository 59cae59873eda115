"""Masked words: what a language model fills in for the parts of a text it could not see."""

from __future__ import annotations

import bisect
import os
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from perceiver_jax.types import UserError
from perceiver_jax.visualize.canvas import (
  BLUE,
  GAP,
  GREY,
  INK,
  MARGIN,
  PALE,
  RED,
  TEAL,
  TITLE_HEIGHT,
  WIDTH,
  probability_bar,
  save,
  sheet,
  shorten,
  text_width,
  write,
)

MOST_SPANS, MOST_CANDIDATES = 24, 5
HIDDEN = '▁▁▁'
NUMBER_WIDTH, CANDIDATES_WIDTH, CANDIDATE_HEIGHT = 36, 420, 20


def masked_words(
    path: str | os.PathLike[str], text_pieces: Sequence[str | None],
    candidates: Sequence[Sequence[tuple[str, float]]], truth: Sequence[str] | None = None,
) -> None:
  """Draws a table with a row for each masked span: the text around it, what was filled in, and the best candidates.

      masked_words('words.png', ['Some words are', None, '.'], [[(' missing', 0.8), (' lost', 0.1)]], [' missing'])

  The best candidate stands in the place of the mask: teal if right, red if wrong, blue where the truth is not given;
  right means equal to the truth, spaces and all. Other masks in the context stay masks, as the model saw them. Line
  breaks, control characters and what the font lacks have stand-ins; spaces at the ends of a candidate are shown as ␣.
  Of more than 24 spans the first 24 are drawn, of more than 5 candidates the first 5.

  Args:
    path: where the PNG, 1400 pixels wide, goes; it is replaced whole or not at all.
    text_pieces: the text in order, None in the place of each masked span (2107.14795, section 4.1).
    candidates: for each masked span in order, one or more (text, probability), the best first; probabilities in 0..1.
    truth: for each masked span in order, what stood there; None if nobody knows.

  Raises:
    UserError: there are not as many candidates (or truths) as masked spans, there is nothing to show, a probability
      is outside 0..1, or the file cannot be written.
  """
  spans = [i for i, piece in enumerate(text_pieces) if piece is None]
  _check(len(spans), candidates, truth)
  shown = [each[:MOST_CANDIDATES] for each in candidates[:MOST_SPANS]]
  heights = [max(len(each), 2) * CANDIDATE_HEIGHT + 2 * GAP for each in shown]
  figure, page = sheet(TITLE_HEIGHT + 24 + sum(heights) + GAP, 'Masked words', _explanation(candidates, truth))
  candidates_left = WIDTH - MARGIN - CANDIDATES_WIDTH
  for name, left in (('in context', MARGIN + NUMBER_WIDTH), ('candidates', candidates_left)):
    write(page, name, left, TITLE_HEIGHT + 6, color=INK, weight='bold')
  top = TITLE_HEIGHT + 24
  for number, (span, best, height) in enumerate(zip(spans, shown, heights, strict=False)):
    page.plot([MARGIN, WIDTH - MARGIN], [top, top], color=PALE, linewidth=0.8, linestyle='-', marker='')
    answer = None if truth is None else truth[number]
    colour = BLUE if answer is None else TEAL if best[0][0] == answer else RED
    write(page, str(number + 1), MARGIN, top + GAP + CANDIDATE_HEIGHT / 2, color=GREY)
    _context(page, text_pieces, span, best[0][0], answer, colour, top + GAP + CANDIDATE_HEIGHT / 2)
    for line, (text, prob) in enumerate(best):
      middle = top + GAP + (line + 0.5) * CANDIDATE_HEIGHT
      line_colour = GREY if line else colour
      if line and text == answer:
        line_colour = TEAL
      probability_bar(page, visible(text), float(prob), candidates_left, middle, CANDIDATES_WIDTH, line_colour)
    top += height
  save(figure, path)


def _check(
    num_spans: int, candidates: Sequence[Sequence[tuple[str, float]]], truth: Sequence[str] | None
) -> None:
  if not num_spans:
    raise UserError('no span of the text is masked: put None in text_pieces in the place of each masked span')
  for name, lists in (('candidates', candidates), ('truth', truth)):
    if lists is not None and len(lists) != num_spans:
      raise UserError(f'{name} for {len(lists)} spans do not fit a text with {num_spans} masked spans (None in '
                      'text_pieces)')
  for number, each in enumerate(candidates, start=1):
    probs = np.array([prob for _, prob in each], np.float64)
    if not len(probs) or not ((probs >= 0) & (probs <= 1)).all():
      raise UserError(f'masked span {number} needs one or more candidates with probabilities in 0..1, not '
                      f'{probs.tolist()}')


def _explanation(candidates: Sequence[Sequence[tuple[str, float]]], truth: Sequence[str] | None) -> str:
  total = f'{len(candidates):,} masked span' + 's' * (len(candidates) > 1)
  if truth is not None:
    num_right = sum(each[0][0] == answer for each, answer in zip(candidates, truth, strict=True))
    total += f', {num_right:,} filled in right (teal), {len(candidates) - num_right:,} wrong (red)'
  return total + f'; the first {MOST_SPANS} are shown' * (len(candidates) > MOST_SPANS)


def _context(
    page: Axes, text_pieces: Sequence[str | None], span: int, filled: str, answer: str | None, colour: str,
    middle: float,
) -> None:
  """Draws what was filled in between the text before and after it, on one line; below a mistake, the truth."""
  left = MARGIN + NUMBER_WIDTH
  width = WIDTH - MARGIN - CANDIDATES_WIDTH - 2 * MARGIN - left
  word = shorten(visible(filled), width / 3, weight='bold')
  word_width = text_width(word, weight='bold') + 8
  before, after = (''.join(HIDDEN if piece is None else piece for piece in pieces)
                   for pieces in (text_pieces[:span], text_pieces[span + 1:]))
  # The word may leave the middle where the text before it is short.
  start = min(text_width(before[-400:]), (width - word_width) / 2)
  write(page, shorten_start(before, start), left + start, middle, ha='right')
  write(page, word, left + start + word_width / 2, middle, ha='center', color=colour, weight='bold')
  write(page, shorten(after[:400], width - start - word_width), left + start + word_width, middle)
  if answer is not None and answer != filled:
    truth = shorten(f'true: {visible(answer)}', width - start)
    write(page, truth, left + start + 4, middle + CANDIDATE_HEIGHT)


def visible(text: str) -> str:
  """The text with its spaces at either end as ␣, so that ' in' and 'in' can be told apart; and nothing as ∅."""
  start, end = len(text) - len(text.lstrip(' ')), len(text.rstrip(' '))
  return '␣' * start + text[start:end] + '␣' * (len(text) - max(start, end)) if text else '∅'


def shorten_start(text: str, width: float) -> str:
  """The text, its start replaced by an ellipsis where it is wider than `width` pixels."""
  text = text[-400:]                                   # wider than any picture; a whole book would be slow to measure
  if text_width(text) <= width:
    return text
  cut = bisect.bisect_left(range(len(text)), -width, key=lambda start: -text_width('…' + text[start:]))
  return '…' + text[cut:].lstrip()
