"""Texts with hidden words: the words that fit."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import numpy as np

from perceiver_jax import byte_tokenizer, visualize
from perceiver_jax.inference.predictor import Predictor

SUFFIXES = ('.png',)
NUM_CANDIDATES = 5


def present(predictor: Predictor, inputs: Sequence[str], output: str | None) -> Iterator[str]:
  """The text with its hidden bytes filled in, and a line of candidates per span; draws a table of these."""
  text = ' '.join(inputs)
  filled = predictor.predict(text)
  candidates = [candidates_of(each, NUM_CANDIDATES) for each in filled.probabilities]
  lines = ['  '.join(f'{share:6.1%} {words!r}' for words, share in each) for each in candidates]
  yield '\n'.join([filled.text, *lines])
  if output:
    outside = re.split(r'\[[^\]]+\]', text.replace('[]', ''))
    pieces = [piece for before in outside for piece in (before, None)][:-1]
    truth = None if None in filled.hidden else filled.hidden
    visualize.masked_words(output, pieces, candidates, truth)


def candidates_of(probabilities: np.ndarray, count: int) -> list[tuple[str, float]]:
  """The `count` most probable fillings of a span, best first, as the model guesses every byte by itself.

  probabilities: [length, V], of every token at every byte. Special tokens are left out.
  """
  best: list[tuple[float, tuple[int, ...]]] = [(1.0, ())]
  for position in probabilities:
    ids = byte_tokenizer.NUM_SPECIAL + np.argsort(-position[byte_tokenizer.NUM_SPECIAL:], kind='stable')[:count]
    longer = [(share * float(position[i]), (*chosen, int(i))) for share, chosen in best for i in ids]
    best = sorted(longer, key=lambda each: -each[0])[:count]
  return [(byte_tokenizer.decode(ids), share) for share, ids in best]
