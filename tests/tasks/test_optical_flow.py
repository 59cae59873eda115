"""Optical flow: sizes as published, what a pixel's flow depends on, and frames in every form."""

import numpy as np
import pytest

from perceiver_jax.adapters.flow import frame_patches
from perceiver_jax.core import attention
from tests.tasks import tiny

pytestmark = pytest.mark.usefixtures('quick_compilation')

HEIGHT, WIDTH = 12, 16
NUM_PIXELS = HEIGHT * WIDTH
RNG = np.random.default_rng(0)
FRAMES = {'frames': RNG.integers(0, 256, (2, 2, HEIGHT, WIDTH, 3), dtype=np.uint8)}
VARIANTS = ['debug', 'separate,debug', 'pixels,debug']


@pytest.fixture(scope='module')
def config():
  return tiny.read_config('optical_flow:debug')


@pytest.fixture(scope='module')
def model(config):
  return tiny.model_of(config)


@pytest.mark.parametrize('variant, total', [('full', 41_057_134), ('small', 27_908_974)])
def test_models_have_their_exact_number_of_parameters(variant, total):
  assert tiny.num_parameters(tiny.read_config(f'optical_flow:{variant}')) == total


def test_frames_that_are_separate_have_an_element_each_and_a_time_and_pixels_are_no_patches():
  full = tiny.num_parameters(tiny.read_config('optical_flow:full'))
  # Without neighbours the stem reads 6 values in place of 54; of one frame 27, but the position has 129 channels more.
  assert full - tiny.num_parameters(tiny.read_config('optical_flow:pixels')) == 48 * 64

  def by_width(width):
    """Parameters of the encoder's and the decoder's cross-attend that depend on the width of an element."""
    encoder = 512 * width + width + 2 * (width**2 + width) + width * 512 + 2 * width
    decoder = width * 512 + 512 * width + width + 2 * (width**2 + width) + 4 * width + 2 * width
    return encoder + decoder

  separate = tiny.num_parameters(tiny.read_config('optical_flow:separate'))
  assert separate - full == by_width(322 + 129) - by_width(322) - 27 * 64


@pytest.mark.parametrize('variant', VARIANTS)
def test_every_pixel_of_the_first_frame_has_a_flow(variant):
  outputs = tiny.model_of(tiny.read_config(f'optical_flow:{variant}'))(FRAMES)
  assert outputs.keys() == {'flow'}
  assert (outputs['flow'].shape, outputs['flow'].dtype) == ((2, HEIGHT, WIDTH, 2), np.float32)


@pytest.mark.parametrize('variant', VARIANTS)
def test_both_frames_matter_and_their_order(variant):
  model = tiny.model_of(tiny.read_config(f'optical_flow:{variant}'))
  flow, others = model(FRAMES)['flow'], []
  for frame in (0, 1):
    changed = FRAMES['frames'].copy()
    changed[:, frame, 3, 5] ^= 255
    others.append(model({'frames': changed})['flow'])
  others.append(model({'frames': FRAMES['frames'][:, ::-1]})['flow'])
  for other in others:
    assert tiny.differ(other, flow) > 1e-4


def test_floats_from_minus_one_to_one_are_the_same_as_whole_numbers_to_255(model):
  floats = (FRAMES['frames'] / 255 * 2 - 1).astype(np.float32)
  tiny.assert_close(model({'frames': floats}), model(FRAMES))


def test_patches_are_the_same_as_frames(model):
  patches = np.asarray(frame_patches((FRAMES['frames'] / 255 * 2 - 1).astype(np.float32)))
  tiny.assert_close(model({'patches': patches}), model(FRAMES))


@pytest.mark.parametrize('size', [(12, 17), (5, 30), (1, 1)])
def test_frames_of_other_sizes_are_taken(model, size):
  frames = RNG.integers(0, 256, (1, 2, *size, 3), dtype=np.uint8)
  flow = model({'frames': frames})['flow']
  assert flow.shape == (1, *size, 2) and np.isfinite(flow).all()


