"""Any pickle of weights is a tree or one UserError; nothing in it runs, and it takes memory in proportion to its size.

Besides edited files there are programs: sequences of instructions, most of which the readers carry out, with the names
that they know and those that an attacker would use. Each of the latter would leave a file behind if it were called.
"""

from __future__ import annotations

import pickle
import pickletools
import struct
import zipfile

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from perceiver_jax.interop import pystate, torch_file
from perceiver_jax.types import UserError
from tests.fuzz.edits import edited_bytes
from tests.fuzz.harness import answer, cases

TREE = {
  'encoder/~/linear': {'w': np.arange(6, dtype=np.float32).reshape(2, 3), 'b': np.zeros(3, jnp.bfloat16)},
  'counter': [np.int32(3), 1.5, None, True, 'text', (np.zeros((0, 4)), 2**40)], 'again': {}}
WHOLES = [pickle.dumps(TREE, protocol) for protocol in (2, 3, 4, 5)]
WHOLES.append(pickle.dumps({'x': jnp.ones(2)}, 4))


def _text(value: str) -> bytes:
  return b'X' + struct.pack('<I', len(value.encode())) + value.encode()


def _tensor(name: str) -> bytes:
  storage = b'(' + _text('storage') + b'ctorch\nFloatStorage\n' + _text('0') + _text('cpu') + b'K\6tQ'
  state = b'K\0K\2K\3\x86K\3K\1\x86\x89ccollections\nOrderedDict\n)R'
  return _text(name) + b'ctorch._utils\n_rebuild_tensor_v2\n(' + storage + state + b'tR'


TABLES = [
  b'\x80\2}q\0(' + _tensor('a') + _tensor('b') + b'u.',
  b'\x80\2ccollections\nOrderedDict\n)R(' + _tensor('w') + b'u.']


# Programs.

KNOWN = [name.split(' ') for name in [*pystate._NAMES, *torch_file._NAMES]]
HOSTILE = [
  ('os', 'system'), ('posix', 'system'), ('subprocess', 'call'), ('builtins', 'eval'), ('builtins', 'exec'),
  ('__builtin__', 'eval'), ('builtins', 'getattr'), ('builtins', '__import__'), ('numpy', 'load'),
  ('functools', 'partial'),
  ('numpy', 'ndarray.tofile'), ('operator', 'attrgetter'), ('pathlib', 'Path'), ('io', 'open'), ('codecs', 'decode')]
_STRINGS = [
  'f4', 'f8', 'O', 'V8', 'C', 'F', 'K', '<', '|', 'latin1', 'storage', '0', '1', 'cpu', 'w', '', 'é', 'x' * 70_000,
  'open("sentinel", "w").close()', 'touch sentinel', 'sentinel']
_NUMBERS = [0, 1, 2, 3, 6, 255, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**46, 2**63 - 1, 2**64 - 1]

_strings = st.one_of(
  st.sampled_from([*_STRINGS, *(word for name in [*KNOWN, *HOSTILE] for word in name)]), st.text(max_size=3))
_counts = st.sampled_from(_NUMBERS)
_names = st.sampled_from([*KNOWN, *KNOWN, *HOSTILE])
_lengths = {1: 'B', 4: 'I', 8: 'Q'}


def _counted(opcode: bytes, size: int) -> st.SearchStrategy[bytes]:
  """An instruction whose argument is preceded by its length, which is not always that of the argument."""
  def build(data: bytes, claimed: int | None) -> bytes:
    length = len(data) if claimed is None else claimed
    return opcode + struct.pack(f'<{_lengths[size]}', length % 2 ** (8 * size)) + data
  return st.builds(build, st.one_of(_strings.map(str.encode), st.binary(max_size=24)), st.one_of(
    st.none(), st.none(), st.none(), _counts))


def _number(opcode: bytes, form: str) -> st.SearchStrategy[bytes]:
  size = 8 * struct.calcsize(f'<{form}')
  return _counts.map(lambda number: opcode + struct.pack(f'<{form}', (number % 2**size) - (
    2**size if form.islower() and number % 2**size >= 2 ** (size - 1) else 0)))


_global = _names.map(lambda name: f'c{name[0]}\n{name[1]}\n'.encode())
_stacked = _names.map(lambda name: _text(name[0]) + _text(name[1]) + b'\x93')
_called = st.builds(
  lambda name, arguments: name + b'(' + b''.join(map(_text, arguments)) + b'tR', st.one_of(_global, _stacked),
  st.lists(_strings, max_size=2))
_small = st.sampled_from([bytes([code]) for code in b'N})](lt\x85\x86\x87aesu2\x94\x88\x89RbQ0\x81\x8f.o\x97\x98'])
_dtype = st.sampled_from(['f4', 'i8', 'O', 'u1']).map(
  lambda kind: b'cnumpy\ndtype\n(' + _text(kind) + b'K\0K\1tR(K\3' + _text('<')
  + b'NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb')
