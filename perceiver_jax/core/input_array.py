"""The papers' input (byte) array, before anyone has paid for joining features and positions."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp

from perceiver_jax.core.position_encoding import Positions, joined
from perceiver_jax.types import Array, UserError


class InputArray(NamedTuple):
  """What a query reads from. Features and positions stay apart so that an attention may use their factors.

  Holds arrays only, so it may go through any JAX transformation.
  """

  features: Array                     # [B, M, F]
  positions: Positions | None = None  # shared by the batch, or [B, M, P]
  valid: Array | None = None          # [B, M], 1 = a real element


def dense(inputs: InputArray) -> Array:
  """[B, M, F + P]: every element's features, then its position, in the wider of the two dtypes.

  Raises UserError if there is not one position for each element.
  """
  features, positions, _ = inputs
  if positions is None:
    return features
  table = joined(positions)
  batch_size, num_elements, _ = features.shape
  if table.shape[:-1] not in ((num_elements,), (1, num_elements), (batch_size, num_elements)):
    raise UserError(f'{num_elements} elements {features.shape} but {table.shape[-2]} positions {table.shape}')
  table = jnp.broadcast_to(table, (*features.shape[:2], table.shape[-1]))
  return jnp.concatenate([features, table], axis=-1)
