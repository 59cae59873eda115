"""Fourier features against loops and golden values, grids and their factors, and learned tables."""

import functools

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perceiver_jax.core.position_encoding import (
  FourierGrid,
  LearnedTable,
  fourier_features,
  fourier_grid,
  frequencies,
  grid_coordinates,
  joined,
)
from perceiver_jax.types import UserError

SHAPES = [(7,), (4, 6), (2, 5, 3)]


def _grid_reference(shape, num_bands, max_resolution, spacing='linear'):
  """[M, P] in float64: one cell and one channel at a time, rows first."""
  space = {'linear': np.linspace, 'log': np.geomspace}[spacing]
  axes = [np.linspace(-1, 1, n) for n in shape]
  bands = [space(1.0, resolution / 2, num_bands) for resolution in max_resolution]
  rows = []
  for cell in np.ndindex(*shape):
    x = [axis[i] for axis, i in zip(axes, cell, strict=True)]
    sines = [np.sin(np.pi * x[d] * bands[d][k]) for d in range(len(shape)) for k in range(num_bands)]
    cosines = [np.cos(np.pi * x[d] * bands[d][k]) for d in range(len(shape)) for k in range(num_bands)]
    rows.append([*x, *sines, *cosines])
  return np.array(rows)


@jax.jit
def _joined(grid):
  return joined(grid)


@functools.cache
def _table(shape, num_bands=3, max_resolution=None, spacing='linear'):
  return np.asarray(jax.jit(lambda: joined(fourier_grid(shape, num_bands, max_resolution, spacing)))())


def test_the_authors_code_gave_these_numbers():
  root = np.sqrt(0.5)
  found = fourier_features(jnp.array([-1.0, 0.5]), 3, (4, 8))
  np.testing.assert_allclose(found, [-1, 0.5, 0, 1, 0, 1, -root, 0, -1, 0, 1, 0, -root, 1], atol=2e-6)


def test_linear_bands_run_evenly_from_one_to_the_nyquist_frequency():
  np.testing.assert_allclose(frequencies(3, 4), [1.0, 1.5, 2.0], rtol=1e-6)
  np.testing.assert_allclose(frequencies(64, 224), 1 + np.arange(64) * 111 / 63, rtol=1e-6)


def test_log_bands_run_in_equal_ratios_from_one_to_the_nyquist_frequency():
  np.testing.assert_allclose(frequencies(4, 16, 'log'), [1.0, 2.0, 4.0, 8.0], rtol=1e-6)
  np.testing.assert_allclose(
    frequencies(64, 224, 'log'), np.exp(np.linspace(0.0, np.log(112.0), 64)), rtol=1e-5)


def test_a_single_band_has_frequency_one():
  for spacing in ('linear', 'log'):
    np.testing.assert_array_equal(frequencies(1, 224, spacing), [1.0])


@pytest.mark.parametrize('spacing', ['linear', 'log'])
@pytest.mark.parametrize('shape', SHAPES)
def test_a_grid_is_coordinates_then_all_sines_then_all_cosines_axis_by_axis(shape, spacing):
  table = _table(shape, spacing=spacing)
  assert table.shape == (np.prod(shape), len(shape) * (2 * 3 + 1))
  np.testing.assert_allclose(table, _grid_reference(shape, 3, shape, spacing), atol=1e-5)


@pytest.mark.parametrize('shape', SHAPES)
def test_a_grid_has_the_features_of_its_coordinates(shape):
  coordinates = np.stack(np.meshgrid(*grid_coordinates(shape), indexing='ij'), axis=-1).reshape(-1, len(shape))
  np.testing.assert_allclose(_table(shape), fourier_features(coordinates, 3, shape), atol=1e-6)


def test_the_positions_of_imagenet_have_258_channels_and_keep_their_digits_at_the_top_frequency():
  table = _table((224, 224), 64)
  assert (table.shape, table.dtype) == ((50176, 258), np.float32)
  some = np.random.default_rng(0).choice(50176, 200, replace=False)
  axis, bands = np.linspace(-1, 1, 224), np.linspace(1, 112, 64)
  for d, place in enumerate(np.unravel_index(some, (224, 224))):
    angles = np.pi * axis[place][:, None] * bands
    np.testing.assert_allclose(table[some, d], axis[place], atol=3e-7)
    np.testing.assert_allclose(table[some, 2 + 64 * d:66 + 64 * d], np.sin(angles), atol=1e-4)
    np.testing.assert_allclose(table[some, 130 + 64 * d:194 + 64 * d], np.cos(angles), atol=1e-4)


def test_the_sampling_rate_of_each_axis_sets_its_own_top_frequency():
  np.testing.assert_allclose(_table((4, 6), max_resolution=(10, 30)), _grid_reference((4, 6), 3, (10, 30)), atol=1e-5)
  np.testing.assert_array_equal(_table((4, 6)), _table((4, 6), max_resolution=(4, 6)))
  assert np.abs(_table((4, 6)) - _table((4, 6), max_resolution=(6, 4))).max() > 0.1


