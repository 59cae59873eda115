"""What a cross-attend refuses, and what an element that does not count may hold, on every path."""

import functools

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perceiver_jax.core.cross_attend import CrossAttend
from perceiver_jax.core.input_array import InputArray, Pack
from perceiver_jax.core.perceiver import Decoder
from perceiver_jax.core.position_encoding import fourier_grid
from perceiver_jax.types import UserError
from tests.core.test_attention import compiled, normal, randomise

pytestmark = pytest.mark.usefixtures('quick_compilation')

GRID = functools.partial(fourier_grid, (2, 3), 2)
PATHS = ['dense', 'factored', 'chunked']


@pytest.mark.parametrize('masked_rows', ['zero', 'mean'])
@pytest.mark.parametrize('attention_impl', PATHS)
def test_nan_in_an_element_that_does_not_count_reaches_no_output_and_no_gradient(attention_impl, masked_rows):
  valid = np.array([[1, 0, 1, 1, 0, 1], [0, 1, 1, 1, 1, 1]])
  block = lambda query, features: CrossAttend(attention_impl=attention_impl, masked_rows=masked_rows)(
    query, InputArray(features, GRID(), valid), is_training=False)[0]
  query, features = (normal(*shape).astype(np.float32) for shape in ((2, 4, 6), (2, 6, 3)))
  function = hk.transform(block)
  params = randomise(jax.eval_shape(function.init, jax.random.key(0), query, features), np.float32)
  gradient = compiled(jax.grad(lambda params, features: jnp.sum(function.apply(params, None, query, features) ** 2)))
  expected = gradient(params, features)
  found = gradient(params, np.where(valid[..., None], features, np.nan).astype(np.float32))
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-6), found, expected)


def _encoded(attention_impl, query=(2, 4, 6), inputs=None, query_mask=None):
  inputs = InputArray(np.zeros((2, 6, 3), np.float32), GRID()) if inputs is None else inputs
  function = hk.transform(lambda query: CrossAttend(attention_impl=attention_impl)(
    query, inputs, is_training=False, query_mask=query_mask))
  jax.eval_shape(function.init, jax.random.key(0), np.zeros(query, np.float32))


def _decoded(attention_impl, latents=(2, 4, 5), query_mask=None):
  query = InputArray(np.zeros((2, 6, 3), np.float32), GRID())
  function = hk.transform(lambda latents: Decoder(2, attention_impl=attention_impl)(
    query, latents, is_training=False, query_mask=query_mask))
  jax.eval_shape(function.init, jax.random.key(0), np.zeros(latents, np.float32))


@pytest.mark.parametrize('attention_impl', PATHS)
def test_shapes_that_do_not_fit_are_the_users_mistake(attention_impl):
  _encoded(attention_impl)
  _decoded(attention_impl)
  for query in ((1, 4, 6), (4, 6), (2, 0, 6)):
    with pytest.raises(AssertionError, match='cannot read from inputs'):
      _encoded(attention_impl, query)
  with pytest.raises(AssertionError, match=r'a query \[2, 6, 13\] cannot read from inputs \[1, 4, 5\]'):
    _decoded(attention_impl, (1, 4, 5))
  for mask in (np.ones((6, 2)), np.ones((2, 6, 1)), np.ones(6)):
    with pytest.raises(AssertionError, match='shape'):
      _decoded(attention_impl, query_mask=mask)
  with pytest.raises(AssertionError, match='shape'):
    _encoded(attention_impl, query_mask=np.ones((4, 2)))


def test_a_path_that_there_is_not_is_the_users_mistake():
  for function in (_encoded, _decoded):
    with pytest.raises(ValueError, match="attention_impl is 'auto', 'dense', 'factored' or 'chunked', not 'facotred'"):
      function('facotred')


def test_a_pack_has_parts_of_one_batch_and_width():
  part = InputArray(np.zeros((2, 6, 3), np.float32))
  for parts in ((), (part, InputArray(np.zeros((2, 6, 4), np.float32))), (part, InputArray(part.features[:1]))):
    with pytest.raises(AssertionError, match=r'shape|no parts'):
      _encoded('chunked', inputs=Pack(parts))


@pytest.mark.parametrize('inputs, told', [
  (InputArray(np.zeros((2, 6, 3), np.float32)), 'no positions'),
  (InputArray(np.zeros((2, 6, 3), np.float32), np.zeros((6, 4), np.float32)), r'positions \[6, 4\] as one array'),
  (InputArray(np.zeros((2, 6, 3), np.float32), GRID(order=np.zeros(6, int))), 'a grid of 2 x 3 cells and an order'),
])
def test_what_cannot_be_factored_is_told(inputs, told):
  with pytest.raises(UserError, match=f'here are {told}'):
    _encoded('factored', inputs=inputs)
