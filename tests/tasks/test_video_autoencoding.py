"""Autoencoding of clips: size as published, decoding in parts, and what never reaches an output."""

import numpy as np
import pytest

from perceiver_jax.core import attention
from perceiver_jax.tasks import video_autoencoding
from tests.tasks import tiny

pytestmark = pytest.mark.usefixtures('quick_compilation')

RNG = np.random.default_rng(0)
BATCH = {
  'video': RNG.integers(0, 256, (2, 2, 8, 8, 3), dtype=np.uint8),
  'audio': RNG.uniform(-1, 1, (2, 64)).astype(np.float32),
  'label': np.zeros((2, 5), np.float32),
}
NUM_AUDIO, NUM_VIDEO = 64 // 8, 2 * 4 * 4
NUM_ELEMENTS = NUM_AUDIO + 1 + NUM_VIDEO   # the label in the middle


@pytest.fixture(scope='module')
def config():
  return tiny.read_config('video_autoencoding:debug')


@pytest.fixture(scope='module')
def model(config):
  return tiny.model_of(config)


@pytest.fixture(scope='module')
def whole(model):
  return model(BATCH)


def test_the_model_has_its_exact_number_of_parameters():
  assert tiny.num_parameters(tiny.read_config('video_autoencoding:latents784')) == 19_858_855


@pytest.mark.parametrize('num_latents', [392, 196])
def test_a_narrower_bottleneck_has_fewer_latents_and_nothing_else(num_latents):
  total = tiny.num_parameters(tiny.read_config(f'video_autoencoding:latents{num_latents}'))
  assert total == 19_858_855 - (784 - num_latents) * 512


def test_everything_comes_back_in_its_shape(whole):
  assert {name: (x.shape, x.dtype.name) for name, x in whole.items()} == {
    'video': ((2, 2, 8, 8, 3), 'float32'), 'audio': ((2, 64), 'float32'), 'label': ((2, 5), 'float32')}


def test_the_label_is_never_seen(model, whole):
  tiny.assert_close(model({**BATCH, 'label': np.eye(5, dtype=np.float32)[:2]}), whole)


@pytest.mark.parametrize('name', ['video', 'audio'])
def test_video_and_sound_reach_all_three(model, whole, name):
  changed = BATCH[name].copy()
  changed[:, 1] = 255 - changed[:, 1] if name == 'video' else 0.5 - changed[:, 1]
  for output, values in model({**BATCH, name: changed}).items():
    assert tiny.differ(values, whole[output]) > 1e-5, output


def test_whole_numbers_to_255_are_the_same_as_floats_to_1(model, whole):
  tiny.assert_close(model({**BATCH, 'video': (BATCH['video'] / 255).astype(np.float32)}), whole)


def test_what_does_not_count_changes_nothing(model):
  valid = np.ones((2, NUM_ELEMENTS), np.uint8)
  valid[:, 0] = valid[:, -1] = 0           # the first patch of the sound, the last of the video
  changed = {name: x.copy() for name, x in BATCH.items()}
  changed['audio'][:, :8] = 0
  changed['video'][:, -1, -2:, -2:] = 0
  tiny.assert_close(model({**changed, 'valid': valid}), model({**BATCH, 'valid': valid}))
  assert tiny.differ(model(changed)['video'], model(BATCH)['video']) > 1e-5


def test_points_are_the_same_as_those_of_the_whole(model, whole):
  pixels = np.array([[5, 127, 0, 64, 5], [1, 2, 90, 4, 3]], np.int32)
  patches = np.array([[7, 2], [0, 7]], np.int32)
  some = model({**BATCH, 'video_points': pixels, 'audio_points': patches})
  each = np.arange(2)[:, None]
  tiny.assert_close(some['video'], whole['video'].reshape(2, -1, 3)[each, pixels])
  tiny.assert_close(some['audio'], whole['audio'].reshape(2, -1, 8)[each, patches].reshape(2, 16))
  tiny.assert_close(some['label'], whole['label'])


def test_points_of_one_kind_leave_the_other_whole(model, whole):
  some = model({**BATCH, 'audio_points': np.array([[3], [3]], np.int32)})
  tiny.assert_close(some['video'], whole['video'])
  tiny.assert_close(some['audio'], whole['audio'][:, 24:32])


