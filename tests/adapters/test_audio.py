"""Audio as inputs and outputs: what a patch holds, when it sounds, and how a waveform comes back."""

import haiku as hk
import jax
import numpy as np
import pytest

from perceiver_jax.adapters.audio import audio_from_patches, audio_inputs, audio_patches, spectrogram_inputs
from perceiver_jax.core.input_array import dense
from perceiver_jax.core.position_encoding import FourierGrid
from perceiver_jax.types import UserError

AUDIO = np.random.default_rng(0).uniform(-1, 1, (2, 12)).astype(np.float32)


def _fourier(coordinate, num_bands, max_resolution):
  angles = np.pi * coordinate * np.linspace(1, max_resolution / 2, num_bands)
  return np.sin(angles), np.cos(angles)


def test_a_patch_is_a_run_of_samples():
  patches = audio_patches(AUDIO, 4)
  assert patches.shape == (2, 3, 4)
  for patch in range(3):
    np.testing.assert_array_equal(patches[:, patch], AUDIO[:, 4 * patch:4 * patch + 4])


def test_an_element_is_a_patch_and_its_time():
  inputs = audio_inputs(AUDIO, 4, 5, (24,))
  assert isinstance(inputs.positions, FourierGrid) and inputs.valid is None
  elements = dense(inputs)
  assert elements.shape == (2, 3, 4 + 11)
  for patch, time in enumerate((-1, 0, 1)):
    np.testing.assert_array_equal(elements[:, patch, :4], AUDIO[:, 4 * patch:4 * patch + 4])
    expected = np.concatenate([[time], *_fourier(time, 5, 24)])
    np.testing.assert_allclose(elements[:, patch, 4:], [expected] * 2, atol=1e-5)


def test_the_released_model_sees_1920_patches_of_401_channels_with_their_times():
  elements = dense(audio_inputs(np.zeros((1, 30_720), np.float32), 16, 192, (30_720,)))
  assert elements.shape == (1, 1920, 401)
  time = np.float32(-1 + 2 * 700 / 1919)
  expected = np.concatenate([[time], *_fourier(np.float64(time), 192, 30_720)])
  np.testing.assert_allclose(elements[0, 700, 16:], expected, atol=5e-3)  # 15,360 periods, in float32


def test_the_highest_band_is_by_default_that_of_the_patches():
  for patches, resolution in ((None, 3), ((3,), 3), ((24,), 24)):
    wave = audio_inputs(AUDIO[:, :12], 4, 5, patches).positions.sines[0]
    np.testing.assert_allclose(wave[2], _fourier(1, 5, resolution)[0], atol=1e-5)


def test_audio_that_patches_do_not_divide_is_the_users_mistake():
  with pytest.raises(UserError, match='patches of 5 samples do not divide 12 samples'):
    audio_inputs(AUDIO, 5, 4)
  with pytest.raises(AssertionError, match='shape'):
    audio_patches(AUDIO.reshape(2, 6, 2), 3)


def test_an_entry_of_a_spectrogram_is_an_element_at_its_frequency_and_time():
  spectrogram = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
  elements = dense(spectrogram_inputs(spectrogram, 5, (8, 10)))
  assert elements.shape == (2, 12, 1 + 22)
  for frequency, time in np.ndindex(3, 4):
    element = elements[:, 4 * frequency + time]
    y, x = -1 + frequency, -1 + 2 * time / 3
    (y_sines, y_cosines), (x_sines, x_cosines) = _fourier(y, 5, 8), _fourier(x, 5, 10)
    np.testing.assert_array_equal(element[:, 0], spectrogram[:, frequency, time])
    np.testing.assert_allclose(
      element[:, 1:], [[y, x, *y_sines, *x_sines, *y_cosines, *x_cosines]] * 2, atol=1e-5)
  with pytest.raises(AssertionError, match='shape'):
    spectrogram_inputs(AUDIO, 5)


def test_a_waveform_comes_back_patch_after_patch():
  answers = np.random.default_rng(0).normal(size=(2, 3, 5)).astype(np.float32)
  function = hk.without_apply_rng(hk.transform(lambda answers: audio_from_patches(answers, 4)))
  params = function.init(jax.random.key(0), answers)
  assert jax.tree.map(np.shape, params) == {'audio_output': {'w': (5, 4), 'b': (4,)}}
  params['audio_output']['b'] += np.arange(4)
  audio = function.apply(params, answers)
  assert audio.shape == (2, 12)
  for patch in range(3):
    expected = answers[:, patch] @ params['audio_output']['w'] + params['audio_output']['b']
    np.testing.assert_allclose(audio[:, 4 * patch:4 * patch + 4], expected, atol=1e-5)
  with pytest.raises(AssertionError, match='shape'):
    function.init(jax.random.key(0), AUDIO)
