"""Reads a pickle of weights without running anything in it, given what the few names in it stand for.

A pickle is a program: Python's own reader imports and calls whatever it names. This one reads the instructions (with
the standard library's `pickletools`, which only parses) and carries out those that trees of arrays are made of. It
imports nothing that a file names, sets no attribute, calls only what its caller's table holds, and allocates in
proportion to what a file holds.
"""

from __future__ import annotations

import dataclasses
import mmap
import pickletools
from collections.abc import Callable, Mapping
from typing import IO, Any, cast

import numpy as np

from perceiver_jax.types import Tree

# Far above any tree of weights (those released are thousands of entries, four deep), far below what hangs a machine.
_MAX_INSTRUCTIONS = 1_000_000
_MAX_ENTRIES = 1_000_000
_MAX_DEPTH = 64

# Not LONG4: arithmetic on numbers of megabytes takes for ever.
_DATA = {
  'BININT', 'BININT1', 'BININT2', 'LONG1', 'BINFLOAT', 'BINUNICODE', 'SHORT_BINUNICODE', 'BINUNICODE8',
  'BINBYTES', 'SHORT_BINBYTES', 'BINBYTES8', 'BYTEARRAY8'}
_CONSTANTS = {'NONE': None, 'NEWTRUE': True, 'NEWFALSE': False}
_CONTAINERS: dict[str, type] = {'EMPTY_DICT': dict, 'EMPTY_LIST': list, 'EMPTY_TUPLE': tuple}
_SHORT_TUPLES = {'TUPLE1': 1, 'TUPLE2': 2, 'TUPLE3': 3}


class Unfit(Exception):
  """Arguments, or a state, other than those that a library's own pickles hold."""


class Array:
  """An array that a file has announced, and fills later."""

  value: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Name:
  """A name in a file, without its module: `call` of a tuple of arguments; None if it is only ever an argument."""

  name: str
  call: Callable[[Any], Any] | None


def read(
  content: bytes | mmap.mmap, names: Mapping[str, Callable[[Any], Any] | None],
  set_state: Callable[[Any, Any], None], load: Callable[[Any], Any] | None = None,
) -> Tree:
  """The tree that a pickle describes: dicts, lists, tuples, NumPy arrays and scalars, numbers, strings, None.

  Args:
    content: of protocol 2 to 5.
    names: {'module name': what is called in its place, with a tuple of arguments; None if nothing is}. No others are
      known. What is called raises `Unfit`, or a ValueError that says more.
    set_state: gives an object of the file a state; raises the same.
    load: what a persistent id stands for; without it, such an id is refused. It raises a ValueError.

  Raises:
    ValueError: it is damaged, or holds anything else, which is named.
  """
  try:
    return _tree(_carry_out(content, names, set_state, load))
  except (IndexError, KeyError) as error:   # an empty stack, a reference to nothing
    raise ValueError('it is damaged') from error


def empty(kind: type) -> Callable[[Any], Any]:
  """A function for `read`'s names: calls a type without arguments."""
  def call(arguments: Any) -> Any:
    match arguments:
      case ():
        return kind()
    raise Unfit
  return call


