"""A person's own files as arrays: pictures, clips and sound, for `predict`.

  picture  [H, W, 3] uint8, upright (its EXIF orientation applied)
  clip     [T, H, W, 3] uint8, at a given number of frames a second
  sound    [S] float32, -1 to 1, mono
"""

from __future__ import annotations

import os
import re
import struct
import warnings
from pathlib import Path

import cv2
import numpy as np
from scipy.io import wavfile

from perceiver_jax.types import UserError

# Of a picture, beside 2**24: far more than a photograph has, which is at 20 or fewer, or a drawing in two colours.
_FREE_PIXELS, _PIXELS_PER_BYTE = 2**24, 1_000
_MARKER = re.compile(rb'\xff+([^\x00\xff])', re.DOTALL)


def read_image(path: str | os.PathLike) -> np.ndarray:
  """Reads a picture, [H, W, 3] uint8. Raises UserError for a file that is none, or has too many pixels."""
  try:
    content = Path(path).read_bytes()
    _check_claim(path, content)
    if content.startswith(b'\x89PNG'):
      _check_chunks(path, content)
    image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR_RGB)
  except OSError as error:
    raise UserError(f'cannot read {path}: {error.strerror}') from error
  except cv2.error:                         # an empty file, or too many pixels
    image = None
  if image is None:
    raise UserError(f'cannot read {path}: it is broken, no picture, or one of more pixels than 2 ** 27')
  return image


def _check_claim(path: str | os.PathLike, content: bytes) -> None:
  """Raises UserError for a picture of a few bytes that claims to be large: OpenCV would make it so, grey or black."""
  try:
    width, height = _claimed_size(content)
  except struct.error:                      # it is cut; OpenCV will say so
    return
  if width * height > _FREE_PIXELS + _PIXELS_PER_BYTE * len(content):
    raise UserError(f'cannot read {path}: it is broken, or made to harm: '
                    f'it claims {width} x {height} pixels and has {len(content)} bytes')


def _check_chunks(path: str | os.PathLike, content: bytes) -> None:
  """Raises UserError for a PNG with a chunk that claims to go on behind its end: OpenCV would allocate all of it."""
  place = 8
  while place + 8 <= len(content) and content[place + 4:place + 8] != b'IEND':
    place += 12 + struct.unpack_from('>I', content, place)[0]
    if place > len(content):
      raise UserError(f'cannot read {path}: it is broken, or cut short')


def _claimed_size(content: bytes) -> tuple[int, int]:
  """Width and height by the header of a JPEG, PNG, GIF or WebP file; (0, 0) of any other."""
  if content.startswith(b'\x89PNG'):
    return struct.unpack_from('>II', content, 16)
  if content.startswith(b'GIF8'):
    return struct.unpack_from('<HH', content, 6)
  match content[:4] + content[8:16]:
    case b'RIFFWEBPVP8X':
      return 1 + int.from_bytes(content[24:27], 'little'), 1 + int.from_bytes(content[27:30], 'little')
    case b'RIFFWEBPVP8L':
      bits = int.from_bytes(content[21:25], 'little')
      return 1 + bits % 2**14, 1 + (bits >> 14) % 2**14
    case b'RIFFWEBPVP8 ':
      width, height = struct.unpack_from('<HH', content, 26)
      return width % 2**14, height % 2**14
  return _claimed_size_of_jpeg(content) if content.startswith(b'\xff\xd8') else (0, 0)


def _claimed_size_of_jpeg(content: bytes) -> tuple[int, int]:
  """Returns the size of the frame, found as libjpeg does: it skips whatever stands between two segments."""
  place = 2
  while match := _MARKER.search(content, place):
    marker, place = match[1][0], match.end()
    if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # which are tables
      height, width = struct.unpack_from('>HH', content, place + 3)
      return width, height
    if not (marker == 0x01 or 0xD0 <= marker <= 0xD8):               # which stand alone
      place += struct.unpack_from('>H', content, place)[0]
  return 0, 0


def read_video(path: str | os.PathLike, num_frames: int, frames_per_second: float) -> np.ndarray:
  """The first `num_frames` frames of a clip at that rate, [T, H, W, 3] uint8: the frame shown at each time.

  Raises UserError for what is no clip, or a shorter one.
  """
  if not Path(path).is_file():
    raise UserError(f'there is no clip {path}')
  capture = cv2.VideoCapture(str(path))
  try:
    rate = capture.get(cv2.CAP_PROP_FPS)
    if not capture.isOpened() or not rate > 0:
      raise UserError(f'cannot read {path}: it is broken, or no clip')
    shown: list[np.ndarray] = []
    num_read = 0
    for wanted in (int(i * rate / frames_per_second + 1e-6) for i in range(num_frames)):
      while num_read <= wanted:
        is_read, frame = capture.read()
        if not is_read:
          raise UserError(
            f'{path} ends after {num_read} frames, {num_read / rate:.2f} s; '
            f'{num_frames / frames_per_second:.2f} s are needed')
        num_read += 1
      shown.append(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB))
  finally:
    capture.release()
  return np.stack(shown)


def read_sound(path: str | os.PathLike, num_samples: int) -> tuple[np.ndarray, int]:
  """The first `num_samples` samples of a WAV file, [S] float32, its channels averaged, and its rate per second.

  Raises UserError for what is no WAV file, or a shorter one.
  """
  try:
    with warnings.catch_warnings():
      warnings.simplefilter('ignore', wavfile.WavFileWarning)  # of chunks that hold no sound
      rate, samples = wavfile.read(path)
  except OSError as error:
    raise UserError(f'cannot read {path}: {error.strerror}') from error
  except Exception as error:  # SciPy trips over broken files in many ways
    raise UserError(f'cannot read {path}: it is broken, or no WAV file ({error})') from error
  if len(samples) < num_samples:
    raise UserError(f'{path} has {len(samples)} samples; {num_samples} are needed')
  some = samples[:num_samples]
  middle = 128 if some.dtype == np.uint8 else 0
  loudest = 1 if np.issubdtype(some.dtype, np.floating) else middle or -float(np.iinfo(some.dtype).min)
  mono = ((some.astype(np.float64) - middle) / loudest).reshape(num_samples, -1).mean(-1)
  return mono.astype(np.float32), rate
