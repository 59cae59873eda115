"""Queries on a grid against the same queries, joined: answers, all gradients, masks, precision, memory, choice."""

import functools
import math

import haiku as hk
import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest

from perceiver_jax.core.factored import decoder as factored_decoder
from perceiver_jax.core.factored.decoder import LinearParameters, is_factored
from perceiver_jax.core.input_array import InputArray, dense
from perceiver_jax.core.perceiver import Decoder
from perceiver_jax.core.position_encoding import fourier_features, fourier_grid
from perceiver_jax.types import UserError
from tests.core.test_attention import assert_gradient_is_numeric, compiled, normal, randomise

pytestmark = pytest.mark.usefixtures('quick_compilation')

NUM_LATENTS, BATCH_SIZE = 6, 2
TOLERANCE = {np.float64: 1e-12, np.float32: 1e-5}


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
  monkeypatch.setattr(factored_decoder, 'TILE', 64)  # two rows of 5 queries, say


@pytest.fixture(name='float64')
def _float64():
  with jax.enable_x64(True):
    yield


def _forward(
  features, latents, padding, linear, attention_impl, *, shape, order=None, query_mask=None, output_channels=2,
  is_training=True, capture=False, **settings,
):
  query = InputArray(features, fourier_grid(shape, 3, order=order), padding=padding)
  decoder = Decoder(output_channels, attention_impl=attention_impl, **settings)
  answers, weights = decoder(
    query, latents, is_training=is_training, query_mask=query_mask, linear=linear, capture=capture)
  return (answers, weights) if capture else answers


def _arguments(shape, num_features, num_padding, linear=()):
  """`linear`: what it reads and what it says, or nothing."""
  features = normal(BATCH_SIZE, math.prod(shape), num_features)
  padding = normal(num_padding) if num_padding else None
  return features, normal(BATCH_SIZE, NUM_LATENTS, 8), padding, (normal(*linear), normal(linear[1])) if linear else None


def _norm(tree):
  return np.sqrt(sum(np.vdot(x, x) for x in jax.tree.leaves(tree)))


def _distances(forward, arguments, dtype=np.float64):
  """How far gradients and answers are from the dense ones, relative to the norms of all of them."""
  function = hk.transform(forward)
  params, others = (
    jax.eval_shape(functools.partial(function.init, attention_impl=attention_impl), jax.random.key(0), *arguments)
    for attention_impl in ('dense', 'factored'))
  assert jax.tree.map(lambda x: x.shape, params) == jax.tree.map(lambda x: x.shape, others)
  arguments = jax.tree.map(lambda x: x.astype(dtype), (randomise(params, dtype), *arguments))

  def run(attention_impl):
    def loss(arguments):
      answers = function.apply(arguments[0], None, *arguments[1:], attention_impl=attention_impl)
      return jnp.sum(answers * normal(*answers.shape).astype(dtype)), answers
    return compiled(jax.grad(loss, has_aux=True))(arguments)

  expected, found = run('dense'), run('factored')
  assert jax.tree.structure(expected) == jax.tree.structure(found)
  assert {x.dtype for x in jax.tree.leaves(found)} == {np.dtype(dtype)}
  assert all(np.abs(x).max() > 1e-6 for x in jax.tree.leaves(expected[0][1:]))  # each argument matters
  differences = jax.tree.map(lambda a, b: a - b, expected, found)
  return [_norm(difference) / _norm(whole) for difference, whole in zip(differences, expected, strict=True)]


# Equality: answers, and the gradients of every parameter, and of features, latents, padding and the last linear.

GRIDS = [
  ((4, 5), 3, 0, (), {}),
  ((5, 3), 3, 2, (2, 3), {'query_residual': True, 'masked': True, 'permuted': True, 'num_heads': 2}),
  ((3, 2, 4), 2, 2, (24, 3), {'query_residual': True, 'permuted': True, 'output_channels': 24}),
  ((2, 3, 4), 1, 3, (), {
    'output_channels': None, 'num_heads': 2, 'widening': 2, 'gelu': 'exact', 'qk_channels': 6, 'v_channels': 4}),
  ((5, 3), 2, 3, (), {'masked': True, 'masked_rows': 'mean', 'output_channels': 40}),  # no linear becomes the MLP's
  ((1, 7), 1, 0, (), {'query_residual': True}),
  ((7, 1), 2, 2, (), {'output_channels': None}),
  ((9,), 2, 0, (), {'query_residual': True, 'num_heads': 4}),
]


