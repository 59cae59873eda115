"""Pixels as inputs: their range, their order, and where they say they sit."""

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from perceiver_jax.adapters.image import pixel_inputs
from perceiver_jax.core.input_array import dense
from perceiver_jax.core.position_encoding import FourierGrid, fourier_features
from perceiver_jax.types import UserError

IMAGE = np.random.default_rng(0).integers(0, 256, (2, 3, 4, 2), np.uint8)
ORDER = np.random.default_rng(1).permutation(12)


def _position(kind='fourier', spacing='linear'):
  return ConfigDict({'kind': kind, 'num_bands': 5, 'spacing': spacing, 'channels': 7})


def test_bytes_become_minus_one_to_one_row_by_row():
  for image in (IMAGE, jnp.asarray(IMAGE)):
    inputs = pixel_inputs(image, _position())
    assert inputs.features.shape == (2, 12, 2) and inputs.valid is None
    for row in range(3):
      for column in range(4):
        expected = IMAGE[:, row, column] * (2 / 255) - 1
        np.testing.assert_allclose(inputs.features[:, 4 * row + column], expected, atol=1e-6)
  ends = np.array([0, 255], np.uint8).reshape(1, 1, 2, 1)
  np.testing.assert_array_equal(pixel_inputs(ends, _position()).features[0, :, 0], [-1.0, 1.0])


def test_numbers_that_are_floating_already_are_taken_as_they_are():
  for dtype in ('float32', 'bfloat16'):
    image = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (2, 3, 4, 2)), dtype)
    features = pixel_inputs(image, _position()).features
    assert features.dtype == image.dtype
    np.testing.assert_array_equal(features, image.reshape(2, 12, 2))


@pytest.mark.parametrize('spacing', ['linear', 'log'])
def test_a_pixel_has_the_fourier_features_of_its_row_and_column(spacing):
  inputs = pixel_inputs(IMAGE, _position(spacing=spacing))
  joined = dense(inputs)
  assert joined.shape == (2, 12, 2 + 2 * (2 * 5 + 1))
  coordinates = [[-1 + row, -1 + 2 * column / 3] for row in range(3) for column in range(4)]
  expected = fourier_features(jnp.array(coordinates), 5, (3, 4), spacing)
  for example in joined:
    np.testing.assert_allclose(example[:, 2:], expected, atol=2e-5)


def test_fourier_positions_stay_factors():
  for order in (None, ORDER):
    positions = pixel_inputs(IMAGE, _position(), order).positions
    assert isinstance(positions, FourierGrid) and positions.order is order
    assert [axis.shape for axis in positions.sines] == [(3, 5), (4, 5)]


@pytest.mark.parametrize('kind', ['fourier', 'learned'])
def test_moved_pixels_keep_the_positions_they_come_from(kind):
  function = hk.transform(lambda image, order: dense(pixel_inputs(image, _position(kind), order)))
  params = function.init(jax.random.key(0), IMAGE, None)
  at_home = function.apply(params, None, IMAGE, None)
  moved = IMAGE.reshape(2, 12, 2)[:, ORDER].reshape(IMAGE.shape)
  np.testing.assert_allclose(function.apply(params, None, moved, ORDER), at_home[:, ORDER], atol=1e-6)
  assert np.abs(function.apply(params, None, moved, None) - at_home[:, ORDER]).max() > 0.01


def test_a_learned_position_is_a_row_of_one_table():
  function = hk.transform(lambda image: pixel_inputs(image, _position('learned')))
  params = function.init(jax.random.key(0), IMAGE)
  assert jax.tree.map(np.shape, params) == {'positions': {'table': (12, 7)}}
  np.testing.assert_array_equal(function.apply(params, None, IMAGE).positions, params['positions']['table'])


def test_another_kind_of_position_is_the_users_mistake():
  with pytest.raises(UserError, match=r"model.position.kind is 'fourier' or 'learned', not 'fourrier'"):
    pixel_inputs(IMAGE, _position('fourrier'))
