"""The factored and the chunked attention against the dense one: outputs, all gradients, masks, precision, choice."""

import functools

import haiku as hk
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from jax.extend.core import jaxprs_in_params

from perceiver_jax.core.cross_attend import CrossAttend
from perceiver_jax.core.factored import encoder, sums
from perceiver_jax.core.factored.encoder import choose
from perceiver_jax.core.input_array import InputArray, Pack, with_valid
from perceiver_jax.core.perceiver import Decoder, Encoder, Processor, encode, learned_query, pool
from perceiver_jax.core.position_encoding import fourier_features, fourier_grid
from perceiver_jax.types import UserError
from tests.core.test_attention import assert_gradient_is_numeric, compiled, normal, randomise

pytestmark = pytest.mark.usefixtures('quick_compilation')

NUM_QUERIES, BATCH_SIZE = 5, 3
TOLERANCE = {np.float64: 1e-12, np.float32: 1e-5}


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
  monkeypatch.setattr(encoder, 'TILE', 4 * NUM_QUERIES)  # 4 elements of one head, 2 of two


@pytest.fixture(name='float64')
def _float64():
  with jax.enable_x64(True):
    yield


def _attended(query, features, attention_impl, positions=None, valid=None, **settings):
  block = CrossAttend(attention_impl=attention_impl, **settings)
  return block(query, InputArray(features, positions(), valid), is_training=False)[0]


def _norm(tree):
  return np.sqrt(sum(np.vdot(x, x) for x in jax.tree.leaves(tree)))


def _distances(forward, arguments, attention_impl, dtype=np.float64):
  """How far outputs and gradients by all parameters and arguments are from the dense ones, relative to their norms."""
  function = hk.transform(forward)
  params = jax.eval_shape(functools.partial(function.init, attention_impl='dense'), jax.random.key(0), *arguments)
  arguments = jax.tree.map(lambda x: x.astype(dtype), (randomise(params, dtype), *arguments))

  def run(attention_impl):
    def loss(arguments):
      outputs = function.apply(arguments[0], None, *arguments[1:], attention_impl=attention_impl)
      return jnp.sum(outputs * normal(*outputs.shape).astype(dtype)), outputs
    return compiled(jax.grad(loss, has_aux=True))(arguments)

  expected, found = run('dense'), run(attention_impl)
  assert jax.tree.structure(expected) == jax.tree.structure(found)
  assert {x.dtype for x in jax.tree.leaves(found)} == {np.dtype(dtype)}
  differences = jax.tree.map(lambda a, b: a - b, expected, found)
  return [_norm(difference) / _norm(whole) for difference, whole in zip(differences, expected, strict=True)]


def _distances_of_grid(
  shape, num_channels, attention_impl, masked=False, permuted=False, dtype=np.float64, spacing='linear', **settings,
):
  num_elements = int(np.prod(shape))
  generator = np.random.default_rng(num_elements)
  order = generator.permutation(num_elements) if permuted else None
  valid = (generator.random((BATCH_SIZE, num_elements)) < 0.6).astype(np.uint8) if masked else None
  if masked:
    valid[-1] = 0
  positions = functools.partial(fourier_grid, shape, 3, None, spacing, order)
  forward = functools.partial(_attended, positions=positions, valid=valid, **settings)
  arguments = normal(BATCH_SIZE, NUM_QUERIES, 6), normal(BATCH_SIZE, num_elements, num_channels)
  return _distances(forward, arguments, attention_impl, dtype)


# Equality: outputs, and the gradients of every parameter, of the query and of the features.

GRIDS = [
  ((4, 5), 3, {}),
  ((5, 3), 6, {'masked': True, 'num_heads': 2, 'qk_channels': 8, 'v_channels': 6, 'query_residual': False}),
  ((5, 3), 1, {'masked': True, 'masked_rows': 'mean', 'permuted': True}),
  ((2, 3, 4), 2, {'permuted': True, 'masked': True, 'spacing': 'log'}),
  ((1, 7), 3, {}),
  ((7, 1), 0, {'num_heads': 7}),
  ((2, 2), 3, {}),  # fewer elements than queries
  ((9,), 2, {'masked': True}),
]


@pytest.mark.usefixtures('float64')
@pytest.mark.parametrize('attention_impl', ['factored', 'chunked'])
@pytest.mark.parametrize('shape, num_channels, settings', GRIDS)
def test_every_path_over_a_grid_is_the_dense_one(shape, num_channels, settings, attention_impl):
  assert max(_distances_of_grid(shape, num_channels, attention_impl, **settings)) < TOLERANCE[np.float64]


