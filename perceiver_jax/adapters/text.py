"""Text in and out: bytes or word pieces, embedded, and the same embedding as the last layer (2107.14795, appendix F).

Shapes: B batch, L tokens, V vocabulary, C channels of an embedding.
"""

from __future__ import annotations

import chex
import haiku as hk
import jax
import jax.numpy as jnp

from perceiver_jax.core.input_array import InputArray
from perceiver_jax.core.position_encoding import LearnedTable
from perceiver_jax.types import Array, UserError


def token_table(vocab_size: int, num_channels: int) -> jax.Array:
  """Returns [V, C], a trained embedding of each token; its initial scale, 0.02, is not published."""
  return LearnedTable(vocab_size, num_channels, name='tokens')()


def text_inputs(tokens: Array, table: Array, max_length: int, valid: Array | None = None) -> InputArray:
  """Embedded tokens, each plus a trained position: for text the papers add the two.

  Args:
    tokens: [B, L] integer.
    table: [V, C], of `token_table`.
    max_length: how many positions there are.
    valid: [B, L], non-zero = a token that counts.

  Raises:
    UserError: more tokens than positions.
  """
  chex.assert_type(tokens, int)
  if tokens.shape[1] > max_length:
    raise UserError(f'{tokens.shape[1]} tokens {list(tokens.shape)}, but the model has {max_length} positions')
  positions = LearnedTable(max_length, table.shape[1])()
  return InputArray(table[tokens] + positions[:tokens.shape[1]], None, valid)


def token_logits(answers: Array, table: Array) -> jax.Array:
  """Computes logits [B, O, V] of answers [B, O, C]: their products with each token's embedding, plus a trained bias."""
  return hk.Bias(bias_dims=[-1], name='output')(jnp.einsum('boc,vc->bov', answers, table))