def _distances_of_grid(shape, num_features, num_padding, linear, settings, dtype):
  settings, generator, num_queries = dict(settings), np.random.default_rng(0), math.prod(shape)
  order = generator.permutation(num_queries) if settings.pop('permuted', False) else None
  mask = generator.random((BATCH_SIZE, num_queries)) < 0.6 if settings.pop('masked', False) else None
  forward = functools.partial(_forward, shape=shape, order=order, query_mask=mask, **settings)
  return _distances(forward, _arguments(shape, num_features, num_padding, linear), dtype)


@pytest.mark.usefixtures('float64')
@pytest.mark.parametrize('shape, num_features, num_padding, linear, settings', GRIDS)
def test_queries_of_a_grid_are_answered_as_joined_ones_are(shape, num_features, num_padding, linear, settings):
  distances = _distances_of_grid(shape, num_features, num_padding, linear, settings, np.float64)
  assert max(distances) < TOLERANCE[np.float64]


@pytest.mark.parametrize('shape, num_features, num_padding, linear, settings', GRIDS[:3])
def test_they_are_in_float32(shape, num_features, num_padding, linear, settings):
  distances = _distances_of_grid(shape, num_features, num_padding, linear, settings, np.float32)
  assert max(distances) < TOLERANCE[np.float32]


@pytest.mark.usefixtures('float64')
def test_queries_may_have_no_features():
  shape = 3, 2, 4

  def forward(latents, padding, attention_impl):
    features = jnp.zeros((BATCH_SIZE, 24, 0), latents.dtype)
    return _forward(features, latents, padding, None, attention_impl, shape=shape, query_residual=True)

  _, latents, padding, _ = _arguments(shape, 0, 2)
  assert max(_distances(forward, (latents, padding))) < TOLERANCE[np.float64]


@pytest.mark.usefixtures('float64')
def test_their_gradient_is_numeric_and_so_is_that_of_the_gradient():
  shape = 3, 4
  function = hk.transform(functools.partial(_forward, attention_impl='factored', shape=shape))
  arguments = _arguments(shape, 2, 2)
  params = randomise(jax.eval_shape(function.init, jax.random.key(0), *arguments), np.float64)
  loss = lambda arguments: jnp.sum(function.apply(params, None, *arguments)**2)
  assert_gradient_is_numeric(loss, arguments)
  slope = lambda arguments: sum(jnp.sum(x**2) for x in jax.tree.leaves(jax.grad(loss)(arguments)))
  assert_gradient_is_numeric(slope, arguments)


@pytest.mark.usefixtures('float64')
def test_a_masked_query_goes_on_with_what_it_asked_alone():
  shape, mask = (3, 4), np.arange(24).reshape(2, 12) % 3 == 0
  arguments = _arguments(shape, 2, 0)
  function = hk.transform(functools.partial(_forward, attention_impl='factored', shape=shape))
  params = randomise(jax.eval_shape(function.init, jax.random.key(0), *arguments), np.float64)
  masked = hk.transform(functools.partial(_forward, attention_impl='factored', shape=shape, query_mask=mask)).apply
  everyone, some = compiled(function.apply)(params, None, *arguments), compiled(masked)(params, None, *arguments)
  np.testing.assert_allclose(some[mask], everyone[mask], rtol=1e-12)
  np.testing.assert_allclose(some[~mask], np.stack(16 * [some[~mask][0]]), rtol=1e-12)  # there is no residual
  assert np.abs(some - everyone)[~mask].max(-1).min() > 1e-3


# What is held, and in which precision.


def _sizes(jaxpr):
  """Of everything that a computation makes, inner ones included."""
  for equation in jaxpr.eqns:
    yield from (math.prod(variable.aval.shape) for variable in equation.outvars)
    for inner in jax.extend.core.jaxprs_in_params(equation.params):
      yield from _sizes(inner)


@pytest.mark.parametrize('attention_impl, is_large', [('dense', True), ('factored', False)])
@pytest.mark.parametrize('query_residual', [False, True])
def test_neither_weights_nor_joined_queries_are_ever_made(attention_impl, query_residual, is_large):
  shape, num_queries = (32, 32), 1024
  forward = functools.partial(_forward, attention_impl=attention_impl, shape=shape, query_residual=query_residual)
  function, arguments = hk.transform(forward), (
    np.ones((1, num_queries, 1), np.float32), np.ones((1, 32, 8), np.float32), np.ones(15, np.float32), None)
  params = jax.eval_shape(function.init, jax.random.key(0), *arguments)
  loss = lambda params, *others: jnp.sum(function.apply(params, None, *others))
  jaxpr = jax.make_jaxpr(jax.grad(loss, (0, 1, 2, 3)))(params, *arguments)
  assert (max(_sizes(jaxpr.jaxpr)) >= num_queries * 30) == is_large  # both are more than this


