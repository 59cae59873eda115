"""Queries: where sampled points sit, what asks for them, and what tells modalities and tasks apart."""

import haiku as hk
import jax
import numpy as np
import pytest

from perceiver_jax.adapters.query import (
  cell_coordinates,
  end_to_end_coordinates,
  fourier_query,
  grid_query,
  padded_query,
  task_queries,
)
from perceiver_jax.core.factored.grid import whole_grid
from perceiver_jax.core.input_array import InputArray, dense
from perceiver_jax.core.position_encoding import fourier_grid
from perceiver_jax.types import UserError

pytestmark = pytest.mark.usefixtures('quick_compilation')


def _transformed(function):
  return hk.without_apply_rng(hk.transform(function))


@pytest.mark.parametrize(('num_cells', 'deviation'), [(1920, 0.001), (224, 0.0089), (16, 0.125)])
def test_sampled_points_fall_short_of_the_end_by_as_much_as_the_authors_do(num_cells, deviation):
  indices = np.arange(num_cells)
  sampled, whole = cell_coordinates(indices, (num_cells,)), end_to_end_coordinates(indices, (num_cells,))
  assert sampled.shape == whole.shape == (num_cells, 1) and sampled.dtype == whole.dtype == np.float32
  np.testing.assert_allclose(sampled[:, 0], -1 + 2 * indices / num_cells, atol=3e-7)
  np.testing.assert_allclose(whole[:, 0], -1 + 2 * indices / (num_cells - 1), atol=1e-6)
  assert sampled[0] == whole[0] == -1 and sampled[-1] < 1 and whole[-1] == 1
  assert np.abs(sampled - whole).max() == pytest.approx(deviation, rel=0.05)


def test_flat_indices_are_row_major_in_the_grid():
  indices = np.array([[0, 23, 5], [4, 12, 19]])  # of (2, 3, 4): time, row, column
  cells = np.array([[[0, 0, 0], [1, 2, 3], [0, 1, 1]], [[0, 1, 0], [1, 0, 0], [1, 1, 3]]])
  np.testing.assert_allclose(cell_coordinates(indices, (2, 3, 4)), -1 + 2 * cells / [2, 3, 4], atol=1e-6)
  np.testing.assert_allclose(end_to_end_coordinates(indices, (2, 3, 4)), -1 + 2 * cells / [1, 2, 3], atol=1e-6)
  traced = jax.jit(lambda indices: cell_coordinates(indices, (2, 3, 4)))(indices)
  np.testing.assert_allclose(traced, cell_coordinates(indices, (2, 3, 4)), atol=1e-6)


def test_an_axis_of_one_cell_sits_at_the_start_by_both_rules():
  for rule in (cell_coordinates, end_to_end_coordinates):
    np.testing.assert_array_equal(rule(np.array([0, 1]), (1, 2))[:, 0], [-1, -1])


def test_end_to_end_points_ask_for_what_a_grid_says_of_them():
  grid = dense(InputArray(np.zeros((1, 15, 0), np.float32), fourier_grid((3, 5), 4)))
  query = fourier_query(end_to_end_coordinates(np.arange(15), (3, 5)), 4, (3, 5), 1)
  np.testing.assert_allclose(query, grid, atol=1e-5)


GOLDEN = [-1, 0.5, 0, 1, 0, 1, -0.707107, 0, -1, 0, 1, 0, -0.707107, 1]


def test_a_query_for_a_point_is_its_fourier_features_for_every_example():
  query = fourier_query(np.array([[-1, 0.5], [0, 0]], np.float32), 3, (4, 8), 5)
  assert query.shape == (5, 2, 14)
  np.testing.assert_allclose(query[:, 0], [GOLDEN] * 5, atol=1e-5)
  np.testing.assert_allclose(query[:, 1], [[0] * 8 + [1] * 6] * 5, atol=1e-5)