@pytest.mark.parametrize('attention_impl', ['factored', 'chunked'])
@pytest.mark.parametrize('shape, num_channels, settings', GRIDS[:2])
def test_every_path_is_the_dense_one_in_float32(shape, num_channels, settings, attention_impl):
  distances = _distances_of_grid(shape, num_channels, attention_impl, dtype=np.float32, **settings)
  assert max(distances) < TOLERANCE[np.float32]


@pytest.mark.usefixtures('float64')
def test_many_rows_of_logits_are_cut_into_blocks(monkeypatch):
  monkeypatch.setattr(sums, 'TILE', 64 * 7)
  scores = sums.Scores(np.zeros((1, 3, 192)))
  assert sums._num_blocks(scores, sums.Tiles(np.zeros((1, 2, 7, 3)))) == 3
  forward = functools.partial(_attended, positions=functools.partial(fourier_grid, (2, 7), 2))
  assert max(_distances(forward, (normal(2, 192, 6), normal(2, 14, 3)), 'factored')) < TOLERANCE[np.float64]


@pytest.mark.usefixtures('float64')
@pytest.mark.parametrize('batched', [False, True])
def test_positions_that_are_no_grid_go_in_chunks_with_their_gradients(batched):
  num_elements = 11  # three chunks, the last one not full
  points = normal(*([BATCH_SIZE] if batched else []), num_elements, 2)

  def forward(query, features, points, attention_impl):
    positions = functools.partial(fourier_features, points, 3, (8, 8))
    return _attended(query, features, attention_impl, positions)

  arguments = normal(BATCH_SIZE, NUM_QUERIES, 6), normal(BATCH_SIZE, num_elements, 3), points
  assert max(_distances(forward, arguments, 'chunked')) < TOLERANCE[np.float64]


def _pack(grid, line, points, padding, token, valid):
  """Elements of a grid, of a line, with positions of their own, and one that is a token: all 16 channels wide."""
  return with_valid(Pack((
    InputArray(grid, fourier_grid((2, 3, 2), 1), padding=padding),       # 4 + 9 + 3
    InputArray(line, fourier_grid((5,), 3), padding=token[:7]),          # 2 + 7 + 7
    InputArray(points, fourier_features(points[..., :2], 3, (8, 8))),    # 2 + 14
    InputArray(points[:, :1, :0], padding=token),                        # 0 + 16
  )), valid)


def _of_pack(query, *arrays, attention_impl, valid, **settings):
  block = CrossAttend(attention_impl=attention_impl, **settings)
  return block(query, _pack(*arrays, valid), is_training=False)[0]


def _masks_of_pack():
  valid = np.random.default_rng(0).random((BATCH_SIZE, 24)) < 0.6
  valid[0, :12] = False  # nothing of the grid
  valid[-1] = False
  return valid


@pytest.mark.usefixtures('float64')
@pytest.mark.parametrize('attention_impl', ['factored', 'chunked'])
@pytest.mark.parametrize('valid, settings', [
  (None, {}), (_masks_of_pack(), {'num_heads': 2, 'qk_channels': 8}), (_masks_of_pack(), {'masked_rows': 'mean'})],
  ids=['all', 'masked to zero', 'masked to the mean'])
def test_a_pack_of_several_kinds_is_read_as_one_array(valid, settings, attention_impl):
  arrays = (
    normal(BATCH_SIZE, NUM_QUERIES, 6), normal(BATCH_SIZE, 12, 4), normal(BATCH_SIZE, 5, 2), normal(BATCH_SIZE, 6, 2),
    normal(3), normal(16))
  forward = functools.partial(_of_pack, valid=valid, **settings)
  assert max(_distances(forward, arrays, attention_impl)) < TOLERANCE[np.float64]


@pytest.mark.usefixtures('float64')
@hypothesis.settings(max_examples=10, deadline=None)
@hypothesis.given(
  shape=st.lists(st.integers(1, 5), min_size=1, max_size=3).map(tuple), num_channels=st.integers(0, 6),
  masked=st.booleans(), permuted=st.booleans(), num_heads=st.sampled_from([1, 2]),
  attention_impl=st.sampled_from(['factored', 'chunked']), masked_rows=st.sampled_from(['zero', 'mean']))
def test_any_grid_is_attended_to_as_by_the_dense_path(num_heads, **settings):
  distances = _distances_of_grid(**settings, num_heads=num_heads, qk_channels=4)
  assert max(distances) < TOLERANCE[np.float64]


