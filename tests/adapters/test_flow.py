"""Two frames as inputs: what an element holds, in which order, and where it sits."""

import haiku as hk
import jax
import numpy as np
import pytest

from perceiver_jax.adapters.flow import flow_inputs, flow_query, frame_patches
from perceiver_jax.core.factored.grid import whole_grid
from perceiver_jax.core.input_array import dense
from perceiver_jax.core.position_encoding import fourier_features

FRAMES = np.random.default_rng(0).normal(size=(2, 2, 4, 5, 3)).astype(np.float32)


def test_a_patch_has_the_authors_order_and_zeros_outside():
  patches = frame_patches(np.arange(54).reshape(1, 2, 3, 3, 3))
  np.testing.assert_array_equal(
    patches[0, 0, 0, 0], [0] * 12 + [0, 1, 2, 3, 4, 5] + [0, 0, 0] + [9, 10, 11, 12, 13, 14])


def test_a_patch_is_the_square_around_its_pixel():
  patches = frame_patches(FRAMES)
  assert patches.shape == (2, 2, 4, 5, 27)
  np.testing.assert_array_equal(patches[:, :, 2, 3], FRAMES[:, :, 1:4, 2:5].reshape(2, 2, 27))
  np.testing.assert_array_equal(frame_patches(FRAMES, 1), FRAMES)


@pytest.mark.parametrize('shape', [(2, 4, 5, 3), (1, 3, 4, 5, 3)])
def test_other_than_two_frames_are_the_users_mistake(shape):
  with pytest.raises(AssertionError, match='shape'):
    frame_patches(np.zeros(shape))


@pytest.mark.parametrize('separate', [False, True])
def test_an_element_holds_both_frames_or_one_and_sits_where_its_pixel_is(separate):
  function = hk.without_apply_rng(hk.transform(
    lambda frames: flow_inputs(frame_patches(frames), 6, 4, (40, 50), separate_frames=separate)))
  params = function.init(jax.random.key(0), FRAMES)
  weights, patches = params['stem']['w'], np.asarray(frame_patches(FRAMES))
  inputs = function.apply(params, FRAMES)
  row, column = 2, 3
  if separate:
    features, element = patches[:, 1, row, column], 20 + 5 * row + column
    position = fourier_features(np.array([1, -1 + 2 * row / 3, -1 + 2 * column / 4]), 4, (2, 40, 50))
  else:
    features, element = np.concatenate([patches[:, 0, row, column], patches[:, 1, row, column]], -1), 5 * row + column
    position = fourier_features(np.array([-1 + 2 * row / 3, -1 + 2 * column / 4]), 4, (40, 50))
  np.testing.assert_allclose(inputs.features[:, element], features @ weights, atol=1e-5)
  joined = dense(inputs)
  np.testing.assert_allclose(joined[:, element, 6:], np.broadcast_to(position, (2, len(position))), atol=2e-5)
  query = flow_query(inputs._replace(valid=np.zeros((2, joined.shape[1]))), 20)
  np.testing.assert_array_equal(dense(query), joined[:, :20])
  assert whole_grid(query) is not None and query.valid is None
