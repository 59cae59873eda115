"""Sets of entities: unused slots count for nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perceiver_jax.adapters.entities import entity_inputs, pooled_entities

ENTITIES = np.random.default_rng(0).normal(size=(3, 4, 5)).astype(np.float32)
VALID = np.array([[1, 0, 1, 0], [0, 0, 0, 0], [1, 1, 1, 1]])


@pytest.mark.parametrize('dtype', [bool, int, np.float32])
def test_entities_are_elements_without_positions_and_unused_slots_are_zero(dtype):
  inputs = entity_inputs(ENTITIES, VALID.astype(dtype))
  assert inputs.positions is None
  np.testing.assert_array_equal(inputs.valid, VALID)
  np.testing.assert_array_equal(inputs.features, ENTITIES * VALID[..., None])


@pytest.mark.parametrize('dtype', [bool, int, np.float32])
def test_the_mean_is_that_of_the_real_entities_and_zero_where_there_are_none(dtype):
  pooled = pooled_entities(ENTITIES, VALID.astype(dtype))
  expected = [ENTITIES[0, [0, 2]].mean(axis=0), np.zeros(5), ENTITIES[2].mean(axis=0)]
  np.testing.assert_allclose(pooled, expected, atol=1e-6)


@pytest.mark.parametrize('read', [lambda *args: entity_inputs(*args).features, pooled_entities])
def test_whatever_an_unused_slot_holds_reaches_neither_result_nor_gradient(read):
  spoilt = np.where(VALID[..., None] == 0, np.nan, ENTITIES)
  loss = lambda scale, entities: jnp.sum((scale * read(entities, VALID)) ** 2)
  np.testing.assert_array_equal(read(spoilt, VALID), read(ENTITIES, VALID))
  np.testing.assert_array_equal(jax.grad(loss)(2.0, spoilt), jax.grad(loss)(2.0, ENTITIES))


@pytest.mark.parametrize('read', [entity_inputs, pooled_entities])
def test_other_shapes_are_the_users_mistake(read):
  with pytest.raises(AssertionError, match='shape'):
    read(ENTITIES, np.ones((3, 5)))
  with pytest.raises(AssertionError, match='shape'):
    read(ENTITIES[0], np.ones(4))