def _carry_out(
  content: bytes | mmap.mmap, names: Mapping[str, Callable[[Any], Any] | None],
  set_state: Callable[[Any, Any], None], load: Callable[[Any], Any] | None,
) -> Any:
  """The object that a pickle describes, with an `Array` for one that was announced."""
  stack: list[Any] = []
  marks: list[int] = []
  memo: dict[int, Any] = {}
  argument: Any
  num_bytes_left = len(content)             # that strings may be encoded to: one string can be asked for often
  for step, (opcode, argument, _) in enumerate(pickletools.genops(cast(IO[bytes], content))):
    if step == _MAX_INSTRUCTIONS:
      raise ValueError(f'it has more than {_MAX_INSTRUCTIONS} instructions')
    name = opcode.name
    if name in _DATA:
      stack.append(argument)
    elif name in _CONSTANTS:
      stack.append(_CONSTANTS[name])
    elif name in _CONTAINERS:
      stack.append(_CONTAINERS[name]())
    elif name in _SHORT_TUPLES:
      stack.append(tuple(_cut(stack, len(stack) - _SHORT_TUPLES[name])))
    elif name == 'MARK':
      marks.append(len(stack))
    elif name == 'TUPLE':
      stack.append(tuple(_cut(stack, marks.pop())))
    elif name in ('APPEND', 'APPENDS'):
      _append(stack, _cut(stack, marks.pop() if name == 'APPENDS' else len(stack) - 1))
    elif name in ('SETITEM', 'SETITEMS'):
      _set_items(stack, _cut(stack, marks.pop() if name == 'SETITEMS' else len(stack) - 2))
    elif name == 'MEMOIZE':
      memo[len(memo)] = stack[-1]
    elif name in ('BINPUT', 'LONG_BINPUT'):
      memo[argument] = stack[-1]
    elif name in ('BINGET', 'LONG_BINGET'):
      stack.append(memo[argument])
    elif name == 'GLOBAL':
      stack.append(_find(argument, names))
    elif name == 'STACK_GLOBAL':
      module, attribute = _cut(stack, len(stack) - 2)
      stack.append(_find(f'{module} {attribute}' if type(module) is type(attribute) is str else '? ?', names))
    elif name == 'BINPERSID' and load is not None:
      stack.append(load(stack.pop()))
    elif name == 'REDUCE':
      function, arguments = _cut(stack, len(stack) - 2)
      stack.append(_call(function, arguments))
      num_bytes_left -= len(stack[-1]) if isinstance(stack[-1], bytes) else 0
      if num_bytes_left < 0:
        raise ValueError('it repeats its strings to more than its own size')
    elif name == 'BUILD':
      state = stack.pop()
      try:
        set_state(stack[-1], state)
      except Unfit:
        raise ValueError(f'refuses to set the state of {_shown(stack[-1])} like this') from None
    elif name == 'STOP':
      return stack.pop()
    elif name not in ('PROTO', 'FRAME'):
      said = f' {_printable(argument)}' if isinstance(argument, str) else ''
      raise ValueError(f'refuses the instruction {name}{said}, which no file of weights needs')
  raise AssertionError('genops ends with STOP or raises')


def _cut(stack: list[Any], start: int) -> list[Any]:
  """Takes everything from `start` on off the stack."""
  if not 0 <= start <= len(stack):
    raise IndexError
  items = stack[start:]
  del stack[start:]
  return items


def _append(stack: list[Any], items: list[Any]) -> None:
  if type(stack[-1]) is not list:
    raise ValueError(f'refuses to append to {_shown(stack[-1])}')
  stack[-1].extend(items)


def _set_items(stack: list[Any], items: list[Any]) -> None:
  if type(stack[-1]) is not dict:
    raise ValueError(f'refuses to set items of {_shown(stack[-1])}')
  for key, value in zip(items[::2], items[1::2], strict=True):
    if type(key) is not str:                # the hash of a tuple of tuples may take for ever
      raise ValueError(f'refuses {_shown(key)} as a key: those of weights are strings')
    stack[-1][key] = value


def _find(name: str, names: Mapping[str, Callable[[Any], Any] | None]) -> Name:
  if name not in names:
    raise ValueError(f'refuses {_printable(name.replace(" ", "."))}')
  return Name(name.split()[-1], names[name])


def _call(function: Any, arguments: Any) -> Any:
  if not isinstance(function, Name) or function.call is None:
    raise ValueError(f'refuses to call {_shown(function)}')
  try:
    if type(arguments) is not tuple:
      raise Unfit
    return function.call(arguments)
  except Unfit:
    raise ValueError(f'refuses to call {function.name} like this') from None


def _tree(value: Any) -> Tree:
  """A copy of containers, so that none is within itself or in two places; with arrays for each `Array`."""
  num_entries = 0

  def visit(value: Any, depth: int) -> Any:
    nonlocal num_entries
    num_entries += 1
    if num_entries > _MAX_ENTRIES or depth > _MAX_DEPTH:
      raise ValueError(
        f'it contains itself, is more than {_MAX_DEPTH} deep, or holds more than {_MAX_ENTRIES} entries')
    match value:
      case dict():
        return {key: visit(inner, depth + 1) for key, inner in value.items()}
      case list() | tuple():
        return type(value)(visit(inner, depth + 1) for inner in value)
      case Array(value=np.ndarray() as array):
        return array
      case None | int() | float() | str() | np.ndarray() | np.generic():
        return value
    raise ValueError(f'refuses {_shown(value)} as an entry')

  return visit(value, 0)


def _printable(name: str) -> str:
  return ascii(name[:100])[1:-1]


def _shown(value: Any) -> str:
  return value.name if isinstance(value, Name) else f'a {type(value).__name__.strip("_").lower()}'