@pytest.mark.parametrize('most_values, most_logits', [(1, 2**26), (2 * 37 * 16 + 1, 2**26), (2**24, 1), (1_000, 100)])
def test_chunks_change_nothing(config, whole, monkeypatch, most_values, most_logits):
  monkeypatch.setattr(video_autoencoding, 'MOST_QUERY_VALUES', most_values)
  monkeypatch.setattr(attention, 'MOST_LOGITS', most_logits)
  tiny.assert_close(tiny.model_of(config)(BATCH), whole)


def test_points_in_chunks_are_the_same(config, whole, monkeypatch):
  monkeypatch.setattr(video_autoencoding, 'MOST_QUERY_VALUES', 300)
  pixels = np.arange(3, 100, 7, dtype=np.int32)
  some = tiny.model_of(config)({**BATCH, 'video_points': np.stack([pixels, pixels])})
  tiny.assert_close(some['video'], whole['video'].reshape(2, -1, 3)[:, pixels])


def test_the_clip_and_its_gradients_are_the_same_by_every_path():
  tiny.assert_paths_agree('video_autoencoding:debug', BATCH)


def test_an_example_does_not_depend_on_its_company(config):
  tiny.assert_company_does_not_matter(config, BATCH)
  tiny.assert_company_does_not_matter(config, {**BATCH, 'video_points': np.array([[1, 9], [3, 4]], np.int32)})


def test_every_parameter_reaches_the_outputs_but_those_of_what_is_masked_or_never_masked(config):
  assert tiny.idle_parameters(config, BATCH) == tiny.key_biases(config) | {
    'audio_mask_token/table', 'video_mask_token/table', 'label_padding/table'}


def test_what_is_captured(config):
  """Not the decoder's weights: 804,737 queries by 784 latents at full size."""
  tiny.assert_captured(
    config, BATCH, cross_attends=(1, 2, 1, 4, NUM_ELEMENTS), latents=(2, 4, 16), self_attends=(2, 1, 2, 2, 4, 4))


def test_a_clip_of_another_length_is_answered_in_that_of_the_config(model):
  outputs = model({**BATCH, 'video': BATCH['video'][:, :1], 'audio': BATCH['audio'][:, :32]})
  assert {name: x.shape for name, x in outputs.items()} == {'video': (2, 2, 8, 8, 3), 'audio': (2, 64), 'label': (2, 5)}


@pytest.mark.parametrize('change, message', [
  ({'video': BATCH['video'][0]}, r'video is \[batch, frames, height, width, 3\], not \[2, 8, 8, 3\]'),
  ({'video': BATCH['video'][..., :1]}, r'not \[2, 2, 8, 8, 1\]'),
  ({'video': BATCH['video'][:, :, :7]}, r'patches of 1 x 2 x 2 do not divide \[2, 2, 7, 8, 3\]'),
  ({'audio': BATCH['audio'][..., None]}, r'audio is \[batch, samples\], not \[2, 64, 1\]'),
  ({'audio': BATCH['audio'][:, :63]}, r'patches of 8 samples do not divide 63 samples'),
  ({'label': np.zeros((2, 4), np.float32)}, r'label is \[batch, 5\], not \[2, 4\]'),
  ({'label': np.zeros(2, np.int32)}, r'label is \[batch, 5\], not \[2\]'),
  ({'label': np.zeros((1, 5), np.float32)}, 'prefix'),
  ({'valid': np.ones((2, 9))}, r'shape \(2, 9\) but expected \(2, 41\)'),
  ({'video_points': np.zeros(3, np.int32)}, r'video_points are integers \[batch, points\].*not int32 \[3\]'),
  ({'audio_points': np.zeros((2, 3), np.float32)}, r'audio_points are integers .*not float32 \[2, 3\]'),
])
def test_another_batch_is_the_users_mistake(config, change, message):
  tiny.assert_refused(config, {**BATCH, **change}, message)


@pytest.mark.parametrize('name', BATCH)
def test_what_is_missing_is_named(config, name):
  tiny.assert_refused(config, {other: x for other, x in BATCH.items() if other != name}, f'{name} is missing')
