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
from scipy.io import wavfile

from perceiver_jax.types import UserError


def read_image(path: str | os.PathLike) -> np.ndarray:
  """[H, W, 3] uint8. Raises UserError for what is no picture, or has more pixels than perceiver_jax.data allows."""
  try:
    image = cv2.imdecode(np.frombuffer(Path(path).read_bytes(), np.uint8), cv2.IMREAD_COLOR_RGB)
  except OSError as error:
    raise UserError(f'cannot read {path}: {error.strerror}') from error
  except cv2.error:                         # an empty file, or too many pixels
    image = None
  if image is None:
    raise UserError(f'cannot read {path}: it is broken, no picture, or one of more pixels than 2 ** 27')
  return image


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