def _model(features, attention_impl, num_cross_attends):
  encoder = Encoder(NUM_QUERIES, 8, num_cross_attends, attention_impl=attention_impl)
  inputs = InputArray(features, fourier_grid((4, 5), 3))
  latents, _ = encode(encoder, Processor(3, 1, num_heads=2), inputs, is_training=False)
  if num_cross_attends > 1:
    return pool(latents, 4)
  return Decoder(4)(learned_query(1, 6, BATCH_SIZE), latents, is_training=False)[0]


@pytest.mark.usefixtures('float64')
@pytest.mark.parametrize('num_cross_attends', [1, 3])  # Perceiver IO, and the original, whose later ones are a loop
def test_a_whole_model_has_the_same_outputs_and_gradients(num_cross_attends):
  forward = functools.partial(_model, num_cross_attends=num_cross_attends)
  assert max(_distances(forward, (normal(BATCH_SIZE, 20, 3),), 'factored')) < TOLERANCE[np.float64]


@pytest.mark.usefixtures('float64')
def test_the_gradient_of_the_factored_attention_is_numeric():
  positions = functools.partial(fourier_grid, (3, 4), 2)
  function = hk.transform(functools.partial(_attended, attention_impl='factored', positions=positions))
  query, features = normal(2, 4, 6), normal(2, 12, 3)
  params = randomise(jax.eval_shape(function.init, jax.random.key(0), query, features), np.float64)
  assert_gradient_is_numeric(
    lambda arguments: jnp.sum(function.apply(arguments[0], None, *arguments[1:]) * normal(*query.shape)),
    (params, query, features))


# What is held, and in which precision.


def _shapes_of_loops(jaxpr):
  """Of everything that a computation makes, inner ones included."""
  for equation in jaxpr.eqns:
    yield from (tuple(variable.aval.shape) for variable in equation.outvars)
    for inner in jaxprs_in_params(equation.params):
      yield from _shapes_of_loops(inner)


@pytest.mark.parametrize('attention_impl, is_large', [('dense', True), ('factored', False), ('chunked', False)])
def test_nothing_as_large_as_the_weights_is_ever_made(attention_impl, is_large):
  shape, num_queries = (16, 16), 64
  positions = functools.partial(fourier_grid, shape, 1)
  function = hk.transform(functools.partial(_attended, attention_impl=attention_impl, positions=positions))
  query, features = np.ones((1, num_queries, 6), np.float32), np.ones((1, 256, 1), np.float32)
  params = jax.eval_shape(function.init, jax.random.key(0), query, features)
  loss = lambda *arguments: jnp.sum(function.apply(arguments[0], None, *arguments[1:]))
  jaxpr = jax.make_jaxpr(jax.grad(loss, (0, 1, 2)))(params, query, features)
  largest = max(int(np.prod(shape)) for shape in _shapes_of_loops(jaxpr.jaxpr))
  assert (largest >= 256 * num_queries) == is_large


def test_with_bfloat16_parameters_scores_are_float32():
  shape = (6, 6)
  positions = functools.partial(fourier_grid, shape, 8)
  function = hk.transform(functools.partial(_attended, positions=positions, query_residual=False))
  query, features = normal(2, 4, 16), normal(2, 36, 3)
  params = jax.eval_shape(functools.partial(function.init, attention_impl='dense'), jax.random.key(0), query, features)
  params = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), randomise(params, np.float32))
  exact = jax.tree.map(lambda x: x.astype(np.float32), (params, jnp.asarray(query, jnp.bfloat16)))
  apply = {name: compiled(functools.partial(function.apply, attention_impl=name)) for name in ('dense', 'factored')}
  features = features.astype(np.float32)
  expected = apply['dense'](exact[0], None, exact[1], features)
  errors = {
    name: _norm(each(params, None, jnp.asarray(query, jnp.bfloat16), features).astype(np.float32) - expected)
    for name, each in apply.items()}
  assert errors['factored'] < 1.5 * errors['dense'] < 0.1 * _norm(expected)


# Masks.


@pytest.mark.usefixtures('float64')
def test_what_an_invalid_element_holds_changes_nothing():
  valid = np.array([[0, 0, 0, 1, 1, 0], [1, 0, 1, 1, 0, 1], [0, 0, 0, 0, 0, 0]])
  positions = functools.partial(fourier_grid, (2, 3), 2)
  function = hk.transform(functools.partial(_attended, attention_impl='factored', positions=positions, valid=valid))
  query, features = normal(3, 4, 6), normal(3, 6, 3)
  params = randomise(jax.eval_shape(function.init, jax.random.key(0), query, features), np.float64)
  loss = lambda features: jnp.sum(function.apply(params, None, query, features) * normal(3, 4, 6))
  gradient = compiled(jax.value_and_grad(loss))
  expected, expected_gradient = gradient(features)
  found, found_gradient = gradient(np.where(valid[..., None], features, 1e30))
  assert found == expected
  np.testing.assert_array_equal(found_gradient, expected_gradient)
  np.testing.assert_array_equal(found_gradient[valid == 0], 0)
  assert (np.abs(found_gradient[valid != 0]).max(-1) > 1e-6).all()