def test_corners_sit_at_plus_and_minus_one_and_an_axis_of_one_cell_at_minus_one():
  coordinates = grid_coordinates((3, 1, 2))
  for found, expected in zip(coordinates, [[-1, 0, 1], [-1], [-1, 1]], strict=True):
    np.testing.assert_array_equal(found, expected)
  assert {axis.dtype for axis in coordinates} == {np.dtype('float32')}
  np.testing.assert_allclose(_table((3, 1)), _grid_reference((3, 1), 3, (3, 1)), atol=1e-5)


@pytest.mark.parametrize('shape', SHAPES)
def test_an_order_picks_rows_of_the_joined_table(shape):
  grid = jax.jit(functools.partial(fourier_grid, shape, 3))()
  shuffled = np.random.default_rng(0).permutation(int(np.prod(shape)))
  at_home = np.asarray(_joined(grid))
  for order in (shuffled, shuffled[:2], np.array([1, 1, 0])):
    np.testing.assert_array_equal(_joined(grid._replace(order=order)), at_home[order])


@pytest.mark.parametrize('shape', [(7, 5), (4, 5, 6)])
def test_a_grid_holds_a_table_per_axis_and_nothing_of_its_own_size(shape):
  grid = fourier_grid(shape, 3)
  assert [x.shape for x in jax.tree.leaves(grid)] == [(n,) for n in shape] + 2 * [(n, 3) for n in shape]
  order = np.arange(int(np.prod(shape)))
  assert fourier_grid(shape, 3, order=order).order is order


def test_cells_may_sit_elsewhere_if_each_axis_says_where():
  rows, columns = np.array([-1, 0.5, 0], np.float32), np.array([0.25, 1], np.float32)
  cells = np.stack(np.meshgrid(rows, columns, indexing='ij'), axis=-1).reshape(6, 2)
  found = _joined(fourier_grid((3, 2), 4, (8, 8), coordinates=(rows, columns)))
  np.testing.assert_allclose(found, fourier_features(cells, 4, (8, 8)), atol=1e-5)
  with pytest.raises(AssertionError, match='shape'):
    fourier_grid((3, 2), 4, coordinates=(columns, rows))


def test_a_grid_goes_through_transformations():
  grid = fourier_grid((4, 6), 3, order=np.arange(24)[::-1].copy())
  np.testing.assert_array_equal(jax.jit(joined)(grid), joined(grid))
  assert isinstance(jax.jit(lambda grid: grid)(grid), FourierGrid)


@pytest.mark.parametrize('leading', [(5,), (2, 5), ()])
def test_coordinates_may_be_anywhere_and_differ_between_examples(leading):
  coordinates = np.random.default_rng(0).uniform(-1, 1, (*leading, 2)).astype(np.float32)
  found = fourier_features(coordinates, 3, (4, 8))
  assert found.shape == (*leading, 14)
  for index in np.ndindex(*leading):
    x = coordinates[index].astype(np.float64)
    angles = np.pi * np.concatenate([x[0] * np.array([1, 1.5, 2]), x[1] * np.array([1, 2.5, 4])])
    np.testing.assert_allclose(found[index], [*x, *np.sin(angles), *np.cos(angles)], atol=1e-5)


def test_an_encoding_that_is_an_array_is_joined_already():
  for array in (np.ones((5, 3)), np.ones((2, 5, 3))):
    assert joined(array) is array


def test_positions_that_make_no_sense_are_the_users_mistake():
  with pytest.raises(ValueError, match=r"'linear' or 'log', not 'cubic'"):
    frequencies(3, 8, 'cubic')
  with pytest.raises(UserError, match='positions have 3 axes, but max_resolution'):
    fourier_features(jnp.zeros((5, 3)), 3, (4, 8))


def test_a_learned_table_starts_small_and_truncated():
  for scale in (0.02, 1.0):
    init = hk.transform(lambda scale=scale: LearnedTable(300, 40, init_scale=scale, name='places')()).init
    params = jax.tree.map(np.asarray, jax.jit(init)(jax.random.key(0)))
    assert jax.tree.map(lambda x: (x.shape, str(x.dtype)), params) == {'places': {'table': ((300, 40), 'float32')}}
    table = params['places']['table'] / scale
    assert 1.95 < np.abs(table).max() <= 2.0 + 1e-6
    np.testing.assert_allclose(np.std(table), 0.8796, rtol=0.03)  # of a normal cut at two deviations


def test_the_tables_of_a_grid_are_made_when_a_step_is_traced_and_not_in_each_step():
  table = lambda: joined(fourier_grid((6, 7), 3))
  assert not {'sin', 'cos', 'iota'} & {str(equation.primitive) for equation in jax.make_jaxpr(table)().eqns}
  np.testing.assert_array_equal(jax.jit(table)(), table())