_announced = st.just(b'cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\0\x85C\1btR')
_instructions = st.one_of(
  _small, _small, _global, _stacked, _called, _dtype, _announced, st.just(_tensor('w')),
  _number(b'K', 'B'), _number(b'M', 'H'), _number(b'J', 'i'), _number(b'q', 'B'), _number(b'h', 'B'),
  _number(b'r', 'I'), _number(b'j', 'I'), _number(b'\x95', 'Q'), _number(b'\x8b', 'i'), _counted(b'\x8a', 1),
  _counted(b'X', 4), _counted(b'\x8c', 1), _counted(b'\x8d', 8), _counted(b'B', 4), _counted(b'C', 1),
  _counted(b'\x8e', 8), _counted(b'\x96', 8), _counted(b'T', 4), st.sampled_from([
    b'I01\n', b'L9\n', b'Vtext\n', b'F1.5\n', b'P0\n', b'g0\n', b'p0\n', b'ios\nsystem\n', b'\x82\1', b'G' + bytes(8)]))


def _program(protocol: int, instructions: list[bytes], repeats: int, tail: bytes) -> bytes:
  return b'\x80' + bytes([protocol]) + b''.join(instructions) * repeats + tail + b'.'


programs = st.builds(
  _program, st.sampled_from([2, 3, 4, 5]), st.lists(_instructions, max_size=14), st.sampled_from([1, 1, 1, 2, 50]),
  st.sampled_from([b'', b'}', b'0}']))


@st.composite
def rearranged(draw, wholes: list[bytes]) -> bytes:
  """A whole pickle with instructions left out, put in, repeated or exchanged, which stays a program."""
  whole = draw(st.sampled_from(wholes))
  starts = [position for _, _, position in pickletools.genops(whole)]
  parts = [whole[start:end] for start, end in zip(starts, [*starts[1:], len(whole)], strict=True)]
  for _ in range(draw(st.integers(1, 3))):
    place, other = (draw(st.integers(0, len(parts) - 1)) for _ in range(2))
    match draw(st.sampled_from(['leave out', 'put in', 'repeat', 'exchange', 'repeat often'])):
      case 'leave out' if len(parts) > 2:
        del parts[place]
      case 'put in':
        parts.insert(place, draw(_instructions))
      case 'repeat':
        parts[place:place] = parts[min(place, other):max(place, other)]
      case 'exchange':
        parts[place], parts[other] = parts[other], parts[place]
      case 'repeat often':
        parts[place:place + 1] = [parts[place]] * 200
  return b''.join(parts)


# Files.


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp('weights')


@pytest.fixture(autouse=True)
def in_the_folder(folder, monkeypatch):
  monkeypatch.chdir(folder)


def _check_pystate(folder, content: bytes) -> None:
  path = folder / 'weights.pystate'
  path.write_bytes(content)
  found = answer(pystate.read, path)
  assert isinstance(found, UserError | dict | list | tuple | str | int | float | np.ndarray | np.generic | None)
  assert not (folder / 'sentinel').exists()


def _check_torch(folder, table: bytes) -> None:
  with zipfile.ZipFile(folder / 'pytorch_model.bin', 'w') as archive:
    archive.writestr('archive/data.pkl', table)
    archive.writestr('archive/data/0', np.arange(6, dtype=np.float32).tobytes())
  found = answer(torch_file.read, folder)
  assert isinstance(found, UserError) or all(isinstance(array, np.ndarray) for array in found.values())
  assert not (folder / 'sentinel').exists()


@cases(200, content=edited_bytes(WHOLES), memory=2**28)
def test_an_edited_pystate(folder, content):
  _check_pystate(folder, content)


@cases(150, content=rearranged(WHOLES), memory=2**28)
def test_a_pystate_of_the_same_instructions_in_another_order(folder, content):
  _check_pystate(folder, content)


@cases(250, content=programs, memory=2**28)
def test_a_pystate_of_any_program(folder, content):
  _check_pystate(folder, content)


@cases(150, content=st.one_of(rearranged(TABLES), edited_bytes(TABLES)), memory=2**28)
def test_an_edited_table_of_a_torch_archive(folder, content):
  _check_torch(folder, content)


@cases(150, content=programs, memory=2**28)
def test_a_torch_archive_of_any_program(folder, content):
  _check_torch(folder, content)


@pytest.fixture(scope='module')
def archive(folder) -> bytes:
  _check_torch(folder, TABLES[0])
  return (folder / 'pytorch_model.bin').read_bytes()


@cases(150, data=st.data(), memory=2**28)
def test_an_edited_torch_archive(folder, archive, data):
  (folder / 'pytorch_model.bin').write_bytes(data.draw(edited_bytes([archive]), 'content'))
  answer(torch_file.read, folder)
