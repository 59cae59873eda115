"""Any file given as a sound is a sound or one UserError, within memory that its own size bounds."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import strategies as st

from perceiver_jax.data.files import read_sound
from perceiver_jax.types import UserError
from tests.fuzz.edits import edited_bytes
from tests.fuzz.harness import answer, cases

_SHORTS = st.sampled_from([0, 1, 2, 3, 8, 16, 24, 32, 64, 0x7FFF, 0x8000, 0xFFFE, 0xFFFF])
_WORDS = st.sampled_from([0, 1, 2, 4, 16, 18, 48_000, 2**31 - 1, 2**31, 2**32 - 36, 2**32 - 1])


def _chunk(name: bytes, content: bytes, size: int | None = None) -> bytes:
  return name + struct.pack('<I', len(content) if size is None else size) + content


def _wav(*chunks: bytes, form: bytes = b'RIFF', size: int | None = None) -> bytes:
  return _chunk(form, b'WAVE' + b''.join(chunks), size)


def _format(tag: int, channels: int, bits: int, rate: int = 48_000) -> bytes:
  block = bits // 8 * channels % 2**16
  return _chunk(b'fmt ', struct.pack('<HHIIHH', tag, channels, rate, rate * block % 2**32, block, bits))


WHOLES = [
  _wav(_format(tag, channels, bits), _chunk(b'LIST', b'INFO'), _chunk(b'data', bytes(range(96)) * 4))
  for tag, channels, bits in [(1, 1, 8), (1, 2, 16), (1, 1, 24), (1, 3, 32), (3, 1, 32), (3, 2, 64), (1, 1, 64)]]
WHOLES.append(_wav(
  _chunk(b'ds64', struct.pack('<QQQI', 200, 96, 48, 0)), _format(1, 1, 16), _chunk(b'data', bytes(96), 2**32 - 1),
  form=b'RF64', size=2**32 - 1))

_formats = st.builds(
  lambda *words: struct.pack('<HHIIHH', *words), st.sampled_from([1, 3, 0xFFFE, 0x55]), _SHORTS, _WORDS, _WORDS,
  _SHORTS, _SHORTS)
_extensions = st.one_of(st.just(b''), st.binary(max_size=30), st.just(
  struct.pack('<HHI', 22, 16, 0) + b'\1\0\0\0\0\0\x10\0\x80\0\0\xaa\0\x38\x9b\x71'))
_chunks = st.one_of(
  st.builds(lambda words, rest, size: _chunk(b'fmt ', words + rest, size), _formats, _extensions,
            st.one_of(st.none(), _WORDS)),
  st.builds(_chunk, st.sampled_from([b'data', b'LIST', b'fact', b'ds64', b'JUNK', b'PAD ', b'\0\0\0\0']),
            st.binary(max_size=200), st.one_of(st.none(), _WORDS)))
_sounds = st.builds(
  lambda chunks, form, size: _wav(*chunks, form=form, size=size), st.lists(_chunks, max_size=4),
  st.sampled_from([b'RIFF', b'RIFF', b'RIFX', b'RF64']), st.one_of(st.none(), _WORDS))


@pytest.fixture(scope='module')
def path(tmp_path_factory):
  return tmp_path_factory.mktemp('sound') / 'sound.wav'


def _check(path, content: bytes, num_samples: int) -> None:
  path.write_bytes(content)
  found = answer(read_sound, path, num_samples)
  if not isinstance(found, UserError):
    samples, rate = found
    assert (samples.dtype, samples.shape) == (np.float32, (num_samples,)) and isinstance(rate, int)


@cases(200, content=edited_bytes(WHOLES), num_samples=st.sampled_from([1, 2, 40, 30_720]))
def test_an_edited_sound(path, content, num_samples):
  _check(path, content, num_samples)


@cases(200, content=_sounds, num_samples=st.sampled_from([1, 2, 40]))
def test_a_sound_of_any_chunks(path, content, num_samples):
  _check(path, content, num_samples)
