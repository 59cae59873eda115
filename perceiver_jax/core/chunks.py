"""Many queries, a few at a time: what keeps the memory of large inputs and outputs bounded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp

from perceiver_jax.types import Tree


def in_chunks(answer: Callable[[Any], Tree], num_queries: int, chunk_size: int) -> Tree:
  """The answers to all queries, with the memory for `chunk_size` of them. To be called under `hk.transform`.

  Args:
    answer: rows, a slice or [c] int32, of the queries -> a tree of arrays [B, c, ...]; may use Haiku parameters, but
      nothing random, and treats every query by itself.
    num_queries: O.
    chunk_size: at least 1.

  Returns:
    The same tree of arrays [B, O, ...].
  """
  if num_queries <= chunk_size:
    return answer(slice(None))
  if hk.running_init():  # parameters are all that counts, and Haiku would name those of a mapped function twice
    some = answer(slice(chunk_size))
    return jax.tree.map(lambda x: jnp.broadcast_to(x[:, :1], (x.shape[0], num_queries, *x.shape[2:])), some)
  num_chunks = -(-num_queries // chunk_size)
  rows = jnp.minimum(jnp.arange(num_chunks * chunk_size), num_queries - 1)  # the last chunk repeats the last query
  chunks = hk.map(answer, rows.reshape(num_chunks, chunk_size))
  return jax.tree.map(lambda x: _joined(x)[:, :num_queries], chunks)


def _joined(chunks: jax.Array) -> jax.Array:
  """Joins chunks: [num_chunks, B, c, ...] to [B, num_chunks * c, ...]."""
  num_chunks, batch_size, chunk_size, *rest = chunks.shape
  return chunks.swapaxes(0, 1).reshape(batch_size, num_chunks * chunk_size, *rest)
