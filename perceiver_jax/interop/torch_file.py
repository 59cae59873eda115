"""Reads the weights in a directory of Hugging Face's as NumPy arrays, without PyTorch and without running anything.

`model.safetensors` where it is there, else `pytorch_model.bin`, either of them in shards. The latter is a zip archive:
a file for each storage, and a pickle that says which tensors are views of them.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open

from perceiver_jax.interop import pickle_reader
from perceiver_jax.interop.pickle_reader import Name, Unfit
from perceiver_jax.types import UserError

_STORAGES = {
  'DoubleStorage': np.float64, 'FloatStorage': np.float32, 'HalfStorage': np.float16, 'BFloat16Storage': jnp.bfloat16,
  'LongStorage': np.int64, 'IntStorage': np.int32, 'ShortStorage': np.int16, 'CharStorage': np.int8,
  'ByteStorage': np.uint8, 'BoolStorage': np.bool_,
}

# Tensors may be views of one storage, and repeat a value of it along an axis: to how many bytes in all.
_MAX_UNFOLDED, _MAX_REPEATS = 2**28, 16
_MAX_VALUES = 2**40                         # of one tensor: far below what overflows in NumPy


def read(directory: str | os.PathLike) -> dict[str, np.ndarray]:
  """{name: array} of the weights in a directory. Arrays may be read-only, and may share memory.

  Raises:
    UserError: no weights there; a damaged or foreign file, which is named; a pickle that holds anything but tensors.
  """
  for name in ('model.safetensors', 'pytorch_model.bin'):
    path = Path(directory) / name
    if path.exists():
      return _read_file(path)
    index = Path(directory) / f'{name}.index.json'
    if index.exists():
      return {key: array for shard in _shards(index) for key, array in _read_file(shard).items()}
  raise UserError(f'{directory} holds neither model.safetensors nor pytorch_model.bin')


def _shards(index: Path) -> list[Path]:
  try:
    names = sorted(set(json.loads(index.read_text())['weight_map'].values()))
    paths = [index.parent / name for name in names]
  except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
    raise UserError(f'{index} is damaged: it must map names to files ({error})') from error
  if any(path.parent != index.parent for path in paths):
    raise UserError(f'{index} names files outside its own directory: {", ".join(map(str, names))}')
  return paths


def _read_file(path: Path) -> dict[str, np.ndarray]:
  try:
    if path.suffix == '.safetensors':
      with safe_open(path, framework='np') as file:
        return file.get_tensors()
    return _read_archive(path)
  except OSError as error:
    raise UserError(f'cannot read {path}: {error}') from error
  except (SafetensorError, AttributeError, zipfile.BadZipFile, EOFError) as error:  # the second of a strange dtype
    raise UserError(f'{path} is damaged, or holds no weights{_likely(path)}: {error}') from error
  except (ValueError, RuntimeError) as error:  # the latter of an archive with a password
    raise UserError(f'cannot read {path}: {error!s:.300}. Nothing in it was run') from error


def _likely(path: Path) -> str:
  """What a file is in fact, told by its first bytes."""
  with path.open('rb') as file:
    start = file.read(64).lstrip().lower()
  if start.startswith(b'<'):
    return ', but a web page; fetch it again'
  if start.startswith(b'version https://git-lfs'):
    return ', but what git holds in place of a large file; `git lfs pull` fetches that'
  if start.startswith((b'\x80\x02', b'\x80\x03', b'\x80\x04', b'\x80\x05')):
    return (", but PyTorch's format before 1.6, or some other pickle; where you trust it, "
            "torch.save(torch.load(file, weights_only=True), file) writes the new one")
  return ''


# The archive.


@dataclasses.dataclass(frozen=True)
class _Storage:
  values: np.ndarray                       # [number of values]


def _read_archive(path: Path) -> dict[str, np.ndarray]:
  with zipfile.ZipFile(path) as archive:
    entries = {info.filename: info for info in archive.infolist()}
    # PyTorch compresses nothing: what unfolds to more than the file itself was made to harm.
    if any(info.compress_type != zipfile.ZIP_STORED for info in entries.values()) or (
        sum(info.file_size for info in entries.values()) > path.stat().st_size):
      raise ValueError('its entries are compressed or overlap, which PyTorch does not do')
    roots = [name.removesuffix('data.pkl') for name in entries if name.endswith('/data.pkl')]
    if len(roots) != 1:
      raise zipfile.BadZipFile(f'there are {len(roots)} entries data.pkl')
    root = roots[0]
    if f'{root}byteorder' in entries and archive.read(f'{root}byteorder') != b'little':
      raise ValueError('it was written on a machine with the other order of bytes')
    storages: dict[str, _Storage] = {}

    def load(kind: str, key: str) -> _Storage:
      if key not in storages:
        if f'{root}data/{key}' not in entries:
          raise ValueError(f'there is no entry {root}data/{key}')
        data, dtype = archive.read(f'{root}data/{key}'), np.dtype(_STORAGES[kind])
        if len(data) % dtype.itemsize:
          raise ValueError(f'storage {key} of {len(data)} bytes holds no whole number of {dtype}')
        storages[key] = _Storage(np.frombuffer(data, dtype))
      if storages[key].values.dtype != np.dtype(_STORAGES[kind]):
        raise ValueError(f'storage {key} is of two kinds')
      return storages[key]

    table = pickle_reader.read(
      archive.read(f'{root}data.pkl'), _NAMES, _set_state, lambda identity: _storage(identity, load))
  if not isinstance(table, dict):
    raise ValueError(f'it holds a {type(table).__name__}, not a table of tensors')
  if strange := [name for name, value in table.items() if not isinstance(value, np.ndarray)]:
    raise ValueError(f'these entries are no tensors: {", ".join(map(ascii, strange))}')
  num_bytes = sum(array.nbytes for array in table.values())
  if num_bytes > _MAX_UNFOLDED + _MAX_REPEATS * path.stat().st_size:
    raise ValueError(f'its tensors repeat what it holds to {num_bytes} bytes in all')
  return table


def _storage(identity: Any, load: Callable[[str, str], _Storage]) -> _Storage:
  match identity:
    case ('storage', Name(name=kind, call=None), str() as key, str(), int() as size) if key.isdecimal():
      storage = load(kind, key)
      if len(storage.values) < size:
        raise ValueError(f'storage {key} holds {len(storage.values)} values, not {size}')
      return storage
  raise ValueError('it refers to something that is no storage')


def _set_state(target: Any, state: Any) -> None:
  if type(target) is not dict:             # whose state is its modules' versions: no number depends on them
    raise Unfit


def _parameter(arguments: tuple[Any, ...]) -> np.ndarray:
  match arguments:
    case (np.ndarray() as data, bool(), dict()):
      return data
  raise ValueError('it has a parameter that is no tensor')


def _tensor(arguments: tuple[Any, ...]) -> np.ndarray:
  """Of a storage, an offset, a shape and strides, both in values."""
  match arguments:
    case (_Storage(values), int() as offset, tuple() as shape, tuple() as strides, bool(), dict(), *_) if (
        len(shape) == len(strides) <= 32 and all(type(n) is int and n >= 0 for n in (offset, *shape, *strides))):
      last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
      num_values = math.prod(shape)
      if math.prod(max(size, 1) for size in shape) > _MAX_VALUES:
        raise ValueError(f'a tensor {list(shape)} is larger than any')
      if num_values and last >= len(values):
        raise ValueError(f'a tensor {list(shape)}, {list(strides)} reaches beyond its storage of {len(values)} values')
      if not num_values:
        return np.zeros(shape, values.dtype)
      # An axis of one entry is never stepped along, and its stride may be anything.
      steps = [stride * values.itemsize if size > 1 else 0 for size, stride in zip(shape, strides, strict=True)]
      return np.lib.stride_tricks.as_strided(values[offset:], shape, steps, writeable=False)
  raise ValueError('it has a tensor that is not made of storage, offset, shape and strides')


_NAMES = {
  'collections OrderedDict': pickle_reader.empty(dict),
  'torch._utils _rebuild_tensor_v2': _tensor,
  'torch._utils _rebuild_parameter': _parameter,
  **{f'torch {kind}': None for kind in _STORAGES},
}
