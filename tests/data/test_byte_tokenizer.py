"""Text as bytes: ids as published, and every text and every byte there and back."""

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from perceiver_jax.data import byte_tokenizer
from perceiver_jax.data.byte_tokenizer import decode, decode_bytes, encode


def test_ids_are_those_of_the_authors():
  names = ('PAD', 'BEGIN', 'END', 'MASK', 'CLASS', 'SEPARATOR', 'NUM_SPECIAL', 'VOCAB_SIZE')
  assert [getattr(byte_tokenizer, name) for name in names] == [0, 1, 2, 3, 4, 5, 6, 262]
  ids = encode(' missing.')
  assert ids.dtype == np.int32 and ids.tolist() == [38, 115, 111, 121, 121, 111, 116, 109, 52]


@pytest.mark.parametrize('text, raw', [
  ('', b''), ('Zoë', b'Zo\xc3\xab'), ('日', b'\xe6\x97\xa5'), ('🙂', b'\xf0\x9f\x99\x82'), ('a\x00\n', b'a\x00\n'),
])
def test_a_text_is_its_utf8(text, raw):
  assert encode(text).tolist() == [byte + 6 for byte in raw]
  assert decode(encode(text)) == text
  assert encode(raw).tolist() == encode(text).tolist()


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=100))
def test_all_bytes_come_back(raw):
  ids = encode(raw)
  assert len(ids) == len(raw) and np.all((ids >= 6) & (ids < 262))
  assert decode_bytes(ids) == raw
  # Python's own way of keeping what is no UTF-8 in a str.
  assert encode(raw.decode('utf-8', 'surrogateescape')).tolist() == ids.tolist()


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=100))
def test_all_text_comes_back(text):
  assert decode(encode(text)) == text


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(categories=['Cs', 'L']), max_size=20))
def test_every_text_has_a_form_of_which_each_part_is_the_parts_own(text):
  ids = encode(text)
  for cut in range(len(text) + 1):
    assert np.concatenate([encode(text[:cut]), encode(text[cut:])]).tolist() == ids.tolist()


def test_a_lone_surrogate_is_its_byte_or_a_question_mark_whatever_stands_beside_it():
  assert decode_bytes(encode('a\udcffb')) == b'a\xffb'
  assert decode_bytes(encode('a\ud800b\udc00c')) == b'a?b?c'
  assert decode_bytes(encode('\udcff\ud800é')) == b'\xff?\xc3\xa9'


def test_special_tokens_are_no_text():
  ids = [byte_tokenizer.CLASS, *encode('ab'), byte_tokenizer.MASK, *encode('c'), byte_tokenizer.SEPARATOR, 0, 0]
  assert decode(ids) == 'abc'
  assert decode(np.array(ids)) == 'abc'


def test_what_is_cut_in_the_middle_of_a_letter_is_told_by_the_replacement_character():
  assert decode(encode('a🙂')[:3]) == 'a\N{REPLACEMENT CHARACTER}'


def test_an_id_beyond_the_vocabulary_is_refused():
  with pytest.raises(ValueError, match='256'):
    decode([262])
