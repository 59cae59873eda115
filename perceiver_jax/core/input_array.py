"""The papers' input (byte) array, before anyone has paid for joining features and positions.

Shapes: B batch, M elements, F channels of features, P of positions, K of padding, C = F + P + K.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from perceiver_jax.core.position_encoding import Positions, joined
from perceiver_jax.types import Array


class InputArray(NamedTuple):
  """Holds what a query reads from. Features and positions stay apart so that attention may use their factors.

  Holds arrays only, so it may go through any JAX transformation.
  """

  features: Array                     # [B, M, F]
  positions: Positions | None = None  # shared by the batch, or [B, M, P]
  valid: Array | None = None          # [B, M], 1 = a real element
  padding: Array | None = None        # [K], channels that all elements share, behind the others


class Pack(NamedTuple):
  """Input arrays of several kinds and of one width, of which a query reads as of one: one kind after the other."""

  parts: tuple[InputArray, ...]


def parts_of(inputs: InputArray | Pack) -> tuple[InputArray, ...]:
  """One input array, or those of a pack."""
  return inputs.parts if isinstance(inputs, Pack) else (inputs,)


def dense(inputs: InputArray | Pack) -> Array:
  """Returns [B, M, C]: each element's features, then its position, then padding, in the widest of their dtypes.

  Raises AssertionError if there is not one position, or one entry of `valid`, for each element, or the parts of a pack
  are not of one width.
  """
  parts = [_dense(part) for part in parts_of(inputs)]
  assert parts, 'a pack has no parts'
  batch_size, _, num_channels = parts[0].shape
  chex.assert_shape(parts, (batch_size, None, num_channels))
  return jnp.concatenate(parts, axis=1) if len(parts) > 1 else parts[0]


def _dense(inputs: InputArray) -> Array:
  features, positions, valid, padding = inputs
  batch_size, num_elements, _ = features.shape
  if valid is not None:
    chex.assert_shape(valid, (batch_size, num_elements))
  columns = []
  if positions is not None:
    table = joined(positions)
    chex.assert_shape(table[None] if table.ndim == 2 else table, ({1, batch_size}, num_elements, None))
    columns.append(table)
  if padding is not None:
    columns.append(padding)
  columns = [jnp.broadcast_to(x, (batch_size, num_elements, x.shape[-1])) for x in columns]
  return jnp.concatenate([features, *columns], axis=-1) if columns else features


def size(inputs: InputArray | Pack) -> tuple[int, int, int]:
  """Returns (B, M, C), the shape of `dense(inputs)`, which is not made. Raises AssertionError as it does."""
  batch_size, num_elements, num_channels = jax.eval_shape(dense, inputs).shape
  return batch_size, num_elements, num_channels


def check_query(shape: Sequence[int], inputs: InputArray | Pack, query_mask: Array | None) -> None:
  """Raises AssertionError unless a query [B, T, channels] may read from inputs, and nothing is 0.

  Args:
    shape: of the query.
    inputs: of batch size B.
    query_mask: [B, T].
  """
  of_inputs = size(inputs)
  fits = len(shape) == 3 and shape[0] == of_inputs[0] and 0 not in (*shape, *of_inputs)
  assert fits, f'a query {list(shape)} cannot read from inputs {list(of_inputs)}: both are [batch, elements, channels]'
  if query_mask is not None:
    chex.assert_shape(query_mask, tuple(shape[:2]))


def valid_elements(inputs: InputArray | Pack) -> Array | None:
  """Returns [B, M], 1 for a valid element; None where all are valid."""
  parts = parts_of(inputs)
  if all(part.valid is None for part in parts):
    return None
  masks = [jnp.ones(part.features.shape[:2], bool) if part.valid is None else part.valid != 0 for part in parts]
  return jnp.concatenate(masks, axis=1)


def with_valid(inputs: InputArray | Pack, valid: Array | None) -> InputArray | Pack:
  """The same elements, of which those count that `valid` [B, M] says; None changes nothing.

  Raises AssertionError where `valid` is not of these elements.
  """
  if valid is None:
    return inputs
  chex.assert_shape(valid, size(inputs)[:2])
  if not isinstance(inputs, Pack):
    return inputs._replace(valid=valid)
  parts, start = [], 0
  for part in inputs.parts:
    stop = start + part.features.shape[1]
    parts.append(part._replace(valid=valid[:, start:stop]))
    start = stop
  return Pack(tuple(parts))