def test_the_flow_is_a_hundredth_of_what_the_decoder_says(config):
  """By a decoder that says what its bias is."""
  params = tiny.random_params(config)
  params['decoder/output'] = {'w': np.zeros_like(params['decoder/output']['w']), 'b': np.array([3, -5], np.float32)}
  flow = tiny.model_of(config, params)(FRAMES)['flow']
  np.testing.assert_allclose(flow, np.broadcast_to([0.03, -0.05], (2, HEIGHT, WIDTH, 2)), rtol=1e-5)


@pytest.mark.parametrize('variant, num_changed', [('debug', 2), ('separate,debug', 0)])
def test_what_does_not_count_changes_the_flow_of_those_pixels_alone_that_ask_by_it(variant, num_changed):
  """A pixel that does not count asks where it went all the same; alone, one of the second frame asks nothing."""
  config = tiny.read_config(f'optical_flow:{variant}')
  num_elements = NUM_PIXELS * (2 if config.model.separate_frames else 1)
  valid = np.ones((2, num_elements), np.uint8)
  valid[:, -2 * WIDTH:] = 0                # the last row, and the one that has it as a neighbour
  model, changed = tiny.model_of(config), FRAMES['frames'].copy()
  changed[:, 1, -1] ^= 255                 # of the second frame
  before, after = (model({'frames': frames, 'valid': valid})['flow'] for frames in (FRAMES['frames'], changed))
  unchanged = HEIGHT - num_changed         # rows of the first frame
  tiny.assert_close(after[:, :unchanged], before[:, :unchanged])
  if num_changed:
    assert np.abs(after - before)[:, unchanged:].max() > 1e-6
  assert np.abs(model({'frames': changed})['flow'] - model(FRAMES)['flow'])[:, :unchanged].max() > 1e-6


@pytest.mark.parametrize('variant', VARIANTS)
def test_the_flow_and_its_gradients_are_the_same_by_every_path(variant):
  tiny.assert_paths_agree(f'optical_flow:{variant}', FRAMES)


def test_an_example_does_not_depend_on_its_company(config):
  tiny.assert_company_does_not_matter(config, FRAMES)


@pytest.mark.parametrize('most_logits', [1, 5000])
def test_chunks_change_nothing(config, model, monkeypatch, most_logits):
  whole = model(FRAMES)
  monkeypatch.setattr(attention, 'MOST_LOGITS', most_logits)
  tiny.assert_close(tiny.model_of(config)(FRAMES), whole)


@pytest.mark.parametrize('variant', VARIANTS)
def test_every_parameter_reaches_the_flow(variant):
  config = tiny.read_config(f'optical_flow:{variant}')
  assert tiny.idle_parameters(config, FRAMES) == tiny.key_biases(config)


@pytest.mark.parametrize('variant, num_elements', [('debug', NUM_PIXELS), ('separate,debug', 2 * NUM_PIXELS)])
def test_what_is_captured(variant, num_elements):
  tiny.assert_captured(
    tiny.read_config(f'optical_flow:{variant}'), FRAMES, cross_attends=(1, 2, 1, 4, num_elements), latents=(2, 4, 16),
    self_attends=(2, 1, 2, 2, 4, 4), decoder=(2, 1, NUM_PIXELS, 4))


@pytest.mark.parametrize('batch, message', [
  ({'frames': FRAMES['frames'][0]}, r'frames is \[batch, 2, height, width, 3\], not \[2, 12, 16, 3\]'),
  ({'frames': FRAMES['frames'][:, :1]}, r'not \[2, 1, 12, 16, 3\]'),
  ({'frames': FRAMES['frames'][..., :1]}, r'not \[2, 2, 12, 16, 1\]'),
  ({'patches': np.zeros((2, 2, 12, 16, 3))}, r'patches is \[batch, 2, height, width, 27\], not \[2, 2, 12, 16, 3\]'),
  ({**FRAMES, 'valid': np.ones((2, 12, 16))}, r'shape \(2, 12, 16\) but expected \(2, 192\)'),
  ({}, r'frames is missing'),
])
def test_another_batch_is_the_users_mistake(config, batch, message):
  tiny.assert_refused(config, batch, message)
