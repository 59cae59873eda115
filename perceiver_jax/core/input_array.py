"""The papers' input (byte) array, before anyone has paid for joining features and positions.

Shapes: B batch, M elements, F channels of features, P of positions, K of padding, C = F + P + K.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from perceiver_jax.core.position_encoding import Positions, joined
from perceiver_jax.types import Array, UserError


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

  Raises UserError if there is not one position, or one entry of `valid`, for each element, or the parts of a pack are
  not of one width.
  """
  parts = [_dense(part) for part in parts_of(inputs)]
  if len({(part.shape[0], part.shape[-1]) for part in parts}) != 1:
    raise UserError(f'a pack has parts, of one batch and one width, not {[list(part.shape) for part in parts]}')
  return jnp.concatenate(parts, axis=1) if len(parts) > 1 else parts[0]


def _dense(inputs: InputArray) -> Array:
  features, positions, valid, padding = inputs
  batch_size, num_elements, _ = features.shape
  if valid is not None and valid.shape != features.shape[:2]:
    raise UserError(f'valid is [batch, elements], {list(features.shape[:2])}, not {list(valid.shape)}')
  columns = []
  if positions is not None:
    table = joined(positions)
    if table.shape[:-1] not in ((num_elements,), (1, num_elements), (batch_size, num_elements)):
      raise UserError(f'{num_elements} elements {features.shape} but {table.shape[-2]} positions {table.shape}')
    columns.append(table)
  if padding is not None:
    columns.append(padding)
  columns = [jnp.broadcast_to(x, (batch_size, num_elements, x.shape[-1])) for x in columns]
  return jnp.concatenate([features, *columns], axis=-1) if columns else features


def size(inputs: InputArray | Pack) -> tuple[int, int, int]:
  """Returns (B, M, C), the shape of `dense(inputs)`, which is not made. Raises UserError as it does."""
  batch_size, num_elements, num_channels = jax.eval_shape(dense, inputs).shape
  return batch_size, num_elements, num_channels


def check_query(shape: Sequence[int], inputs: InputArray | Pack, query_mask: Array | None) -> None:
  """Raises UserError unless a query of this shape, [B, T, channels], may read from inputs; `query_mask` is [B, T]."""
  of_inputs = size(inputs)
  if len(shape) != 3 or shape[0] != of_inputs[0] or 0 in (*shape, *of_inputs):
    raise UserError(
      f'a query is [batch, queries, channels] and reads from inputs [batch, elements, channels] of the same batch, and '
      f'nothing of it is 0: not {list(shape)} from {list(of_inputs)}')
  if query_mask is not None and query_mask.shape != tuple(shape[:2]):
    raise UserError(f'query_mask is [batch, queries], {list(shape[:2])}, not {list(query_mask.shape)}')


def valid_elements(inputs: InputArray | Pack) -> Array | None:
  """Returns [B, M], 1 for a valid element; None where all are valid."""
  parts = parts_of(inputs)
  if all(part.valid is None for part in parts):
    return None
  masks = [jnp.ones(part.features.shape[:2], bool) if part.valid is None else part.valid != 0 for part in parts]
  return jnp.concatenate(masks, axis=1)


def with_valid(inputs: InputArray | Pack, valid: Array | None) -> InputArray | Pack:
  """The same elements, of which those count that `valid` [B, M] says; None changes nothing.

  Raises UserError where `valid` is not of these elements.
  """
  if valid is None:
    return inputs
  if valid.shape != size(inputs)[:2]:
    raise UserError(f'valid is [batch, elements], {list(size(inputs)[:2])}, not {list(valid.shape)}')
  if not isinstance(inputs, Pack):
    return inputs._replace(valid=valid)
  parts, start = [], 0
  for part in inputs.parts:
    stop = start + part.features.shape[1]
    parts.append(part._replace(valid=valid[:, start:stop]))
    start = stop
  return Pack(tuple(parts))
