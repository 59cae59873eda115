"""Reads the authors' `.pystate` and `.pickle` files without running anything in them.

What their names stand for follows from how the libraries of then and now pickle themselves: Haiku's mappings as a call
of `FlatMapping` on a dict (`frozendict` before August 2020); JAX's arrays as plain NumPy arrays up to 0.3.11, later as
a call of `reconstruct_device_array` or `_reconstruct_array` on the parts of one.
"""

from __future__ import annotations

import math
import mmap
import os
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from perceiver_jax.interop import pickle_reader
from perceiver_jax.interop.pickle_reader import Array, Name, Unfit
from perceiver_jax.types import Tree, UserError

_MAX_AXES = 32
_NUMBERS = {'b1', 'i1', 'i2', 'i4', 'i8', 'u1', 'u2', 'u4', 'u8', 'f2', 'f4', 'f8', 'c8', 'c16'}


def read(path: str | os.PathLike) -> Tree:
  """The tree in a file: dicts, lists, tuples, NumPy arrays and scalars, numbers, strings, None.

  Haiku's mappings and ordered dicts come as dicts, JAX's arrays as NumPy arrays. Arrays may be read-only.

  Raises:
    UserError: a file that cannot be read, is no pickle, is damaged, or holds anything else, which is named.
  """
  path = Path(path)
  try:
    with path.open('rb') as file:
      start = file.read(9)
      if start[:1] != b'\x80' or start[1:2] not in (b'\2', b'\3', b'\4', b'\5'):
        raise ValueError(f'it is no pickle of protocol 2 to 5 (it begins with {start[:2]!r}){_likely(start)}')
      with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return pickle_reader.read(content, _NAMES, _set_state)
  except OSError as error:
    raise UserError(f'cannot read {path}: {error.strerror}') from error
  except ValueError as error:
    raise UserError(f'cannot read {path}: {error!s:.300}. Nothing in it was run') from error


def _likely(start: bytes) -> str:
  """What a file is in fact, told by its first 9 bytes."""
  # A safetensors file begins with the length of its header, 8 bytes, and the brace of that.
  kind = 'a zip archive' if start[:2] == b'PK' else 'safetensors' if start[8:] == b'{' else None
  return f', but {kind}: a model of Hugging Face, or a converted one, is given by its directory' if kind else ''


# What the names in a file stand for.


def _mapping(arguments: Any) -> dict[str, Any]:
  match arguments:
    case (dict() as mapping,):
      return mapping
  raise Unfit


def _encode(arguments: Any) -> bytes:
  match arguments:
    case (str() as text, 'latin1'):         # how protocol 2 writes bytes
      return text.encode('latin1')
  raise Unfit


def _dtype(arguments: Any) -> np.dtype:
  match arguments:
    case (str() as name, 0, 1) if name in _NUMBERS:
      return np.dtype(f'<{name}')
    case (Name(name='bfloat16'), 0, 1):
      return np.dtype(jnp.bfloat16)
    case (str() as name, *_):
      raise ValueError(f'refuses arrays of dtype {ascii(name[:100])[1:-1]}: weights are numbers')
  raise Unfit


def _announce(arguments: Any) -> Array:
  match arguments:
    case (Name(name='ndarray'), (0,), b'b'):
      return Array()
  raise Unfit


def _scalar(arguments: Any) -> Any:
  match arguments:
    case (np.dtype() as dtype, bytes() as data):
      return _view(data, dtype, (), 'C')[()]
  raise Unfit


def _from_buffer(arguments: Any) -> np.ndarray:
  match arguments:
    case (bytes() | bytearray() as data, np.dtype() as dtype, tuple() as shape, 'C' | 'F' as order):
      return _view(data, dtype, shape, order)
    case (bytes() | bytearray() as data, np.dtype() as dtype, tuple() as shape, 'K', tuple() as axes) if (
      all(type(axis) is int for axis in axes) and sorted(axes) == list(range(len(shape)))):
      return _view(data, dtype, shape, 'C').transpose(axes)
  raise Unfit


def _from_jax(arguments: Any) -> Array:
  match arguments:
    case (Name(name='_reconstruct', call=call), parts, state, dict()) if call is not None:
      array = call(parts)
      _set_state(array, state)
      return array
  raise Unfit


def _set_state(target: Any, state: Any) -> None:
  match target, state:
    # Byte order, sub-array, names and fields of a dtype; then its size and flags, which NumPy knows.
    case np.dtype(), (3, '<' | '|' | '=', None, None, None, int(), int(), int()):
      return
    case Array(), (1, tuple() as shape, np.dtype() as dtype, int() as is_fortran, bytes() as data):
      target.value = _view(data, dtype, shape, 'F' if is_fortran else 'C')
    case _:
      raise Unfit


def _view(data: bytes | bytearray, dtype: np.dtype, shape: tuple[Any, ...], order: Any) -> np.ndarray:
  if len(shape) > _MAX_AXES or not all(type(size) is int and 0 <= size < 2 ** 62 for size in shape):
    raise ValueError(f'refuses a shape that is not of 0 to {_MAX_AXES} sizes')
  if math.prod(shape) * dtype.itemsize != len(data):
    raise ValueError(f'an array of {dtype} {list(shape)} takes {math.prod(shape) * dtype.itemsize} bytes, not the '
                     f'{len(data)} that are there')
  return np.frombuffer(data, dtype).reshape(shape, order=order)


_NAMES = {
  'numpy ndarray': None,
  'numpy dtype': _dtype,
  'numpy.core.multiarray _reconstruct': _announce,
  'numpy._core.multiarray _reconstruct': _announce,
  'numpy.core.multiarray scalar': _scalar,
  'numpy._core.multiarray scalar': _scalar,
  'numpy.core.numeric _frombuffer': _from_buffer,
  'numpy._core.numeric _frombuffer': _from_buffer,
  'ml_dtypes bfloat16': None,
  'jaxlib.xla_extension bfloat16': None,
  'jax._src.device_array reconstruct_device_array': _from_jax,
  'jax._src.array _reconstruct_array': _from_jax,
  'haiku._src.data_structures FlatMapping': _mapping,
  'haiku._src.data_structures frozendict': _mapping,
  'collections OrderedDict': pickle_reader.empty(dict),
  '__builtin__ bytes': pickle_reader.empty(bytes),  # how protocol 2 writes those of an array without entries
  '_codecs encode': _encode,
}
