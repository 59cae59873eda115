"""Hidden words: what is marked, what is guessed, and texts that are hard on a tokenizer."""

import numpy as np
import pytest

from perceiver_jax.data import byte_tokenizer
from perceiver_jax.inference.masked_lm import predict
from perceiver_jax.inference.model import Model
from perceiver_jax.types import UserError
from tests.tasks.tiny import random_model, read_config

pytestmark = pytest.mark.usefixtures('quick_compilation')

ASTERISK = ord('*') + 6


@pytest.fixture(scope='module')
def language_model():
  """On texts of 32 bytes."""
  return random_model(read_config('masked_lm:debug'))


def _seen(*, guess=ASTERISK):
  """A model that guesses one byte everywhere, and the list of the batches that it is shown."""
  batches = []

  def run(batch, *, capture=False):
    batches.append(batch)
    logits = np.zeros((1, 32, 262), np.float32)
    logits[..., guess] = 5
    logits[..., byte_tokenizer.MASK] = 9   # the most probable token, but no byte
    return {'logits': logits, **({'captured': {}} if capture else {})}

  return Model(read_config('masked_lm:debug'), {}, {}, run), batches


def _shown(batches):
  """What the model read, its hidden bytes as '_'."""
  (batch,) = batches
  tokens, valid = batch['tokens'][0], batch['valid'][0]
  length = valid.sum()
  assert (tokens.dtype, tokens.shape, valid.shape) == (np.int32, (32,), (32,))
  assert valid[:length].all() and not tokens[length:].any()
  shown = np.where(tokens == byte_tokenizer.MASK, ord('_') + 6, tokens)[:length]
  return byte_tokenizer.decode_bytes(shown)


@pytest.mark.parametrize('text, shown, spans, hidden', [
  ('A [few] words', b'A ___ words', [(2, 5)], ['few']),
  ('[all]', b'___', [(0, 3)], ['all']),
  ('one[MASK]byte', b'one_byte', [(3, 4)], [None]),
  ('a [MASK][MASK] b [c]', b'a __ b _', [(2, 3), (3, 4), (7, 8)], [None, None, 'c']),
  ('[a][b]', b'__', [(0, 1), (1, 2)], ['a', 'b']),
  ('[ spaced ]\n', b'________\n', [(0, 8)], [' spaced ']),
  ('Zo[ë] [日]本', 'Zo__ ___本'.encode(), [(2, 4), (5, 8)], ['ë', '日']),
  ('a[🙂]', b'a____', [(1, 5)], ['🙂']),
  ('of [] nothing [x]', b'of  nothing _', [(12, 13)], ['x']),
  ('a ] b [c] ]', b'a ] b _ ]', [(6, 7)], ['c']),
  ('[mask]', b'____', [(0, 4)], ['mask']),
  ('[MASK ]', b'_____', [(0, 5)], ['MASK ']),
  ('[two\nlines]', b'_________', [(0, 9)], ['two\nlines']),
])
def test_what_stands_in_brackets_is_hidden_byte_by_byte(text, shown, spans, hidden):
  model, batches = _seen()
  filled = predict(model, text)
  assert _shown(batches) == shown
  assert list(filled.spans) == spans
  assert list(filled.hidden) == hidden
  assert list(filled.guesses) == ['*' * (end - start) for start, end in spans]
  assert filled.text == shown.decode().replace('_', '*')


@pytest.mark.parametrize('text, spans, shown, byte_spans, hidden', [
  ('A few words', [(2, 5)], b'A ___ words', [(2, 5)], ['few']),
  ('[brackets] and all', [(1, 9)], b'[________] and all', [(1, 9)], ['brackets']),
  ('日本 [MASK]', [(1, 2), (0, 1)], b'______ [MASK]', [(3, 6), (0, 3)], ['本', '日']),
  ('a🙂b', [(1, 2)], b'a____b', [(1, 5)], ['🙂']),
  ('side by side', [(0, 4), (4, 8)], b'________side', [(0, 4), (4, 8)], ['side', ' by ']),
  ('numpy', np.array([[1, 3]]), b'n__py', [(1, 3)], ['um']),
  ('\udcffx\ud800y', [(2, 3)], b'\xffx_y', [(2, 3)], ['\ud800']),
])
def test_spans_are_in_characters_and_leave_the_text_as_it_is(text, spans, shown, byte_spans, hidden):
  model, batches = _seen()
  filled = predict(model, text, spans=spans)
  assert _shown(batches) == shown
  assert list(filled.spans) == byte_spans
  assert list(filled.hidden) == hidden


def test_brackets_and_spans_say_the_same():
  (model, by_brackets), (_, _), (other, by_spans) = _seen(), _seen(), _seen()
  predict(model, 'Zoë [is] h[er]e')
  predict(other, 'Zoë is here', spans=[(4, 6), (8, 10)])
  for name in ('tokens', 'valid'):
    np.testing.assert_array_equal(by_brackets[0][name], by_spans[0][name])


def test_half_a_letter_is_told_by_the_replacement_character():
  model, _ = _seen(guess=0xf0 + 6)         # the first byte of an emoji, four times
  filled = predict(model, 'a[🙂]b')
  assert filled.guesses == ('\N{REPLACEMENT CHARACTER}' * 4,)
  assert filled.text == 'a' + '\N{REPLACEMENT CHARACTER}' * 4 + 'b'
  assert filled.hidden == ('🙂',)


