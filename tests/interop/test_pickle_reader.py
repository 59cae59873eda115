"""Pickles that would run, hang or swell something: both readers of weights refuse each in a line that names it.

Payloads made of names that one reader alone knows are in test_pystate.py and test_torch_file.py.
"""

from __future__ import annotations

import builtins
import functools
import os
import pickle
import struct
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from perceiver_jax.interop import pystate, torch_file
from perceiver_jax.types import UserError


def read_pystate(content: bytes, directory: Path):
  path = directory / 'weights.pystate'
  path.write_bytes(content)
  return pystate.read(path)


def read_torch(content: bytes, directory: Path):
  with zipfile.ZipFile(directory / 'pytorch_model.bin', 'w') as archive:
    archive.writestr('archive/data.pkl', content)
  return torch_file.read(directory)


each_reader = pytest.mark.parametrize('read', [read_pystate, read_torch], ids=['pystate', 'torch'])


def refusal(read, content: bytes, directory: Path) -> str:
  with pytest.raises(UserError) as error:
    read(content, directory)
  message = str(error.value)
  assert message.startswith(f'cannot read {directory}') and message.endswith('. Nothing in it was run')
  assert '\n' not in message and len(message) < 600
  return message


def text(value: str) -> bytes:
  return b'X' + struct.pack('<I', len(value.encode())) + value.encode()


# What must not run. Each payload would leave a file behind if anything of it ran.


class Payload:
  def __init__(self, *reduction):
    self.reduction = reduction

  def __reduce__(self):
    return self.reduction


def python(marker: Path) -> str:
  return f'open({str(marker)!r}, "w").close()'


def attacks(marker: Path) -> dict[str, tuple[bytes, str]]:
  """{name: (pickle, what the message must name)}."""
  shell, code = f'touch {marker}', python(marker)
  dump = lambda *reduction, protocol=2: pickle.dumps(Payload(*reduction), protocol)
  call = b'(' + text(shell) + b'tR.'
  stacked = lambda module, name: b'\x80\4' + text(module) + text(name) + b'\x93' + call
  return {
    'system, protocol 2': (dump(os.system, (shell,)), 'refuses posix.system'),
    'system, protocol 3': (dump(os.system, (shell,), protocol=3), 'refuses posix.system'),
    'system, protocol 4': (dump(os.system, (shell,), protocol=4), 'refuses posix.system'),
    'system, protocol 5': (dump(os.system, (shell,), protocol=5), 'refuses posix.system'),
    'os.system': (b'\x80\2cos\nsystem\n' + call, 'refuses os.system'),
    'os.system, from the stack': (stacked('os', 'system'), 'refuses os.system'),
    'eval': (dump(eval, (code,)), 'refuses __builtin__.eval'),
    'eval, by its new name': (b'\x80\2cbuiltins\neval\n(' + text(code) + b'tR.', 'refuses builtins.eval'),
    'exec': (dump(builtins.exec, (code,), protocol=4), 'refuses builtins.exec'),
    'getattr': (stacked('builtins', 'getattr'), 'refuses builtins.getattr'),
    'partial': (dump(functools.partial(os.system, shell), ()), 'refuses functools.partial'),
    'numpy.load': (dump(np.load, (str(marker),), protocol=4), 'refuses numpy.load'),
    'numpy.f2py': (b'\x80\2cnumpy.f2py\ncompile\n' + call, 'refuses numpy.f2py.compile'),
    'numpy.testing': (b'\x80\2cnumpy.testing._private.utils\nrunstring\n' + call, 'runstring'),
    'dotted name': (stacked('numpy', '_core.multiarray.os.system'), 'refuses numpy._core.multiarray.os.system'),
    'dotted known name': (stacked('collections', 'OrderedDict.fromkeys'), 'refuses collections.OrderedDict.fromkeys'),
    'our own module': (stacked('perceiver_jax.interop.pystate', 'os.system'), 'refuses perceiver_jax'),
    'codecs.decode': (b'\x80\2c_codecs\ndecode\n' + text('x') + text('hex') + b'\x86R.', 'refuses _codecs.decode'),
    'INST': (b'\x80\2(' + text(shell) + b'ios\nsystem\n.', 'INST os system'),
    'INST of a known name': (b'\x80\2(icollections\nOrderedDict\n.', 'INST collections OrderedDict'),
    'OBJ': (b'\x80\2(cos\nsystem\n' + text(shell) + b'o.', 'refuses os.system'),
    'OBJ of a known name': (b'\x80\2(ccollections\nOrderedDict\no.', 'OBJ'),
    'NEWOBJ': (b'\x80\2ccollections\nOrderedDict\n)\x81.', 'NEWOBJ'),
    'NEWOBJ_EX': (b'\x80\4ccollections\nOrderedDict\n)}\x92.', 'NEWOBJ_EX'),
    'persistent id': (b'\x80\2Pos.system\n.', 'PERSID'),
    'extension registry': (b'\x80\2\x82\1.', 'EXT1'),
    'next buffer': (b'\x80\5\x97.', 'NEXT_BUFFER'),
    'a name that is no string': (b'\x80\4K\1K\2\x93.', 'refuses ?.?'),
    'a call of a string': (b'\x80\2' + text('os.system') + call, 'refuses to call a str'),
    'a call with arguments': (b'\x80\2ccollections\nOrderedDict\n' + call, 'refuses to call OrderedDict like this'),
    'a call with a list': (b'\x80\2ccollections\nOrderedDict\n]R.', 'refuses to call OrderedDict like this'),
    'state of a function': (
      b'\x80\2ccollections\nOrderedDict\n}' + text('call') + b'cos\nsystem\nsb.', 'refuses os.system'),
    'state of a known name': (
      b'\x80\2ccollections\nOrderedDict\n}' + text('call') + b'Nsb.', 'refuses to set the state of OrderedDict'),
  }


