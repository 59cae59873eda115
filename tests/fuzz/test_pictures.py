"""Any file given as a picture is a picture or one UserError, within memory that its own size bounds.

Of the rarer kinds (TIFF, BMP, AVIF ...) only the limit on pixels bounds it.
"""

from __future__ import annotations

import io
import struct
import zlib

import cv2
import numpy as np
import pytest
from hypothesis import strategies as st
from PIL import Image

from perceiver_jax.inference.model import as_image
from perceiver_jax.types import UserError
from tests.fuzz.edits import edited_bytes
from tests.fuzz.harness import answer, cases

PIXELS = np.random.default_rng(0).integers(0, 256, (9, 12, 3), np.uint8)
SIDES = st.one_of(st.integers(0, 40), st.sampled_from(
  [0, 1, 16_384, 60_000, 65_535, 2**24, 2**31 - 1, 2**31, 2**32 - 1]))


def _saved(form: str, pixels: np.ndarray = PIXELS, mode: str = 'RGB', **options) -> bytes:
  file = io.BytesIO()
  Image.fromarray(pixels).convert(mode).save(file, form, **options)
  return file.getvalue()


def _exif(orientation: int) -> Image.Exif:
  exif = Image.Exif()
  exif[0x0112] = orientation
  return exif


SMOOTH = np.linspace(0, 255, 32 * 40 * 3).reshape(32, 40, 3).astype(np.uint8)
JPEGS = [
  _saved('JPEG'), _saved('JPEG', SMOOTH, progressive=True), _saved('JPEG', mode='L'), _saved('JPEG', mode='CMYK'),
  _saved('JPEG', SMOOTH, exif=_exif(6), icc_profile=bytes(range(200)))]
PNGS = [
  _saved('PNG'), _saved('PNG', mode='P'), _saved('PNG', mode='RGBA'), _saved('PNG', mode='1'),
  cv2.imencode('.png', PIXELS.astype(np.uint16) * 257)[1].tobytes()]
OTHERS = [_saved('WEBP'), _saved('WEBP', lossless=True), _saved('TIFF'), _saved('BMP'), _saved('GIF'), _saved('PPM')]


def _chunk(name: bytes, content: bytes) -> bytes:
  return struct.pack('>I', len(content)) + name + content + struct.pack('>I', zlib.crc32(name + content))


def _png(*chunks: bytes) -> bytes:
  return b'\x89PNG\r\n\x1a\n' + b''.join(chunks)


def _header(width: int, height: int, depth: int = 8, colours: int = 2, interlace: int = 0) -> bytes:
  return _chunk(b'IHDR', struct.pack('>IIBBBBB', width, height, depth, colours, 0, 0, interlace))


# Unlike an edited PNG, its checksums are right, so that more than the header of it is read.
_chunks = st.builds(
  _chunk, st.sampled_from([b'IDAT', b'PLTE', b'tRNS', b'gAMA', b'iCCP', b'zTXt', b'iTXt', b'eXIf', b'acTL', b'fcTL',
                           b'fdAT', b'sBIT', b'IHDR', b'IEND', b'XXXX']),
  st.one_of(st.binary(max_size=40), st.binary(max_size=80).map(lambda text: zlib.compress(text * 50)),
            st.binary(max_size=20).map(lambda text: b'a\0\0' + zlib.compress(text * 50))))
_pngs = st.builds(
  lambda header, chunks, ends: _png(header, *chunks, *[_chunk(b'IEND', b'')] * ends),
  st.builds(_header, SIDES, SIDES, st.sampled_from([1, 2, 4, 8, 16, 3]), st.sampled_from([0, 2, 3, 4, 6, 1]),
            st.sampled_from([0, 1, 2])),
  st.lists(_chunks, max_size=5), st.booleans())


@pytest.fixture(scope='module')
def path(tmp_path_factory):
  return tmp_path_factory.mktemp('picture') / 'picture'


def _check(path, content: bytes) -> None:
  path.write_bytes(content)
  found = answer(as_image, path, 'an image')
  assert isinstance(found, UserError) or (found.dtype == np.uint8 and found.ndim == 3 and found.shape[-1] == 3
                                          and 0 < found.size <= 3 * 2**27)


@cases(250, content=edited_bytes(JPEGS), memory=2**28)
def test_an_edited_jpeg(path, content):
  _check(path, content)


@cases(150, content=edited_bytes(PNGS), memory=2**28)
def test_an_edited_png(path, content):
  _check(path, content)


@cases(150, content=_pngs, memory=2**28)
def test_a_png_of_any_chunks(path, content):
  _check(path, content)


@cases(100, content=edited_bytes(OTHERS), memory=2**31)
def test_an_edited_picture_of_another_kind(path, content):
  _check(path, content)


@cases(80, content=st.builds(
  bytes.__add__, st.sampled_from([b'', *(whole[:12] for whole in [*JPEGS[:1], *PNGS[:1], *OTHERS])]),
  st.binary(max_size=60)))
def test_a_picture_of_any_bytes(path, content):
  _check(path, content)
