"""Strategies of hypothesis: what a stranger's file may be, made from one that is whole."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st

_EXTREMES = [
  number.to_bytes(size, order) for size in (1, 2, 4, 8) for order in ('little', 'big')
  for number in (0, 1, 2 ** (8 * size - 1) - 1, 2 ** (8 * size - 1), 2 ** (8 * size) - 1)]
_PIECES = st.one_of(st.sampled_from(_EXTREMES), st.binary(min_size=1, max_size=8))

NUMBERS = st.one_of(
  st.integers(), st.sampled_from([-1, 0, 1, 2**31, 2**62, 2**63, 2**64, 10**30, 10**400]), st.floats(),
  st.booleans())
TEXTS = st.one_of(
  st.text(max_size=8),
  st.sampled_from([
    '', '.', '..', '/', '../x', '/dev/zero', '/etc/passwd', 'a' * 300, 'a\0b', '\ud800', '\x1b[2J', '{}']))
VALUES = st.recursive(
  st.one_of(st.none(), NUMBERS, TEXTS),
  lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXTS, inner, max_size=3)), max_leaves=5)


@st.composite
def edited_bytes(draw: Any, wholes: Sequence[bytes]) -> bytes:
  """One of `wholes` with bits flipped, pieces set, put in, taken out, moved or repeated; often cut short."""
  content = bytearray(draw(st.sampled_from(wholes)))
  for _ in range(draw(st.integers(1, 4))):
    start = draw(st.integers(0, max(len(content) - 1, 0)))
    end = start + draw(st.integers(1, 16))
    match draw(st.sampled_from(['flip', 'set', 'put in', 'take out', 'move', 'repeat', 'cut'])):
      case 'flip' if content:
        content[start] ^= 1 << draw(st.integers(0, 7))
      case 'set':
        piece = draw(_PIECES)
        content[start:start + len(piece)] = piece
      case 'put in':
        content[start:start] = draw(_PIECES)
      case 'take out':
        del content[start:end]
      case 'move':
        place = draw(st.integers(0, len(content)))
        content[place:place] = content[start:end]
      case 'repeat':
        content[start:end] = content[start:end] * draw(st.integers(2, 40))
      case 'cut':
        del content[start:]
  return bytes(content)


@st.composite
def edited_json(draw: Any, whole: Any) -> Any:
  """`whole`, what JSON can hold, with one to three values of it replaced, left out, renamed, or put in a list."""
  root = [copy.deepcopy(whole)]
  for _ in range(draw(st.integers(1, 3))):
    holder, key = draw(st.sampled_from(_places(root)))
    match draw(st.sampled_from(['replace', 'replace', 'leave out', 'rename', 'wrap', 'nest'])):
      case 'replace':
        holder[key] = draw(VALUES)
      case 'leave out' if isinstance(holder, dict):
        del holder[key]
      case 'rename' if isinstance(holder, dict):
        holder[draw(TEXTS)] = holder.pop(key)
      case 'wrap':
        holder[key] = [holder[key]]
      case 'nest':
        for _ in range(draw(st.sampled_from([1, 3, 80]))):
          holder[key] = {draw(TEXTS): holder[key]}
  return root[0]


def _places(value: Any) -> list[tuple[Any, Any]]:
  keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else []
  return [(value, key) for key in keys] + [place for key in keys for place in _places(value[key])]