@each_reader
@pytest.mark.parametrize('name', attacks(Path('nowhere')))
def test_nothing_runs_and_the_refusal_names_it(tmp_path, read, name):
  marker = tmp_path / 'marker'
  content, says = attacks(marker)[name]
  assert says in refusal(read, content, tmp_path)
  assert not marker.exists()


@pytest.mark.parametrize('name', ['system, protocol 2', 'system, protocol 4', 'eval', 'exec', 'INST', 'OBJ'])
def test_the_payloads_do_run_in_pythons_own_reader(tmp_path, name):
  marker = tmp_path / 'marker'
  pickle.loads(attacks(marker)[name][0])
  assert marker.exists()


@each_reader
def test_the_module_that_a_file_names_is_not_imported(tmp_path, monkeypatch, read):
  marker = tmp_path / 'marker'
  (tmp_path / 'module_of_the_attacker.py').write_text(python(marker))
  monkeypatch.syspath_prepend(tmp_path)
  name = text('module_of_the_attacker') + text('name')
  for content in (b'\x80\2cmodule_of_the_attacker\nname\n.', b'\x80\4' + name + b'\x93.'):
    assert 'refuses module_of_the_attacker.name' in refusal(read, content, tmp_path)
  assert not marker.exists() and 'module_of_the_attacker' not in sys.modules


@each_reader
def test_a_hostile_name_does_not_reach_the_terminal_as_it_is(tmp_path, read):
  message = refusal(read, b'\x80\4' + text('\x1b[2J' + 'x' * 10_000) + text('\n\n') + b'\x93.', tmp_path)
  assert message.isprintable() and len(message) < 500


# What must not hang, swell, or crash.


def bomb() -> bytes:
  """A list of two of a list of two of ..., a hundred times over: 800 bytes that stand for 2 ** 100 entries."""
  return b'\x80\4]' + b''.join(b'\x94](h%ch%ce' % (i, i) for i in range(100)) + b'.'


