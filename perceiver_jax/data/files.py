"""A person's own files as arrays: pictures, clips and sound, for `predict`.

  picture  [H, W, 3] uint8, upright (its EXIF orientation applied)
  clip     [T, H, W, 3] uint8, at a given number of frames a second
  sound    [S] float32, -1 to 1, mono
"""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageOps
from scipy.io import wavfile

from perceiver_jax.types import UserError

# A photograph has at most 20 pixels per byte; a drawing in two colours more, but few pixels.
FREE_PIXELS, PIXELS_PER_BYTE = 2**24, 1_000

# Of what Pillow mends, and of sizes, which are checked here. Once: threads that read share the list of filters.
warnings.filterwarnings('ignore', module=r'PIL\.')


def read_image(path: str | os.PathLike, num_channels: int = 3) -> np.ndarray:
  """Reads a picture of any kind that Pillow reads, [H, W, num_channels] uint8: RGB, or gray.

  Raises UserError for a file that cannot be read, is no picture, or has too many pixels.
  """
  try:
    with Image.open(path) as image:
      _check_size(path, image)
      return pixels(image, num_channels)
  except Exception as error:                # Pillow trips over broken files in many ways
    reason = str(error) if isinstance(error, UserError) else (
      getattr(error, 'strerror', None) or f'it is broken, or no picture ({error})')
    raise UserError(f'cannot read {path}: {reason}') from error


def pixels(image: Image.Image, num_channels: int = 3) -> np.ndarray:
  """Returns the pixels of a PIL image, [H, W, num_channels] uint8, upright; transparency is left out.

  Gray is 0.299 red + 0.587 green + 0.114 blue (ITU-R 601). Of 16 bits the upper 8 are taken.

  Raises UserError for an image of floats, of integers of 32 bits, or of 16 bits that uses the lower 12 alone.
  """
  upright = _upright(image)
  if upright.mode.startswith('I;16'):
    deep = np.asarray(upright)
    if 0 < deep.max() < 2**12:
      raise UserError(f'the brightest of its pixels is {deep.max()} of 65,535: it would be all but black. Is it of '
                      f'{int(deep.max()).bit_length()} bits? Multiply its values up to 65,535, or save it with 8 bits')
    upright = Image.fromarray((deep >> 8).astype(np.uint8))
  if upright.mode[0] in 'IF':
    raise UserError(f'a picture of mode {image.mode!r} has no range that is known: save it with 8 or 16 bits')
  # By way of RGB: of a palette with transparency Pillow makes another gray.
  rgb = upright.convert('RGB')
  return np.asarray(rgb) if num_channels == 3 else np.asarray(rgb.convert('L'))[..., None]


def with_channels(array: np.ndarray, num_channels: int) -> np.ndarray:
  """Returns [H, W, num_channels] of an array [H, W, 1, 3 or 4] uint8 as `pixels` does; a fourth channel is left out."""
  array = array[..., :3]
  if array.shape[-1] == num_channels:
    return array
  return np.repeat(array, 3, axis=-1) if num_channels == 3 else pixels(Image.fromarray(np.ascontiguousarray(array)), 1)


def _upright(image: Image.Image) -> Image.Image:
  try:
    return ImageOps.exif_transpose(image)
  except Exception:                         # a broken note about the camera; if pixels are broken too, they will tell
    return image


def _check_size(path: str | os.PathLike, image: Image.Image) -> None:
  """Raises UserError for a file of a few bytes that claims to be a large picture."""
  num_bytes = Path(path).stat().st_size
  if image.width * image.height > FREE_PIXELS + PIXELS_PER_BYTE * num_bytes:
    raise UserError('it is broken, or made to harm: '
                    f'it claims {image.width} x {image.height} pixels and has {num_bytes} bytes')


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