def test_every_example_may_ask_for_its_own_points():
  coordinates = np.random.default_rng(0).uniform(-1, 1, (2, 3, 2)).astype(np.float32)
  query = fourier_query(coordinates, 3, (4, 8), 2)
  for example in range(2):
    np.testing.assert_allclose(query[example], fourier_query(coordinates[example], 3, (4, 8), 1)[0], atol=1e-6)


def test_coordinates_that_fit_neither_batch_nor_axes_are_the_users_mistake():
  with pytest.raises(AssertionError, match='dimension equal to'):
    fourier_query(np.zeros((2, 4, 2)), 3, (4, 8), 3)
  with pytest.raises(AssertionError, match='shape'):
    fourier_query(np.zeros(4), 3, (4, 8), 3)
  with pytest.raises(UserError, match='positions have 3 axes, but max_resolution'):
    fourier_query(np.zeros((4, 3)), 3, (4, 8), 3)


def test_padding_is_one_trained_vector_at_the_end_of_every_element():
  query = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
  function = _transformed(lambda query: padded_query(query, 9, 'audio_query_padding'))
  params = function.init(jax.random.key(0), query)
  assert jax.tree.map(np.shape, params) == {'audio_query_padding': {'table': (1, 5)}}
  padded = function.apply(params, query)
  np.testing.assert_array_equal(padded[..., :4], query)
  np.testing.assert_array_equal(padded[..., 4:], np.broadcast_to(params['audio_query_padding']['table'], (2, 3, 5)))
  assert np.ptp(padded[0, 0, 4:]) > 0


def test_a_query_that_is_wide_enough_is_not_padded_and_one_too_wide_is_the_users_mistake():
  function = _transformed(lambda num_channels: padded_query(np.ones((2, 3, 4)), num_channels, 'label_query_padding'))
  assert function.init(jax.random.key(0), 4) == {}
  np.testing.assert_array_equal(function.apply({}, 4), np.ones((2, 3, 4)))
  with pytest.raises(UserError, match=r'label_query_padding: \[2, 3, 4\] cannot be padded to 3 channels'):
    function.init(jax.random.key(0), 3)
  with pytest.raises(AssertionError, match='shape'):
    _transformed(lambda: padded_query(np.ones((2, 4)), 9, 'x')).init(jax.random.key(0))


def test_a_grid_asks_as_all_its_cells_do():
  shape, max_resolution = (2, 3, 4), (4, 6, 8)
  function = _transformed(lambda: grid_query(shape, 3, max_resolution, 23, 5, 'video_query_padding'))
  query = function.apply(params := function.init(jax.random.key(0)))
  points = fourier_query(cell_coordinates(np.arange(24), shape), 3, max_resolution, 5)
  expected = _transformed(lambda: padded_query(points, 23, 'video_query_padding')).apply(params)
  assert expected.shape == (5, 24, 23) and params['video_query_padding']['table'].shape == (1, 2)
  np.testing.assert_allclose(dense(query), expected, atol=2e-6)
  assert whole_grid(query) is not None


def test_a_task_keeps_its_query_whatever_other_tasks_there_are():
  function = _transformed(lambda names: task_queries(names, 6, 2))
  params = function.init(jax.random.key(0), ('sst2', 'cola', 'mnli'))
  assert jax.tree.map(np.shape, params) == {f'{name}_query': {'table': (1, 6)} for name in ('sst2', 'cola', 'mnli')}
  for names in (('sst2', 'cola', 'mnli'), ('mnli', 'cola'), ('cola',)):
    queries = function.apply({f'{name}_query': params[f'{name}_query'] for name in names}, names)
    assert queries.shape == (2, len(names), 6)
    for place, name in enumerate(names):
      np.testing.assert_array_equal(queries[:, place], np.repeat(params[f'{name}_query']['table'], 2, axis=0))


@pytest.mark.parametrize('names', [(), ('cola', 'cola'), ('sst-2',)])
def test_tasks_without_usable_names_are_the_users_mistake(names):
  with pytest.raises(UserError, match='tasks need different names'):
    _transformed(lambda: task_queries(names, 6, 2)).init(jax.random.key(0))
