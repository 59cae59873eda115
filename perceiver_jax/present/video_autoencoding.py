"""A clip: what it shows, and how it comes back through the bottleneck."""

from __future__ import annotations

from collections.abc import Sequence

from perceiver_jax import visualize
from perceiver_jax.data.files import read_sound, read_video
from perceiver_jax.inference.predictor import Predictor
from perceiver_jax.inference.video_autoencoding import FRAMES_PER_SECOND
from perceiver_jax.types import UserError


def present(predictor: Predictor, inputs: Sequence[str], output: str | None) -> str:
  """A line per label, most probable first; draws frames and waveforms, before and after."""
  if len(inputs) != 2:
    raise UserError(f'a clip and its sound (a WAV file) are needed; {len(inputs)} files are given')
  data = predictor.config.data
  video = read_video(inputs[0], data.num_frames, FRAMES_PER_SECOND)
  audio, sample_rate = read_sound(inputs[1], data.num_frames * data.samples_per_frame)
  again = predictor.predict(video, audio, sample_rate=sample_rate)
  labels = list(zip(again.names, again.probabilities, strict=True))
  if output:
    visualize.reconstruction(
      output, again.video, again.video_again, again.audio, again.audio_again, again.sample_rate, labels)
  return '\n'.join(f'{probability:6.1%}  {name}' for name, probability in labels)
