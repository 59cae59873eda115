"""Reads the authors' `.pystate` and `.pickle` files without running anything in them.

A pickle is a program: Python's own reader imports and calls whatever it names. This one reads the instructions (with
the standard library's `pickletools`, which only parses) and carries them out itself. It knows those that trees of
arrays are made of, and a handful of names, each with a stand-in below. It imports nothing that a file names, sets no
attribute, calls nothing else, and allocates in proportion to what a file holds.

What the names are follows from how the libraries of then and now pickle themselves: Haiku's mappings as a call of
`FlatMapping` on a dict (`frozendict` before August 2020); JAX's arrays as plain NumPy arrays up to 0.3.11, later as a
call of `reconstruct_device_array` or `_reconstruct_array` on the parts of one.
"""

from __future__ import annotations

import dataclasses
import math
import mmap
import os
import pickletools
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, cast

import jax.numpy as jnp
import numpy as np

from perceiver_jax.types import Tree, UserError

# Far above any tree of weights (those released are thousands of entries, four deep), far below what hangs a machine.
_MAX_INSTRUCTIONS = 1_000_000
_MAX_ENTRIES = 1_000_000
_MAX_DEPTH = 64
_MAX_AXES = 32

_NUMBERS = {'b1', 'i1', 'i2', 'i4', 'i8', 'u1', 'u2', 'u4', 'u8', 'f2', 'f4', 'f8', 'c8', 'c16'}
_DATA = {
  'BININT', 'BININT1', 'BININT2', 'LONG1', 'LONG4', 'BINFLOAT', 'BINUNICODE', 'SHORT_BINUNICODE', 'BINUNICODE8',
  'BINBYTES', 'SHORT_BINBYTES', 'BINBYTES8', 'BYTEARRAY8'}
_CONSTANTS = {'NONE': None, 'NEWTRUE': True, 'NEWFALSE': False}
_CONTAINERS: dict[str, type] = {'EMPTY_DICT': dict, 'EMPTY_LIST': list, 'EMPTY_TUPLE': tuple}
_SHORT_TUPLES = {'TUPLE1': 1, 'TUPLE2': 2, 'TUPLE3': 3}


class _Array:
  """An array that a file has announced, and fills later."""

  value: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class _Global:
  """What a name in a file stands for: `call` of a tuple of arguments; None if it is only ever an argument."""

  name: str
  call: Callable[[Any], Any] | None = None


def read(path: str | os.PathLike) -> Tree:
  """The tree in a file: dicts, lists, tuples, NumPy arrays and scalars, numbers, strings, None.

  Haiku's mappings and ordered dicts come as dicts, JAX's arrays as NumPy arrays. Arrays may be read-only.

  Raises:
    UserError: a file that cannot be read, is no pickle, is damaged, or holds anything else, which is named.
  """
  path = Path(path)
  try:
    with path.open('rb') as file:
      start = file.read(2)
      if start[:1] != b'\x80' or start[1:] not in (b'\2', b'\3', b'\4', b'\5'):
        raise ValueError(f'it is no pickle of protocol 2 to 5 (it begins with {start!r})')
      with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return _tree(_carry_out(content))
  except OSError as error:
    raise UserError(f'cannot read {path}: {error.strerror}') from error
  except (IndexError, KeyError) as error:   # an empty stack, a reference to nothing
    raise UserError(f'cannot read {path}: it is damaged. Nothing in it was run') from error
  except ValueError as error:
    raise UserError(f'cannot read {path}: {error!s:.300}. Nothing in it was run') from error


def _carry_out(content: mmap.mmap) -> Any:
  """The object that a pickle describes, with an `_Array` for an array."""
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
      stack.append(_find(argument))
    elif name == 'STACK_GLOBAL':
      module, attribute = _cut(stack, len(stack) - 2)
      stack.append(_find(f'{module} {attribute}' if type(module) is type(attribute) is str else '? ?'))
    elif name == 'REDUCE':
      function, arguments = _cut(stack, len(stack) - 2)
      stack.append(_call(function, arguments))
      num_bytes_left -= len(stack[-1]) if isinstance(stack[-1], bytes) else 0
      if num_bytes_left < 0:
        raise ValueError('it repeats its strings to more than its own size')
    elif name == 'BUILD':
      state = stack.pop()
      _build(stack[-1], state)
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
    raise ValueError(f'refuses to append to a {type(stack[-1]).__name__}')
  stack[-1].extend(items)


def _set_items(stack: list[Any], items: list[Any]) -> None:
  if type(stack[-1]) is not dict:
    raise ValueError(f'refuses to set items of a {type(stack[-1]).__name__}')
  for key, value in zip(items[::2], items[1::2], strict=True):
    if type(key) is not str:                # the hash of a tuple of tuples may take for ever
      raise ValueError(f'refuses a {type(key).__name__} as a key: those of weights are strings')
    stack[-1][key] = value


def _find(name: str) -> _Global:
  if name not in _GLOBALS:
    raise ValueError(f'refuses {_printable(name.replace(" ", "."))}')
  return _GLOBALS[name]


def _call(function: Any, arguments: Any) -> Any:
  if not isinstance(function, _Global) or function.call is None:
    raise ValueError(f'refuses to call {_shown(function)}')
  try:
    return function.call(arguments)
  except _Unfit:
    raise ValueError(f'refuses to call {function.name} like this') from None


