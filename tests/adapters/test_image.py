"""Images as inputs: their range, their order, what a stem makes of them, and where they say they sit."""

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from perceiver_jax.adapters.image import ConvStem, image_inputs, normalised, space_to_depth
from perceiver_jax.core.input_array import dense
from perceiver_jax.core.position_encoding import FourierGrid, fourier_features
from perceiver_jax.types import UserError

pytestmark = pytest.mark.usefixtures('quick_compilation')

IMAGE = np.random.default_rng(0).integers(0, 256, (2, 3, 4, 2), np.uint8)
ORDER = np.random.default_rng(1).permutation(12)


def _position(kind='fourier', spacing='linear', max_resolution=None, projection_channels=None, init_scale=0.02):
  return ConfigDict({
    'kind': kind, 'num_bands': 5, 'spacing': spacing, 'channels': 7, 'max_resolution': max_resolution,
    'projection_channels': projection_channels, 'init_scale': init_scale})


def _stem(kind='pixels', normalisation='symmetric'):
  return ConfigDict({'kind': kind, 'channels': 6, 'patch_size': 2, 'padding': 'same', 'normalisation': normalisation})


def _inputs(image, position=None, order=None, stem=None):
  return image_inputs(image, stem or _stem(), position or _position(), is_training=False, order=order)


def test_bytes_become_minus_one_to_one_row_by_row():
  for image in (IMAGE, jnp.asarray(IMAGE)):
    inputs = _inputs(image)
    assert inputs.features.shape == (2, 12, 2) and inputs.valid is None
    for row in range(3):
      for column in range(4):
        expected = IMAGE[:, row, column] * (2 / 255) - 1
        np.testing.assert_allclose(inputs.features[:, 4 * row + column], expected, atol=1e-6)
  ends = np.array([0, 255], np.uint8).reshape(1, 1, 2, 1)
  np.testing.assert_array_equal(_inputs(ends).features[0, :, 0], [-1.0, 1.0])


def test_numbers_that_are_floating_already_are_taken_as_they_are():
  for dtype in ('float32', 'bfloat16'):
    image = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (2, 3, 4, 2)), dtype)
    features = _inputs(image).features
    assert features.dtype == image.dtype
    np.testing.assert_array_equal(features, image.reshape(2, 12, 2))


@pytest.mark.parametrize('spacing', ['linear', 'log'])
def test_a_pixel_has_the_fourier_features_of_its_row_and_column(spacing):
  inputs = _inputs(IMAGE, _position(spacing=spacing))
  joined = dense(inputs)
  assert joined.shape == (2, 12, 2 + 2 * (2 * 5 + 1))
  coordinates = [[-1 + row, -1 + 2 * column / 3] for row in range(3) for column in range(4)]
  expected = fourier_features(jnp.array(coordinates), 5, (3, 4), spacing)
  for example in joined:
    np.testing.assert_allclose(example[:, 2:], expected, atol=2e-5)


def test_fourier_positions_stay_factors():
  for order in (None, ORDER):
    positions = _inputs(IMAGE, order=order).positions
    assert isinstance(positions, FourierGrid) and positions.order is order
    assert [axis.shape for axis in positions.sines] == [(3, 5), (4, 5)]


@pytest.mark.parametrize('kind', ['fourier', 'learned'])
def test_moved_pixels_keep_the_positions_they_come_from(kind):
  function = hk.transform(lambda image, order: dense(_inputs(image, _position(kind), order)))
  params = function.init(jax.random.key(0), IMAGE, None)
  at_home = function.apply(params, None, IMAGE, None)
  moved = IMAGE.reshape(2, 12, 2)[:, ORDER].reshape(IMAGE.shape)
  np.testing.assert_allclose(function.apply(params, None, moved, ORDER), at_home[:, ORDER], atol=1e-6)
  assert np.abs(function.apply(params, None, moved, None) - at_home[:, ORDER]).max() > 0.01