# What takes the dense path, and what says no.


def _choice(attention_impl='auto', features=(1, 64 * 64, 3), positions=None, num_heads=1):
  return choose(attention_impl, InputArray(np.zeros(features, np.float32), positions), 512, num_heads, 30, 30)


def test_a_large_grid_is_factored_and_what_has_no_factors_goes_in_chunks():
  grid = fourier_grid((64, 64), 4)
  assert _choice(positions=grid) == 'factored'
  assert _choice(positions=grid._replace(order=np.arange(64 * 64)[::-1])) == 'factored'
  assert _choice(positions=grid._replace(order=np.zeros(64 * 64, int))) == 'chunked'  # not each cell once
  assert _choice(positions=fourier_grid((64 * 64,), 4)) == 'chunked'
  assert _choice(positions=fourier_grid((1, 64 * 64), 4)) == 'chunked'
  assert _choice(positions=np.zeros((64 * 64, 8))) == _choice() == 'chunked'
  assert _choice(positions=grid, num_heads=16) == _choice(num_heads=2) == 'dense'  # cheaper by keys and values
  assert _choice(positions=fourier_grid((7, 7), 4), features=(1, 49, 3)) == 'dense'  # small
  assert jax.jit(lambda order: _choice(positions=grid._replace(order=order)) == 'chunked')(np.arange(64 * 64))


def test_only_a_whole_grid_can_be_factored():
  with pytest.raises(UserError, match='needs positions on a whole Fourier grid, each cell once'):
    _choice('factored', positions=np.zeros((64 * 64, 8)))
  with pytest.raises(ValueError, match="attention_impl is 'auto', 'dense', 'factored' or 'chunked', not 'flash'"):
    _choice('flash')


def test_dropout_on_the_weights_takes_the_dense_path():
  def forward(query, features, attention_impl):
    inputs = InputArray(features, fourier_grid((2, 3), 2))
    return CrossAttend(attention_impl=attention_impl, attention_dropout_prob=0.5)(query, inputs, is_training=True)[0]

  query, features = normal(1, 4, 6).astype(np.float32), normal(1, 6, 3).astype(np.float32)
  function = hk.transform(forward)
  params = function.init(jax.random.key(0), query, features, 'dense')
  dense = function.apply(params, jax.random.key(1), query, features, 'dense')
  with pytest.warns(UserWarning, match='attention_impl=factored holds no weights to drop'):
    factored = function.apply(params, jax.random.key(1), query, features, 'factored')
  np.testing.assert_array_equal(factored, dense)


@pytest.mark.usefixtures('float64')
@pytest.mark.parametrize('attention_impl', ['factored', 'chunked'])
def test_the_second_derivative_is_that_of_the_dense_path(attention_impl):
  positions = functools.partial(fourier_grid, (2, 3), 2)
  function = hk.transform(functools.partial(_attended, positions=positions))
  query, features = normal(1, 4, 6), normal(1, 6, 3)
  init = functools.partial(function.init, attention_impl='dense')
  params = randomise(jax.eval_shape(init, jax.random.key(0), query, features), np.float64)

  def slope(arguments, attention_impl):
    loss = lambda arguments: jnp.sum(function.apply(*arguments, attention_impl=attention_impl)**2)
    return sum(jnp.sum(x**2) for x in jax.tree.leaves(jax.grad(loss)(arguments)))

  arguments = params, None, query, features
  expected, found = (
    compiled(jax.grad(functools.partial(slope, attention_impl=x)))(arguments) for x in ('dense', attention_impl))
  assert _norm(jax.tree.map(lambda a, b: a - b, expected, found)) < 1e-12 * _norm(expected)


def test_forward_mode_is_for_the_dense_path():
  positions = functools.partial(fourier_grid, (2, 3), 2)
  function = hk.transform(functools.partial(_attended, positions=positions))
  query, features = normal(1, 4, 6).astype(np.float32), normal(1, 6, 3).astype(np.float32)
  params = function.init(jax.random.key(0), query, features, 'dense')
  slope = lambda attention_impl: jax.jvp(
    lambda x: function.apply(params, None, x, features, attention_impl), (query,), (query,))[1]
  assert np.isfinite(slope('dense')).all()
  with pytest.raises(TypeError, match='forward-mode'):
    slope('factored')
