"""What a query reads from: features with their positions, joined on demand."""

import jax
import numpy as np
import pytest

from perceiver_jax.core.input_array import InputArray, dense
from perceiver_jax.core.position_encoding import fourier_grid, joined

FEATURES = np.random.default_rng(0).normal(size=(2, 6, 3)).astype(np.float32)


def test_without_positions_the_features_are_all():
  assert dense(InputArray(FEATURES)) is FEATURES


def test_each_element_is_its_features_then_its_position():
  table = np.random.default_rng(1).normal(size=(6, 4)).astype(np.float32)
  found = dense(InputArray(FEATURES, table))
  assert found.shape == (2, 6, 7)
  for b in range(2):
    for m in range(6):
      np.testing.assert_array_equal(found[b, m], [*FEATURES[b, m], *table[m]])


def test_examples_may_have_positions_of_their_own():
  tables = np.random.default_rng(1).normal(size=(2, 6, 4)).astype(np.float32)
  np.testing.assert_array_equal(dense(InputArray(FEATURES, tables)), np.concatenate([FEATURES, tables], axis=-1))


def test_a_grid_is_joined_with_its_order():
  order = np.array([5, 0, 3, 1, 4, 2])
  found = dense(InputArray(FEATURES, fourier_grid((2, 3), 4, order=order)))
  table = np.asarray(joined(fourier_grid((2, 3), 4)))
  np.testing.assert_array_equal(found[..., :3], FEATURES)
  for b in range(2):
    np.testing.assert_array_equal(found[b, :, 3:], table[order])


def test_the_wider_dtype_wins():
  halves = FEATURES.astype('bfloat16')
  table = np.full((6, 4), 1 / 3, np.float32)
  for features, positions in [(halves, table), (FEATURES, table.astype('bfloat16'))]:
    found = dense(InputArray(features, positions))
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found[0, :, :3], features[0].astype(np.float32))
    np.testing.assert_array_equal(found[0, :, 3:], positions.astype(np.float32))


@pytest.mark.parametrize('shape', [(5, 4), (7, 4), (1, 4), (2, 5, 4), (3, 6, 4)])
def test_one_position_too_few_or_too_many_is_refused_and_both_shapes_are_named(shape):
  with pytest.raises(AssertionError, match=r'expected \({1, 2}, 6, None\)') as error:
    dense(InputArray(FEATURES, np.zeros(shape, np.float32)))
  assert str(shape)[1:] in str(error.value)


def test_a_grid_of_another_size_is_the_users_mistake():
  with pytest.raises(AssertionError, match='shape'):
    dense(InputArray(FEATURES, fourier_grid((2, 2), 4)))
  with pytest.raises(AssertionError, match='shape'):
    dense(InputArray(FEATURES, fourier_grid((2, 3), 4, order=np.arange(5))))


def test_an_input_array_goes_through_transformations_as_it_is():
  inputs = InputArray(FEATURES, fourier_grid((2, 3), 4), np.ones((2, 6), np.float32))
  back = jax.jit(lambda inputs: inputs)(inputs)
  assert jax.tree.structure(back) == jax.tree.structure(inputs)
  np.testing.assert_array_equal(jax.jit(dense)(inputs), dense(inputs))
  np.testing.assert_array_equal(back.valid, inputs.valid)