def test_a_learned_position_is_a_row_of_one_table():
  function = hk.transform(lambda image: _inputs(image, _position('learned')))
  params = function.init(jax.random.key(0), IMAGE)
  assert jax.tree.map(np.shape, params) == {'positions': {'table': (12, 7)}}
  np.testing.assert_array_equal(function.apply(params, None, IMAGE).positions, params['positions']['table'])


@pytest.mark.parametrize('init_scale', [0.02, 1.0])
def test_a_table_of_positions_starts_with_the_deviation_of_its_key(init_scale):
  image = np.zeros((1, 40, 50, 3), np.uint8)
  init = hk.transform(lambda image: _inputs(image, _position('learned', init_scale=init_scale)).positions).init
  table = init(jax.random.key(0), image)['positions']['table']
  np.testing.assert_allclose(np.std(table), 0.8796 * init_scale, rtol=0.03)  # of a normal cut at two deviations


def test_another_kind_of_position_is_the_users_mistake():
  with pytest.raises(UserError, match=r"model.position.kind is 'fourier' or 'learned', not 'fourrier'"):
    _inputs(IMAGE, _position('fourrier'))


def test_a_stem_of_another_kind_or_an_image_of_another_rank_is_the_users_mistake():
  with pytest.raises(ValueError, match=r"model.stem.kind is .* not 'convnet'"):
    _inputs(IMAGE, stem=_stem('convnet'))
  with pytest.raises(ValueError, match=r"stem\.padding is 'same' or 'symmetric', not 'valid'"):
    hk.transform_with_state(lambda image: ConvStem(4, 'valid')(image, is_training=True)).init(None, IMAGE)
  with pytest.raises(ValueError, match=r"stem.normalisation is .* not 'whitened'"):
    _inputs(IMAGE, stem=_stem(normalisation='whitened'))
  with pytest.raises(AssertionError, match='shape'):
    _inputs(IMAGE[0])


def test_imagenets_normalisation_makes_its_mean_zero_and_its_deviation_one():
  image = np.array([[[[124, 116, 104], [182, 173, 161]]]], np.uint8)
  np.testing.assert_allclose(normalised(image, 'imagenet'), [[[[0, 0, 0], [1, 1, 1]]]], atol=0.02)


def test_space_to_depth_has_the_authors_channel_order():
  two_frames = np.arange(24).reshape(1, 2, 2, 2, 3)
  np.testing.assert_array_equal(space_to_depth(two_frames, 1, 2)[0, 0, 0, 0], [0, 1, 2, 12, 13, 14])
  image = np.arange(48).reshape(1, 4, 4, 3)
  patches = space_to_depth(image, 2)
  assert patches.shape == (1, 2, 2, 12)
  np.testing.assert_array_equal(patches[0, 0, 0], [0, 1, 2, 3, 4, 5, 12, 13, 14, 15, 16, 17])


def test_space_to_depth_is_a_slice_at_every_place():
  video = np.random.default_rng(0).normal(size=(2, 4, 6, 9, 2))
  patches = space_to_depth(video, 3, 2)
  assert patches.shape == (2, 2, 2, 3, 36)
  for t, row, column in np.ndindex(2, 2, 3):
    block = video[:, 2 * t:2 * t + 2, 3 * row:3 * row + 3, 3 * column:3 * column + 3]
    np.testing.assert_array_equal(patches[:, t, row, column], block.reshape(2, -1))


def test_patches_that_do_not_divide_are_the_users_mistake():
  for shape, message in (((1, 5, 4, 3), r'1 x 2 x 2 do not divide \[1, 5, 4, 3\]'), ((1, 3, 4, 4, 3), '2 x 2 x 2')):
    with pytest.raises(UserError, match=message):
      space_to_depth(np.zeros(shape), 2, 2 if len(shape) == 5 else 1)


@pytest.mark.parametrize(('kind', 'elements', 'channels'), [
  ('pixels', 12, 2), ('patches', 2, 8), ('conv1x1', 12, 6), ('conv', 1, 6),
])
def test_a_stem_decides_how_many_elements_there_are_and_how_wide(kind, elements, channels):
  image = IMAGE[:, :2] if kind == 'patches' else IMAGE
  function = hk.transform_with_state(
    lambda image: image_inputs(image, _stem(kind), _position(), is_training=True))
  params, state = function.init(jax.random.key(0), image)
  inputs, _ = function.apply(params, state, None, image)
  assert inputs.features.shape == (2, elements, channels)
  assert dense(inputs).shape == (2, elements, channels + 22)


