"""Text as inputs and as outputs: one table embeds tokens and reads the answers."""

import haiku as hk
import jax
import numpy as np
import pytest

from perceiver_jax.adapters.text import text_inputs, token_logits, token_table
from perceiver_jax.types import UserError

TOKENS = np.array([[3, 0, 2, 2], [1, 1, 0, 3]])


def _there_and_back(tokens, max_length=6, valid=None):
  table = token_table(5, 7)
  inputs = text_inputs(tokens, table, max_length, valid)
  return inputs, token_logits(inputs.features, table)


@pytest.fixture
def built():
  function = hk.without_apply_rng(hk.transform(_there_and_back))
  params = function.init(jax.random.key(0), TOKENS)
  return jax.tree.map(lambda x: x + np.random.default_rng(0).normal(size=x.shape), params), function.apply


def test_a_token_is_embedded_and_its_position_is_added(built):
  params, apply = built
  inputs, _ = apply(params, TOKENS, valid=TOKENS)
  for example, position in np.ndindex(TOKENS.shape):
    expected = params['tokens']['table'][TOKENS[example, position]] + params['positions']['table'][position]
    np.testing.assert_allclose(inputs.features[example, position], expected, atol=1e-6)
  np.testing.assert_array_equal(inputs.valid, TOKENS)
  assert inputs.positions is None


def test_the_logit_of_a_token_is_how_well_its_embedding_fits_plus_a_bias(built):
  params, apply = built
  inputs, logits = apply(params, TOKENS)
  assert jax.tree.map(np.shape, params) == {
    'tokens': {'table': (5, 7)}, 'positions': {'table': (6, 7)}, 'output': {'b': (5,)}}
  expected = np.einsum('blc,vc->blv', inputs.features, params['tokens']['table']) + params['output']['b']
  np.testing.assert_allclose(logits, expected, atol=1e-5)


def test_text_longer_than_the_positions_is_the_users_mistake(built):
  params, apply = built
  with pytest.raises(UserError, match=r'7 tokens \[2, 7\], but the model has 6 positions'):
    apply(params, np.zeros((2, 7), int))