def test_of_bfloat16_parameters_and_arguments_answers_are_as_exact_as_the_positions():
  shape = 6, 6
  arguments = _arguments(shape, 3, 2, (4, 2))
  function = hk.transform(functools.partial(_forward, shape=shape, output_channels=4, query_residual=True))
  params = jax.eval_shape(functools.partial(function.init, attention_impl='dense'), jax.random.key(0), *arguments)
  narrow = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), (randomise(params, np.float32), *arguments))
  exact = jax.tree.map(lambda x: x.astype(np.float32), narrow)
  run = lambda attention_impl, params, *others: compiled(
    functools.partial(function.apply, attention_impl=attention_impl))(params, None, *others)
  expected, found = run('dense', *exact), run('factored', *narrow)
  assert found.dtype == run('dense', *narrow).dtype == np.float32
  assert _norm(found - expected) < TOLERANCE[np.float32] * _norm(expected)


# What is factored, and what is not.


def _choice(attention_impl='auto', shape=(64, 64), num_features=3, positions='grid', num_heads=1):
  positions = fourier_grid(shape, 4) if isinstance(positions, str) else positions
  query = InputArray(np.zeros((1, math.prod(shape), num_features), np.float32), positions)
  return is_factored(attention_impl, query, 512, num_heads, 64)


def test_many_queries_on_a_grid_are_factored_unless_projecting_them_is_cheaper():
  grid = fourier_grid((64, 64), 4)
  assert _choice() and _choice(shape=(4, 32, 32)) and _choice(positions=grid._replace(order=np.arange(4096)[::-1]))
  assert not _choice(positions=grid._replace(order=np.zeros(4096, int)))  # not each cell once
  assert not _choice(positions=np.zeros((4096, 18), np.float32)) and not _choice(positions=None)
  assert not _choice(shape=(4096,)) and not _choice(shape=(1, 4096)) and not _choice(shape=(1024, 4))
  assert not _choice(shape=(8, 8))                                     # few
  assert not _choice(num_heads=32) and not _choice(num_features=1000)
  assert not _choice('dense') and not _choice('chunked')
  assert _choice('factored', shape=(8, 8), num_heads=32)


def test_only_queries_on_a_whole_grid_can_be_factored():
  for positions in (np.zeros((4096, 18), np.float32), None, fourier_grid((32, 64), 4)):
    with pytest.raises(UserError, match=r'queries on a whole Fourier grid.*Ask for attention_impl=auto'):
      _choice('factored', positions=positions)


@pytest.mark.parametrize('attention_impl', ['auto', 'dense', 'chunked'])
def test_queries_that_are_on_no_grid_are_joined(attention_impl):
  features, latents, _, _ = (None if x is None else x.astype(np.float32) for x in _arguments((11,), 3, 0))
  positions = fourier_features(normal(11, 2).astype(np.float32), 3, (8, 8))
  query = InputArray(features, positions, padding=np.ones(2, np.float32))
  function = hk.transform(lambda query: Decoder(2, attention_impl=attention_impl)(query, latents, is_training=True)[0])
  params = randomise(jax.eval_shape(function.init, jax.random.key(0), query))
  of_joined = hk.transform(lambda query: Decoder(2, attention_impl='dense')(query, latents, is_training=True)[0])
  expected = compiled(of_joined.apply)(params, None, dense(query))
  np.testing.assert_allclose(compiled(function.apply)(params, None, query), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('settings', [{'capture': True}, {'dropout_prob': 0.5}, {'attention_dropout_prob': 0.5}])
def test_to_capture_the_weights_and_dropout_take_the_dense_path(settings):
  arguments = jax.tree.map(lambda x: x.astype(np.float32), _arguments((3, 4), 2, 0))
  function = hk.transform(functools.partial(_forward, shape=(3, 4), **settings))
  init = functools.partial(function.init, attention_impl='dense')
  params = randomise(jax.eval_shape(init, jax.random.key(0), *arguments))
  run = lambda attention_impl: compiled(functools.partial(function.apply, attention_impl=attention_impl))(
    params, jax.random.key(1), *arguments)
  expected = run('dense')
  if 'capture' in settings:
    assert expected[1].shape == (BATCH_SIZE, 1, 12, NUM_LATENTS)
    found = run('factored')
  else:
    with pytest.warns(UserWarning, match='decoder: attention_impl=factored drops nothing, so training takes'):
      found = run('factored')
  jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_the_parameters_of_a_linear_start_as_haikus_do():
  apart, whole = (hk.transform(function).init(jax.random.key(0)) for function in (
    lambda: LinearParameters(5, 3, name='video_output')(), lambda: hk.Linear(3, name='video_output')(jnp.ones((1, 5)))))
  jax.tree.map(np.testing.assert_array_equal, apart, whole)
