"""Sets of entities in and out: slots without an order, some of them unused (2107.14795, appendix B: StarCraft II).

Shapes: B batch, M slots, F features of an entity, E channels of an answer.
"""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp

from perceiver_jax.core.input_array import InputArray
from perceiver_jax.types import Array


def entity_inputs(entities: Array, valid: Array) -> InputArray:
  """Makes M elements without positions of entities [B, M, F], of which those with a non-zero `valid` [B, M] exist.

  Unused slots hold zeros from here on: what was in them, were it NaN, reaches neither an answer nor a gradient.
  """
  return InputArray(_real(entities, valid), None, valid)


def pooled_entities(outputs: Array, valid: Array) -> jax.Array:
  """Averages outputs [B, M, E] over the entities that exist by `valid` [B, M]: [B, E], 0 where there are none."""
  total = jnp.sum(_real(outputs, valid), axis=1)
  return total / jnp.maximum(jnp.sum(valid != 0, axis=1, keepdims=True), 1)


def _real(x: Array, valid: Array) -> jax.Array:
  chex.assert_rank(x, 3)
  chex.assert_shape(valid, x.shape[:2])
  return jnp.where((valid != 0)[..., None], x, 0)
