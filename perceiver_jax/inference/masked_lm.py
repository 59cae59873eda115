"""Hidden words, filled in byte by byte (2107.14795, section 4.1; the recipe of the authors' example)."""

from __future__ import annotations

import itertools
import operator
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np

from perceiver_jax.data import byte_tokenizer
from perceiver_jax.inference.model import Model, ask, check_text
from perceiver_jax.types import UserError

if TYPE_CHECKING:
  from perceiver_jax.inference.predictor import Predictor

SUFFIXES = ('.png',)
NUM_CANDIDATES = 5


class Filled(NamedTuple):
  """A text whose hidden bytes the model has guessed, each by itself."""

  text: str                                # with the guesses in their places
  spans: tuple[tuple[int, int], ...]       # [start, end) of each hidden span, in bytes of the text
  guesses: tuple[str, ...]                 # per span
  hidden: tuple[str | None, ...]           # per span, what stood there; None where nobody knows
  probabilities: tuple[np.ndarray, ...]    # per span [length, V] float32, of every token at every byte
  captured: dict[str, Any] | None          # attention maps and latents, where asked for


def predict(
  model: Model, text: str, *, spans: Sequence[tuple[int, int]] | None = None, capture: bool = False,
) -> Filled:
  """Guesses what is hidden in a text.

  Args:
    model: of the task masked_lm, on bytes.
    text: `Some [words] are [MASK][MASK].`: what stands in square brackets is hidden, as many bytes as it has; a [MASK]
      is one hidden byte, and [] is nothing. With `spans`, the text as it is, brackets and all.
    spans: [(start, end), ...] in characters, end not among them, in any order.
    capture: also return attention maps and latents.

  Raises:
    UserError: nothing hidden, a bracket that is not closed before the next one opens, spans of another form, outside
      the text or one upon another, a longer text than the model reads, or not a model on bytes.
  """
  check_text(model, text)
  data = model.config.data
  raw, byte_spans, hidden = _marked(text) if spans is None else _given(text, spans)
  if not byte_spans:
    raise UserError('nothing is hidden in the text: put [brackets] around the words to guess')
  if len(raw) > data.max_length:
    raise UserError(f'the text has {len(raw)} bytes, but the model reads {data.max_length}; shorten it')
  tokens = np.full(data.max_length, byte_tokenizer.PAD, np.int32)
  tokens[:len(raw)] = byte_tokenizer.encode(raw)
  for start, end in byte_spans:
    tokens[start:end] = byte_tokenizer.MASK
  valid = (np.arange(data.max_length) < len(raw)).astype(np.uint8)
  outputs = ask(model, {'tokens': tokens[None], 'valid': valid[None]}, capture=capture)
  probabilities = tuple(np.asarray(jax.nn.softmax(outputs['logits'][0, start:end])) for start, end in byte_spans)
  best = [byte_tokenizer.NUM_SPECIAL + each[:, byte_tokenizer.NUM_SPECIAL:].argmax(-1) for each in probabilities]
  filled = tokens[:len(raw)].copy()
  for (start, end), ids in zip(byte_spans, best, strict=True):
    filled[start:end] = ids
  guesses = tuple(byte_tokenizer.decode(ids) for ids in best)
  return Filled(
    byte_tokenizer.decode(filled), tuple(byte_spans), guesses, tuple(hidden), probabilities, outputs.get('captured'))


def _marked(text: str) -> tuple[bytes, list[tuple[int, int]], list[str | None]]:
  """The bytes of a text without its brackets, the spans that they marked, and what stood in them."""
  raw, spans = b'', []
  hidden: list[str | None] = []
  for outside, inside in re.findall(r'([^\[]*)(\[[^\[\]]*\]|\[|$)', text):
    raw += byte_tokenizer.decode_bytes(byte_tokenizer.encode(outside))
    if inside == '[':
      raise UserError(f'a [ without its ] in the text: ...{outside[-20:]}[ (for a text with its own brackets: spans=)')
    if inside not in ('', '[]'):
      is_known = inside != '[MASK]'
      within = byte_tokenizer.decode_bytes(byte_tokenizer.encode(inside[1:-1])) if is_known else b' '
      spans.append((len(raw), len(raw) + len(within)))
      hidden.append(inside[1:-1] if is_known else None)
      raw += within
  return raw, spans, hidden


def _given(text: str, spans: Sequence[tuple[int, int]]) -> tuple[bytes, list[tuple[int, int]], list[str | None]]:
  """The same of a text and spans in characters."""
  byte_spans = []
  hidden: list[str | None] = []
  pairs = _pairs(spans)
  for start, end in pairs:
    if not 0 <= start < end <= len(text):
      raise UserError(f'the span [{start}, {end}) is not inside the text of {len(text)} characters')
    before, within = (len(byte_tokenizer.encode(part)) for part in (text[:start], text[start:end]))
    byte_spans.append((before, before + within))
    hidden.append(text[start:end])
  in_order = sorted(pairs)
  for (start, end), (next_start, next_end) in itertools.pairwise(in_order):
    if next_start < end:
      raise UserError(f'the spans [{start}, {end}) and [{next_start}, {next_end}) overlap; make one of them')
  return byte_tokenizer.decode_bytes(byte_tokenizer.encode(text)), byte_spans, hidden


def _pairs(spans: Any) -> list[tuple[int, int]]:
  try:
    return [(operator.index(start), operator.index(end)) for start, end in spans]
  except (TypeError, ValueError):            # of what is no number, and of another number of them
    raise UserError(f'spans are [(start, end), ...], whole numbers of characters, not {spans!r:.60}') from None


def present(predictor: Predictor, inputs: Sequence[str], output: str | None) -> Iterator[str]:
  """The text with its hidden bytes filled in, and a line of candidates per span; draws a table of these."""
  from perceiver_jax import visualize

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