HOSTILE = {
  'exponential': (bomb(), 'contains itself'),
  'itself': (b'\x80\2]q\0h\0a.', 'contains itself'),
  'itself in a dict': (b'\x80\2}q\0' + text('a') + b'h\0s.', 'contains itself'),
  'deep': (b'\x80\2' + b']' * 10_000 + b'a' * 9_999 + b'.', 'contains itself'),
  'deep tuples': (b'\x80\2)' + b'\x85' * 100_000 + b'.', 'contains itself'),
  'many entries': (b'\x80\2](' + b'K\1' * 900_000 + b'eq\0](h\0h\0e.', 'more than 1000000 entries'),
  'many instructions': (b'\x80\2' + b'N' * 1_000_001 + b'.', 'more than 1000000 instructions'),
  'a key that takes for ever': (b'\x80\2})' + b'q\0h\0\x86' * 100 + b'K\1s.', 'refuses a tuple as a key'),
  'a number of many digits': (b'\x80\2\x8b\0\1\0\0' + b'\1' * 256 + b'.', 'refuses the instruction LONG4'),
  'a name as an entry': (b'\x80\2ccollections\nOrderedDict\n.', 'refuses OrderedDict as an entry'),
  'bytes as an entry': (b'\x80\3C\3abc.', 'refuses a bytes as an entry'),
  'a set': (pickle.dumps({1, 2}, 4), 'EMPTY_SET'),
  'a number as a key': (b'\x80\2}K\1K\2s.', 'refuses a int as a key'),
  'a number as a key among others': (b'\x80\2}(' + text('a') + b'NK\1K\2u.', 'refuses a int as a key'),
  'items of a list': (b'\x80\2]' + text('a') + b'K\2s.', 'set items of a list'),
  'appended to a dict': (b'\x80\2}K\2a.', 'append to a dict'),
  'half an item': (b'\x80\2}(' + text('a') + b'u.', 'cannot read'),
  'a huge bytearray': (b'\x80\5\x96' + struct.pack('<Q', 2 ** 46) + b'abc.', 'cannot read'),
  'a huge string': (b'\x80\4\x8d' + struct.pack('<Q', 2 ** 62) + b'abc.', 'cannot read'),
  'a string past any size': (b'\x80\4\x8d' + b'\xff' * 8 + b'abc.', 'cannot read'),
  'a huge number': (b'\x80\2\x8b\xff\xff\xff\x7fabc.', 'cannot read'),
  'a number of negative length': (b'\x80\2\x8b\xff\xff\xff\xffabc.', 'cannot read'),
  'an empty stack': (b'\x80\2.', 'damaged'),
  'a call of nothing': (b'\x80\2R.', 'damaged'),
  'items without a start': (b'\x80\2u.', 'damaged'),
  'a mark without a start': (b'\x80\2t.', 'damaged'),
  'a mark past the stack': (b'\x80\2K\1((a.', 'damaged'),
  'a tuple of too little': (b'\x80\2K\1\x87.', 'damaged'),
  'a reference to nothing': (b'\x80\2h\7.', 'damaged'),
  'no end': (b'\x80\2}', 'cannot read'),
  'a string that is none': (b'\x80\2X\1\0\0\0\xff.', 'cannot read'),
  'an unknown instruction': (b'\x80\2\xff.', 'cannot read'),
  'a name that is no ASCII': (b'\x80\2c\xff\n\xff\n.', 'cannot read'),
}


@each_reader
@pytest.mark.parametrize('content, says', HOSTILE.values(), ids=HOSTILE)
def test_hostile_files_are_answered_in_a_line(tmp_path, read, content, says):
  assert says in refusal(read, content, tmp_path)


@each_reader
@pytest.mark.parametrize('content', [
  b'\x80\4\x95' + struct.pack('<Q', 2 ** 60) + b'}.', b'\x80\2}r\xff\xff\xff\xff.'], ids=['a frame', 'a place in memo'])
def test_a_huge_number_that_costs_nothing_is_no_reason_to_refuse(tmp_path, read, content):
  assert read(content, tmp_path) == {}