# What is added before and after: same, stride 2, is one more at the end, of the convolution and of the max-pool.
@pytest.mark.parametrize(('padding', 'around', 'below', 'shape'), [
  ('same', (2, 3), 1, (2, 3)), ('symmetric', (3, 3), 0, (1, 2))])
def test_the_conv_stem_is_convolution_norm_relu_and_max_pool(padding, around, below, shape):
  image = np.random.default_rng(0).normal(size=(3, 8, 12, 2)).astype(np.float32)
  function = hk.transform_with_state(lambda image: ConvStem(4, padding)(image, is_training=True))
  params, state = function.init(jax.random.key(0), image)
  assert {name: leaves.keys() for name, leaves in params.items()} == {
    'stem/conv': {'w'}, 'stem/norm': {'scale', 'offset'}}
  padded = np.pad(image, ((0, 0), around, around, (0, 0)))
  weights = np.asarray(params['stem/conv']['w'])
  convolved = np.array([
    [np.einsum('bhwc,hwcd->bd', padded[:, 2 * row:2 * row + 7, 2 * column:2 * column + 7], weights)
     for column in range(6)]
    for row in range(4)]).transpose(2, 0, 1, 3)
  mean, variance = convolved.mean((0, 1, 2)), convolved.var((0, 1, 2))
  rectified = np.maximum((convolved - mean) / np.sqrt(variance + 1e-5), 0)
  edge = np.pad(rectified, ((0, 0), (0, below), (0, below), (0, 0)))
  pooled = np.array([
    [edge[:, 2 * row:2 * row + 3, 2 * column:2 * column + 3].max((1, 2)) for column in range(shape[1])]
    for row in range(shape[0])]).transpose(2, 0, 1, 3)
  outputs, state = function.apply(params, state, None, image)
  np.testing.assert_allclose(outputs, pooled, atol=1e-5)
  np.testing.assert_allclose(state['stem/norm/~/mean_ema']['average'].squeeze(), mean, atol=1e-5)


def test_max_resolution_sets_the_bands_whatever_the_size_of_the_image():
  coordinates = [[-1 + row, -1 + 2 * column / 3] for row in range(3) for column in range(4)]
  expected = fourier_features(jnp.array(coordinates), 5, (30, 50))
  found = dense(_inputs(IMAGE, _position(max_resolution=(30, 50))))[0, :, 2:]
  np.testing.assert_allclose(found, expected, atol=2e-5)
  with pytest.raises(UserError, match=r'positions have 2 axes, but max_resolution \(30,\) has 1'):
    _inputs(IMAGE, _position(max_resolution=(30,)))


def test_a_learned_position_may_be_projected():
  function = hk.transform(lambda image: _inputs(image, _position('learned', projection_channels=9)).positions)
  params = function.init(jax.random.key(0), IMAGE)
  assert params['positions_projection']['w'].shape == (7, 9)
  expected = params['positions']['table'] @ params['positions_projection']['w'] + params['positions_projection']['b']
  np.testing.assert_allclose(function.apply(params, None, IMAGE), expected, atol=1e-6)


@pytest.mark.parametrize('kind', ['conv1x1', 'conv'])
def test_a_convolution_computes_in_the_dtype_of_its_parameters(kind):
  function = hk.transform_with_state(lambda image: image_inputs(image, _stem(kind), _position(), is_training=True))
  params, state = function.init(jax.random.key(0), IMAGE)
  half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
  inputs, _ = function.apply(half, state, None, IMAGE)
  expected, _ = function.apply(params, state, None, IMAGE)
  assert inputs.features.dtype == jnp.bfloat16
  np.testing.assert_allclose(inputs.features.astype(jnp.float32), expected.features, atol=0.1)
