"""A clip and back: what the model is shown, what it gives back, and clips that do not fit."""

import numpy as np
import pytest

from perceiver_jax.inference.model import Model
from perceiver_jax.inference.video_autoencoding import central_square, predict, resized
from perceiver_jax.types import UserError
from tests.tasks.tiny import random_model, read_config

pytestmark = pytest.mark.usefixtures('quick_compilation')

RNG = np.random.default_rng(0)
VIDEO = RNG.integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
AUDIO = RNG.uniform(-1, 1, 64)
RATE = 25 * 32


@pytest.fixture(scope='module')
def model():
  """On 2 frames of 8 x 8 pixels and 32 samples each, with 5 labels."""
  return random_model(read_config('video_autoencoding:debug'))


def test_frames_are_resized_one_by_one():
  frames = RNG.integers(0, 256, (2, 9, 7, 3), dtype=np.uint8)
  alone = [resized(frame[None], (5, 6))[0] for frame in frames]
  np.testing.assert_array_equal(resized(frames, (5, 6)), np.stack(alone))


def test_a_clip_comes_back_in_its_shape(model):
  again = predict(model, VIDEO, AUDIO, sample_rate=RATE)
  for video in (again.video, again.video_again):
    assert (video.shape, video.dtype) == ((2, 8, 8, 3), np.uint8)
  for audio in (again.audio, again.audio_again):
    assert (audio.shape, audio.dtype) == ((64,), np.float32)
  assert again.sample_rate == RATE and again.captured is None
  np.testing.assert_array_equal(again.video, VIDEO)
  np.testing.assert_array_equal(again.audio, AUDIO.astype(np.float32))


def test_what_comes_back_is_what_the_model_says(model):
  again = predict(model, VIDEO, AUDIO)
  batch = {'video': VIDEO[None], 'audio': AUDIO[None].astype(np.float32), 'label': np.zeros((1, 5), np.float32)}
  outputs = model.run(batch)
  np.testing.assert_array_equal(again.video_again, np.rint(255 * np.clip(outputs['video'][0], 0, 1)))
  np.testing.assert_allclose(again.audio_again, outputs['audio'][0], rtol=1e-6)
  logits = outputs['label'][0].astype(float)
  np.testing.assert_allclose(again.probabilities, np.sort(np.exp(logits) / np.exp(logits).sum())[::-1], rtol=1e-5)
  assert again.names == tuple(f'class {i}' for i in np.argsort(-logits))


def test_labels_have_the_names_that_are_given(model):
  plain, named = predict(model, VIDEO, AUDIO), predict(model, VIDEO, AUDIO, class_names=list('abcde'), top_k=3)
  assert [f'class {"abcde".index(name)}' for name in named.names] == list(plain.names[:3])
  np.testing.assert_array_equal(named.probabilities, plain.probabilities[:3])


def test_sound_at_full_scale_is_heard_though_rounded_beyond_it(model):
  audio = np.where(np.arange(64) == 9, -2**15 / (2**15 - 1), AUDIO)
  np.testing.assert_array_equal(predict(model, VIDEO, audio).audio, audio.astype(np.float32))


def test_frames_of_another_size_are_cut_to_their_whole_central_square(model):
  video = RNG.integers(0, 256, (2, 21, 14, 3), dtype=np.uint8)
  seen = predict(model, video, AUDIO).video
  np.testing.assert_array_equal(seen, central_square(video, 8))


def _linear(length, size):
  """[size, length]: how much each pixel counts at the centre of every new one."""
  place = np.clip((np.arange(size) + 0.5) * length / size - 0.5, 0, length - 1)
  return np.maximum(0, 1 - np.abs(place[:, None] - np.arange(length)))


@pytest.mark.parametrize('shape, size, top, left', [
  ((14, 21), 8, 0, 3), ((21, 14), 8, 3, 0), ((14, 22), 8, 0, 4), ((9, 9), 16, 0, 0), ((6, 8), 6, 0, 1),
  ((1, 5), 4, 0, 2),
])
def test_the_central_square_is_cut_and_resized_by_lines(shape, size, top, left):
  video = RNG.integers(0, 256, (2, *shape, 3), dtype=np.uint8)
  side = min(shape)
  cut = video[:, top:top + side, left:left + side].astype(float)
  expected = np.einsum('ih,jw,thwc->tijc', _linear(side, size), _linear(side, size), cut, optimize=True)
  found = central_square(video, size)
  assert (found.shape, found.dtype) == ((2, size, size, 3), np.uint8)
  assert np.abs(found - expected).max() < 0.51


def test_levels_beyond_black_and_white_are_cut_off():
  def run(batch, *, capture=False):
    video = np.linspace(-1, 2, 2 * 8 * 8 * 3, dtype=np.float32).reshape(1, 2, 8, 8, 3)
    assert batch['label'].shape == (1, 5) and not batch['label'].any()
    return {'video': video, 'audio': batch['audio'], 'label': batch['label']}

  again = predict(Model(read_config('video_autoencoding:debug'), {}, {}, run), VIDEO, AUDIO).video_again.ravel()
  assert again[0] == 0 and again[-1] == 255
  assert np.all(np.diff(again.astype(int)) >= 0) and again[len(again) // 2] == 128


def test_attention_comes_if_it_is_asked_for(model):
  assert predict(model, VIDEO, AUDIO, capture=True).captured['cross_attends'].shape == (1, 1, 1, 4, 41)


@pytest.mark.parametrize('change, message', [
  ({'video': VIDEO[:1]}, 'the video has 1 frames, but the model reads 2'),
  ({'video': VIDEO[0]}, r'a video is uint8 \[frames, height, width, 3\], not uint8 \[8, 8, 3\]'),
  ({'video': VIDEO / 255}, r'a video is uint8 .*, not float64 \[2, 8, 8, 3\]'),
  ({'video': VIDEO[..., 0]}, r'not uint8 \[2, 8, 8\]'),
  ({'video': VIDEO[:, :0]}, r'not uint8 \[2, 0, 8, 3\]'),
  ({'audio': AUDIO[:63]}, r'the audio is float64 \[63\], but the model hears \[64\] float in -1\.\.1, mono'),
  ({'audio': AUDIO[:, None]}, r'the audio is float64 \[64, 1\]'),
  ({'audio': (AUDIO * 2**15).astype(np.int16)}, r'the audio is int16 \[64\].* 0\.08 seconds at 800 samples a second'),
  ({'audio': AUDIO * np.where(np.arange(64) == 9, np.nan, 1)}, 'in -1..1, but its largest magnitude is nan'),
  ({'audio': np.where(np.arange(64) == 9, -np.inf, AUDIO)}, 'its largest magnitude is inf'),
  ({'audio': np.where(np.arange(64) == 9, -32768, AUDIO)}, 'its largest magnitude is 32768: divide it'),
  ({'audio': np.where(np.arange(64) == 9, 1.01, AUDIO)}, 'its largest magnitude is 1.01'),
  ({'sample_rate': 44_100}, 'the audio has 44100 samples a second, but the model hears 800; resample it'),
  ({'top_k': 0}, 'top_k is 0'),
  ({'class_names': ['a']}, 'there are 1 class_names, but the model has 5 classes'),
])
def test_a_clip_that_does_not_fit_is_the_users_mistake(model, change, message):
  with pytest.raises(UserError, match=message):
    predict(model, **{'video': VIDEO, 'audio': AUDIO, **change})