def _build(target: Any, state: Any) -> None:
  match target, state:
    # Byte order, sub-array, names and fields of a dtype; then its size and flags, which NumPy knows.
    case np.dtype(), (3, '<' | '|' | '=', None, None, None, int(), int(), int()):
      return
    case _Array(), (1, tuple() as shape, np.dtype() as dtype, int() as is_fortran, bytes() as data):
      target.value = _view(data, dtype, shape, 'F' if is_fortran else 'C')
    case _:
      raise ValueError(f'refuses to set the state of {_shown(target)} like this')


def _view(data: bytes | bytearray, dtype: np.dtype, shape: tuple[Any, ...], order: Any) -> np.ndarray:
  if len(shape) > _MAX_AXES or not all(type(size) is int and 0 <= size < 2 ** 62 for size in shape):
    raise ValueError(f'refuses a shape that is not of 0 to {_MAX_AXES} sizes')
  if math.prod(shape) * dtype.itemsize != len(data):
    raise ValueError(f'an array of {dtype} {list(shape)} takes {math.prod(shape) * dtype.itemsize} bytes, not the '
                     f'{len(data)} that are there')
  return np.frombuffer(data, dtype).reshape(shape, order=order)


def _tree(value: Any) -> Tree:
  """A copy of containers, so that none is within itself or in two places; with arrays for each `_Array`."""
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
      case _Array(value=np.ndarray() as array):
        return array
      case None | int() | float() | str() | np.ndarray() | np.generic():
        return value
    raise ValueError(f'refuses {_shown(value)} as an entry')

  return visit(value, 0)


def _printable(name: str) -> str:
  return ascii(name[:100])[1:-1]


def _shown(value: Any) -> str:
  return value.name if isinstance(value, _Global) else f'a {type(value).__name__.strip("_").lower()}'


# The names that a file may hold, and what each does here. No name is ever looked up anywhere else.


class _Unfit(Exception):
  """Arguments other than those that a library's own pickles hold."""


def _mapping(arguments: Any) -> dict[str, Any]:
  match arguments:
    case (dict() as mapping,):
      return mapping
  raise _Unfit


def _empty(kind: type) -> Callable[[Any], Any]:
  def call(arguments: Any) -> Any:
    match arguments:
      case ():
        return kind()
    raise _Unfit
  return call


def _encode(arguments: Any) -> bytes:
  match arguments:
    case (str() as text, 'latin1'):         # how protocol 2 writes bytes
      return text.encode('latin1')
  raise _Unfit


def _dtype(arguments: Any) -> np.dtype:
  match arguments:
    case (str() as name, 0, 1) if name in _NUMBERS:
      return np.dtype(f'<{name}')
    case (_Global(name='bfloat16'), 0, 1):
      return np.dtype(jnp.bfloat16)
    case (str() as name, *_):
      raise ValueError(f'refuses arrays of dtype {_printable(name)}: weights are numbers')
  raise _Unfit


def _announce(arguments: Any) -> _Array:
  match arguments:
    case (_Global(name='ndarray'), (0,), b'b'):
      return _Array()
  raise _Unfit


def _scalar(arguments: Any) -> Any:
  match arguments:
    case (np.dtype() as dtype, bytes() as data):
      return _view(data, dtype, (), 'C')[()]
  raise _Unfit


def _from_buffer(arguments: Any) -> np.ndarray:
  match arguments:
    case (bytes() | bytearray() as data, np.dtype() as dtype, tuple() as shape, 'C' | 'F' as order):
      return _view(data, dtype, shape, order)
    case (bytes() | bytearray() as data, np.dtype() as dtype, tuple() as shape, 'K', tuple() as axes) if (
      all(type(axis) is int for axis in axes) and sorted(axes) == list(range(len(shape)))):
      return _view(data, dtype, shape, 'C').transpose(axes)
  raise _Unfit


def _from_jax(arguments: Any) -> _Array:
  match arguments:
    case (_Global(name='_reconstruct', call=call), parts, state, dict()) if call is not None:
      array = call(parts)
      _build(array, state)
      return array
  raise _Unfit


_GLOBALS = {
  f'{module} {each.name}': each
  for modules, each in (
    ('numpy', _Global('ndarray')),
    ('numpy', _Global('dtype', _dtype)),
    ('numpy.core.multiarray numpy._core.multiarray', _Global('_reconstruct', _announce)),
    ('numpy.core.multiarray numpy._core.multiarray', _Global('scalar', _scalar)),
    ('numpy.core.numeric numpy._core.numeric', _Global('_frombuffer', _from_buffer)),
    ('ml_dtypes jaxlib.xla_extension', _Global('bfloat16')),
    ('jax._src.device_array', _Global('reconstruct_device_array', _from_jax)),
    ('jax._src.array', _Global('_reconstruct_array', _from_jax)),
    ('haiku._src.data_structures', _Global('FlatMapping', _mapping)),
    ('haiku._src.data_structures', _Global('frozendict', _mapping)),
    ('collections', _Global('OrderedDict', _empty(dict))),
    ('__builtin__', _Global('bytes', _empty(bytes))),  # how protocol 2 writes those of an array without entries
    ('_codecs', _Global('encode', _encode)),
  )
  for module in modules.split()
}
