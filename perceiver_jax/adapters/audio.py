"""Audio in and out: patches of a waveform, or the entries of a spectrogram (2107.14795, appendices C and I).

Shapes: B batch, S samples, p samples of a patch, n = S / p patches, F frequencies, T times.
"""

from __future__ import annotations

from collections.abc import Sequence

import chex
import haiku as hk
import jax

from perceiver_jax.core.input_array import InputArray
from perceiver_jax.core.position_encoding import fourier_grid
from perceiver_jax.types import Array, UserError


def audio_patches(audio: Array, samples_per_patch: int) -> Array:
  """Cuts audio [B, S] into patches [B, S / p, p]. Raises UserError where p does not divide S."""
  chex.assert_rank(audio, 2)
  batch_size, num_samples = audio.shape
  if num_samples % samples_per_patch:
    raise UserError(f'patches of {samples_per_patch} samples do not divide {num_samples} samples of audio')
  return audio.reshape(batch_size, num_samples // samples_per_patch, samples_per_patch)


def audio_inputs(
  audio: Array, samples_per_patch: int, num_bands: int, max_resolution: Sequence[int] | None = None,
) -> InputArray:
  """Patches of a waveform, with their Fourier positions in time.

  Args:
    audio: [B, S], in [-1, 1].
    samples_per_patch: p, a divisor of S.
    num_bands: of a position.
    max_resolution: (twice the highest band,); the number of patches by default. The released video model has that of
      single samples, (30720,).

  Returns:
    n elements, features [B, n, p].
  """
  patches = audio_patches(audio, samples_per_patch)
  return InputArray(patches, fourier_grid(patches.shape[1:2], num_bands, max_resolution))


def spectrogram_inputs(
  spectrogram: Array, num_bands: int, max_resolution: Sequence[int] | None = None,
) -> InputArray:
  """Entries of a spectrogram, one by one, with the Fourier positions of their frequency and time.

  Args:
    spectrogram: [B, F, T]. AudioSet's 4,800 mel entries may be 80 x 60; the paper does not say (2103.03206, section
      4.2).
    num_bands: of a position, per axis.
    max_resolution: (frequency, time); (F, T) by default.

  Returns:
    F * T elements, a frequency's times together; features [B, F * T, 1].
  """
  chex.assert_rank(spectrogram, 3)
  batch_size, *shape = spectrogram.shape
  return InputArray(spectrogram.reshape(batch_size, -1, 1), fourier_grid(shape, num_bands, max_resolution))


def audio_from_patches(answers: jax.Array, samples_per_patch: int, name: str = 'audio_output') -> jax.Array:
  """Makes audio [B, n * p] of answers [B, n, C]: the samples of each patch by one trained linear."""
  chex.assert_rank(answers, 3)
  patches = hk.Linear(samples_per_patch, name=name)(answers)
  return patches.reshape(patches.shape[0], -1)
