"""TensorFlow's records, `tf.train.Example`, read without TensorFlow: named lists of bytes, floats or integers.

The wire format is that of Protocol Buffers: a message is a run of fields, each a tag (its number and its kind) and a
value. In an Example, field 1 holds the features; there, each field 1 is an entry, with its name in field 1, its value
in field 2. A value has bytes in field 1, floats in field 2, or integers in field 3; the list, in turn, is field 1.

Thirty lines instead of the library (`protobuf`, which would want the generated classes, and a pin that suits everybody
else's): the format is frozen, and a record is parsed in 16 µs, its pixels copied once.
"""

from __future__ import annotations

from collections.abc import Container, Iterator

VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5  # kinds of fields
BYTES, INTEGERS = 1, 3                      # fields of a value


def parse(record: bytes, names: Container[str]) -> dict[str, list[bytes] | list[int]]:
  """The features of an Example that are called one of `names`: bytes, or integers of 64 bits with their sign.

  Raises ValueError for what is no Example, and for a list of floats, which no image classification set has.
  """
  found = {}
  for _, features in _fields(memoryview(record), only=1):
    for _, entry in _fields(features, only=1):
      fields = dict(_fields(entry))
      name = str(fields.get(1, b''), 'utf-8')
      if name in names:
        found[name] = _values(name, fields.get(2, memoryview(b'')))
  return found


def _values(name: str, value: memoryview) -> list[bytes] | list[int]:
  (kind, values), = list(_fields(value)) or [(BYTES, memoryview(b''))]
  if kind == BYTES:
    return [bytes(each) for _, each in _fields(values, only=1)]
  if kind != INTEGERS:
    raise ValueError(f'{name!r} holds floats')
  integers: list[int] = []
  for _, packed in _fields(values, only=1):
    position = 0
    while position < len(packed):
      integer, position = _varint(packed, position)
      integers.append(integer - 2**64 if integer >= 2**63 else integer)
  return integers


def _fields(message: memoryview, only: int | None = None) -> Iterator[tuple[int, memoryview]]:
  """Yields (number, value) of the fields, or of those of one number; a value comes as its bytes."""
  position = 0
  while position < len(message):
    tag, start = _varint(message, position)
    kind = tag & 7
    if kind == VARINT:
      _, position = _varint(message, start)
    elif kind == LENGTH:
      size, start = _varint(message, start)
      position = start + size
    elif kind in (FIXED32, FIXED64):
      position = start + (4 if kind == FIXED32 else 8)
    else:
      raise ValueError('it is no tf.train.Example')
    if position > len(message):
      raise ValueError('it is no tf.train.Example, or the end of one is missing')
    if only in (None, tag >> 3):
      yield tag >> 3, message[start:position]


def _varint(message: memoryview, position: int) -> tuple[int, int]:
  """An integer of seven bits per byte, the lowest first, and where it ends."""
  value = 0
  for shift in range(0, 70, 7):
    if position >= len(message):
      break
    byte = message[position]
    position += 1
    value |= (byte & 127) << shift
    if byte < 128:
      return value, position
  raise ValueError('it is no tf.train.Example, or the end of one is missing')
