"""Any bytes and any text become ids and come back; any ids become text or are refused."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from perceiver_jax.data.byte_tokenizer import NUM_SPECIAL, VOCAB_SIZE, decode, decode_bytes, encode
from tests.fuzz.harness import cases


@cases(150, raw=st.binary(max_size=300))
def test_any_bytes_come_back(raw):
  ids = encode(raw)
  assert ids.dtype == np.int32 and np.all((ids >= NUM_SPECIAL) & (ids < VOCAB_SIZE))
  assert decode_bytes(ids) == raw
  assert encode(raw.decode('utf-8', 'surrogateescape')).tolist() == ids.tolist()
  assert isinstance(decode(ids), str)


@cases(150, text=st.text(st.characters(), max_size=200))
def test_any_text_comes_back_but_for_what_is_no_letter(text):
  again = decode(encode(text))
  assert again == text or any('\ud800' <= letter <= '\udfff' for letter in text)


@cases(100, ids=st.lists(st.one_of(st.integers(-3, 270), st.integers()), max_size=20))
def test_any_ids_are_text_or_a_value_error(ids):
  try:
    found = decode(ids)
  except ValueError:
    assert max(ids) >= VOCAB_SIZE
  else:
    assert len(found.encode()) <= 3 * len(ids)
