"""Point clouds as inputs: a point is its coordinates and their Fourier features."""

import numpy as np
import pytest

from perceiver_jax.adapters.points import point_inputs
from perceiver_jax.core.input_array import dense
from perceiver_jax.types import UserError

POINTS = np.random.default_rng(0).uniform(-1, 1, (2, 5, 3)).astype(np.float32)


def test_a_point_of_modelnet_has_387_channels_up_to_a_frequency_of_1120():
  inputs = point_inputs(POINTS, 64, (2240,) * 3)
  assert dense(inputs).shape == (2, 5, 387) and inputs.positions is None and inputs.valid is None
  bands = np.linspace(1, 1120, 64)
  angles = np.pi * POINTS.astype(np.float64)[..., None] * bands
  expected = np.concatenate([POINTS, np.sin(angles).reshape(2, 5, -1), np.cos(angles).reshape(2, 5, -1)], axis=-1)
  np.testing.assert_allclose(dense(inputs), expected, atol=1e-3)  # 1,120 periods, in float32


def test_the_authors_example_of_an_encoding():
  inputs = point_inputs(np.array([[[-1, 0.5]]], np.float32), 3, (4, 8))
  golden = [-1, 0.5, 0, 1, 0, 1, -0.707107, 0, -1, 0, 1, 0, -0.707107, 1]
  np.testing.assert_allclose(inputs.features[0, 0], golden, atol=1e-5)


def test_a_cloud_may_have_fewer_points_than_the_batch_has_places():
  valid = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
  np.testing.assert_array_equal(point_inputs(POINTS, 4, (8, 8, 8), valid).valid, valid)


def test_points_of_other_shapes_are_the_users_mistake():
  with pytest.raises(AssertionError, match='shape'):
    point_inputs(POINTS[0], 4, (8, 8, 8))
  with pytest.raises(AssertionError, match='shape'):
    point_inputs(POINTS, 4, (8, 8, 8), np.ones((2, 4)))
  with pytest.raises(UserError, match='positions have 3 axes, but max_resolution'):
    point_inputs(POINTS, 4, (8, 8))
