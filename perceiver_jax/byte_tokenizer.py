"""Text as bytes: the vocabulary of the language Perceiver (2107.14795, appendix F; ids as in the authors' code).

Ids [L] int32: 0 padding, 1 beginning, 2 end, 3 mask, 4 class, 5 separator; byte b is b + 6.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

PAD, BEGIN, END, MASK, CLASS, SEPARATOR = range(6)
NUM_SPECIAL = 6
VOCAB_SIZE = NUM_SPECIAL + 256


def encode(text: str | bytes) -> np.ndarray:
  """[L] int32. What of a `str` has no UTF-8 form (a lone surrogate) becomes the bytes that it stands for, or '?'."""
  raw = text if isinstance(text, bytes) else _utf8(text)
  return np.frombuffer(raw, np.uint8).astype(np.int32) + NUM_SPECIAL


def _utf8(text: str) -> bytes:
  try:
    return text.encode('utf-8', 'surrogateescape')
  except UnicodeEncodeError:
    return text.encode('utf-8', 'replace')


def decode(ids: Iterable[int]) -> str:
  """The text of ids; special ones are left out, and bytes that are no UTF-8 become '\N{REPLACEMENT CHARACTER}'."""
  return decode_bytes(ids).decode('utf-8', 'replace')


def decode_bytes(ids: Iterable[int]) -> bytes:
  """The bytes of ids; special ones are left out."""
  return bytes(int(i) - NUM_SPECIAL for i in ids if i >= NUM_SPECIAL)
