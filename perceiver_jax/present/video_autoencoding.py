"""A clip: what it shows, and how it comes back through the bottleneck."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from perceiver_jax import visualize
from perceiver_jax.inference.predictor import Predictor
from perceiver_jax.types import UserError

SUFFIXES = ('.png',)


def present(predictor: Predictor, inputs: Sequence[str], output: str | None) -> Iterator[str]:
  """A line per label, most probable first; draws frames and waveforms, before and after."""
  if len(inputs) != 2:
    raise UserError(f'a clip and its sound (a WAV file) are needed; {len(inputs)} files are given')
  again = predictor.predict(*inputs)
  labels = list(zip(again.names, again.probabilities, strict=True))
  yield '\n'.join(f'{probability:6.1%}  {name}' for name, probability in labels)
  if output:
    visualize.reconstruction(
      output, again.video, again.video_again, again.audio, again.audio_again, again.sample_rate, labels)
