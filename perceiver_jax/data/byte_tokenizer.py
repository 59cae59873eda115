"""Text as bytes: the vocabulary of the language Perceiver (2107.14795, appendix F; ids as in the authors' code).

Ids [L] int32: 0 padding, 1 beginning, 2 end, 3 mask, 4 class, 5 separator; byte b is b + 6.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import numpy as np

PAD, BEGIN, END, MASK, CLASS, SEPARATOR = range(6)
NUM_SPECIAL = 6
VOCAB_SIZE = NUM_SPECIAL + 256

_WITHOUT_A_BYTE = re.compile('[\ud800-\udc7f\udd00-\udfff]')  # surrogates; the others, alone, stand for a byte


def encode(text: str | bytes) -> np.ndarray:
  """Returns ids [L] int32. A lone surrogate, which has no UTF-8 form, becomes the byte that it stands for, or '?'."""
  raw = text if isinstance(text, bytes) else _WITHOUT_A_BYTE.sub('?', text).encode('utf-8', 'surrogateescape')
  return np.frombuffer(raw, np.uint8).astype(np.int32) + NUM_SPECIAL


def decode(ids: Iterable[int]) -> str:
  """The text of ids; special ones are left out, and bytes that are no UTF-8 become '\N{REPLACEMENT CHARACTER}'."""
  return decode_bytes(ids).decode('utf-8', 'replace')


def decode_bytes(ids: Iterable[int]) -> bytes:
  """The bytes of ids; special ones are left out. Raises ValueError for an id that is not in the vocabulary."""
  return bytes(int(i) - NUM_SPECIAL for i in ids if i >= NUM_SPECIAL)
