"""A clip through the bottleneck and back, and what it shows (2107.14795, section 4.3 and appendix I)."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from perceiver_jax.inference.model import Model, ask, most_probable
from perceiver_jax.types import UserError

if TYPE_CHECKING:
  from perceiver_jax.inference.predictor import Predictor

SUFFIXES = ('.png',)
FRAMES_PER_SECOND = 25
ROUNDING = 1e-3  # how far full scale may be beyond 1: -2 ** 15 / (2 ** 15 - 1), say


class Reconstruction(NamedTuple):
  """A clip as the model saw it and as it came back."""

  video: np.ndarray                  # [T, S, S, 3] uint8: what the model saw
  video_again: np.ndarray            # [T, S, S, 3] uint8
  audio: np.ndarray                  # [samples] float32, in -1..1
  audio_again: np.ndarray            # [samples] float32
  sample_rate: int                   # of both, samples a second
  names: tuple[str, ...]             # the most probable labels first
  probabilities: np.ndarray          # [k] float32
  captured: dict[str, Any] | None    # attention maps and latents, where asked for


def predict(
  model: Model, video: Any, audio: Any, *, sample_rate: int | None = None, class_names: tuple[str, ...] | None = None,
  top_k: int = 5, capture: bool = False,
) -> Reconstruction:
  """Reconstructs a clip and says what it shows.

  Args:
    model: of the task video_autoencoding.
    video: [T, H, W, 3] uint8, at 25 frames a second; as many frames as the model reads, of any size (the central square
      is taken). Or a clip's path, whose first frames are taken.
    audio: [samples] float in -1..1, mono, at 1,920 samples a frame. Or a WAV file's path: its first samples.
    sample_rate: of the audio, if known; then it is checked.
    class_names: of all labels; by number where None.
    top_k: how many labels to return, at least 1.
    capture: also return attention maps and latents.

  Raises:
    UserError: another number of frames or samples, another rate, ranks, dtypes or range; `top_k` below 1, or names of
      another number of labels.
  """
  data = model.config.data
  num_samples, rate = data.num_frames * data.samples_per_frame, FRAMES_PER_SECOND * data.samples_per_frame
  if isinstance(video, str | os.PathLike):
    from perceiver_jax.data.files import read_video

    video = read_video(video, data.num_frames, FRAMES_PER_SECOND)
  if isinstance(audio, str | os.PathLike):
    from perceiver_jax.data.files import read_sound

    audio, sample_rate = read_sound(audio, num_samples)
  frames, sound = np.asarray(video), np.asarray(audio)
  if frames.ndim != 4 or frames.shape[-1] != 3 or 0 in frames.shape or frames.dtype != np.uint8:
    raise UserError(f'a video is uint8 [frames, height, width, 3], not {frames.dtype} {list(frames.shape)}')
  if len(frames) != data.num_frames:
    raise UserError(f'the video has {len(frames)} frames, but the model reads {data.num_frames}')
  if sample_rate is not None and sample_rate != rate:
    raise UserError(f'the audio has {sample_rate} samples a second, but the model hears {rate}; resample it')
  if sound.shape != (num_samples,) or not np.issubdtype(sound.dtype, np.floating):
    raise UserError(
      f'the audio is {sound.dtype} {list(sound.shape)}, but the model hears [{num_samples}] float in -1..1, mono, '
      f'{data.num_frames / FRAMES_PER_SECOND:g} seconds at {rate} samples a second')
  loudest = np.abs(sound).max()
  if not loudest <= 1 + ROUNDING:
    raise UserError(f'the audio is in -1..1, but its largest magnitude is {loudest:g}: divide it by that of full scale')
  cropped = central_square(frames, data.image_size)
  label = np.zeros((1, data.num_classes), np.float32)
  outputs = ask(
    model, {'video': cropped[None], 'audio': sound[None].astype(np.float32), 'label': label}, capture=capture)
  names, probabilities, _ = most_probable(outputs['label'][0], class_names, top_k)
  return Reconstruction(
    video=cropped,
    video_again=np.rint(255 * np.clip(outputs['video'][0], 0, 1)).astype(np.uint8),
    audio=sound.astype(np.float32),
    audio_again=outputs['audio'][0],
    sample_rate=rate,
    names=names,
    probabilities=probabilities,
    captured=outputs.get('captured'),
  )


def central_square(frames: np.ndarray, size: int) -> np.ndarray:
  """Crops frames [T, H, W, C] to the central square, bilinear to [T, size, size, C] uint8, as the authors' example.

  Its corner is half a side from half the frame, each rounded down.
  """
  height, width = frames.shape[1:3]
  side = min(height, width)
  top, left = height // 2 - side // 2, width // 2 - side // 2
  return resized(frames[:, top:top + side, left:left + side], (size, size))


def present(predictor: Predictor, inputs: Sequence[str], output: str | None) -> Iterator[str]:
  """A line per label, most probable first; draws frames and waveforms, before and after."""
  from perceiver_jax import visualize

  if len(inputs) != 2:
    raise UserError(f'a clip and its sound (a WAV file) are needed; {len(inputs)} files are given')
  again = predictor.predict(*inputs)
  labels = list(zip(again.names, again.probabilities, strict=True))
  yield '\n'.join(f'{probability:6.1%}  {name}' for name, probability in labels)
  if output:
    visualize.reconstruction(
      output, again.video, again.video_again, again.audio, again.audio_again, again.sample_rate, labels)


def resized(frames: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
  """Resizes [T, H, W, C] uint8 to [T, *shape, C], bilinear, without anti-aliasing, as the authors resize."""
  full = (*frames.shape[:-3], *shape, frames.shape[-1])
  values = jax.image.resize(jnp.asarray(frames, jnp.float32), full, 'linear', antialias=False)
  return np.asarray(jnp.clip(jnp.round(values), 0, 255), np.uint8)