def test_a_letter_whose_first_bytes_are_known_is_put_together():
  model, _ = _seen(guess=0x82 + 6)
  half = '🙂'.encode()[:3].decode('utf-8', 'surrogateescape')
  filled = predict(model, f'{half}[MASK]!')
  assert filled.text == '🙂!'
  assert filled.guesses == ('\N{REPLACEMENT CHARACTER}',)  # alone it is no letter


def test_lone_surrogates_are_read_as_a_question_mark_or_their_byte():
  model, batches = _seen()
  filled = predict(model, 'a\ud800 \udcff [x]')
  assert _shown(batches) == b'a? \xff _'
  assert filled.text == 'a? \N{REPLACEMENT CHARACTER} *'


def test_probabilities_are_of_every_token_at_every_hidden_byte():
  model, _ = _seen()
  (probabilities,) = predict(model, '[ab]c').probabilities
  assert (probabilities.shape, probabilities.dtype) == ((2, 262), np.float32)
  logits = np.zeros(262)
  logits[ASTERISK], logits[byte_tokenizer.MASK] = 5, 9
  np.testing.assert_allclose(probabilities, np.tile(np.exp(logits) / np.exp(logits).sum(), (2, 1)), rtol=1e-5)


@pytest.mark.parametrize('text, message', [
  ('', 'nothing is hidden'),
  ('nothing', 'nothing is hidden in the text: put'),
  ('[]', 'nothing is hidden'),
  ('a [b', r'a \[ without its \] in the text: \.\.\.a \['),
  ('[', r'a \[ without its \]'),
  ('[a] [b [c] d]', r'a \[ without its \] in the text: \.\.\. \['),
  ('[[MASK]]', r'a \[ without its \]'),
  ('x' * 32 + '[y]', 'the text has 33 bytes, but the model reads 32; shorten it'),
  ('本' * 10 + '[日]', 'the text has 33 bytes, but the model reads 32'),
  (b'[bytes]', 'a text is a str, not bytes'),
  (None, 'a text is a str, not NoneType'),
])
def test_a_text_that_cannot_be_read_is_the_users_mistake(text, message):
  model, batches = _seen()
  with pytest.raises(UserError, match=message):
    predict(model, text)
  assert not batches


def test_a_text_that_just_fits_is_read():
  model, batches = _seen()
  predict(model, 'x' * 31 + '[y]')
  assert _shown(batches) == b'x' * 31 + b'_'


@pytest.mark.parametrize('span', [(-1, 2), (2, 2), (3, 2), (0, 5), (4, 5)])
def test_a_span_outside_the_text_is_the_users_mistake(span):
  with pytest.raises(UserError, match=r'the span \[.*\) is not inside the text of 4 characters'):
    predict(_seen()[0], 'text', spans=[span])
  with pytest.raises(UserError, match='nothing is hidden'):
    predict(_seen()[0], 'text', spans=[])


@pytest.mark.parametrize('spans, shown', [
  ('ab', "'ab'"), ([(1,)], r'\[\(1,\)\]'), ((0, 3), r'\(0, 3\)'), ([(0.0, 3.0)], r'\[\(0.0'), (3, '3'),
  ([(0, 1, 2)], r'\[\(0, 1, 2\)\]'),
])
def test_spans_of_another_form_are_the_users_mistake_and_the_right_form_is_shown(spans, shown):
  with pytest.raises(UserError, match=rf'spans are \[\(start, end\), \.\.\.\], .* not {shown}'):
    predict(_seen()[0], 'text', spans=spans)


@pytest.mark.parametrize('spans', [[(0, 4), (2, 5)], [(2, 5), (0, 4)], [(0, 6), (1, 2)], [(1, 2), (1, 2)]])
def test_spans_that_overlap_are_the_users_mistake(spans):
  model, batches = _seen()
  with pytest.raises(UserError, match=r'the spans \[\d, \d\) and \[\d, \d\) overlap'):
    predict(model, 'overlap', spans=spans)
  assert not batches


def test_a_model_of_word_pieces_is_the_users_mistake():
  model = _seen()[0]._replace(config=read_config('masked_lm:sentencepiece,debug'))
  with pytest.raises(UserError, match='this model reads a vocabulary of 32000 tokens, and only bytes'):
    predict(model, '[a]')


def test_a_model_fills_in_what_its_logits_say(language_model):
  filled = predict(language_model, 'Some [words].', capture=True)
  ids = byte_tokenizer.encode('Some words.')
  ids[5:10] = byte_tokenizer.MASK
  logits = language_model.run({'tokens': ids[None], 'valid': np.ones((1, 11), np.uint8)})['logits'][0, 5:10]
  guess = byte_tokenizer.decode_bytes(6 + logits[:, 6:].argmax(-1))
  assert filled.guesses == (guess.decode('utf-8', 'replace'),)
  assert filled.text == (b'Some ' + guess + b'.').decode('utf-8', 'replace')
  assert filled.captured['decoder'].shape == (1, 2, 32, 4)


def test_what_is_hidden_does_not_reach_the_model(language_model):
  one, other = (predict(language_model, f'a [{word}] b') for word in ('word', 'play'))
  np.testing.assert_array_equal(one.probabilities[0], other.probabilities[0])
  assert (one.text, one.hidden, other.hidden) == (other.text, ('word',), ('play',))
