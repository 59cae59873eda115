"""Measures the rate of matrix products on this device."""

from __future__ import annotations

import time

import jax
import jax.numpy as jnp

SMALLEST, LARGEST = 512, 8192  # sides of the matrices
SECONDS = 0.1                  # of a product that is long enough to be timed


def products_per_second(dtype: jnp.dtype) -> float:
  """FLOP/s of the product of two square matrices of `dtype`, in `dtype`: the best of three, in about a second.

  The matrices grow until a product takes `SECONDS`, or they are 8192 x 8192. It is an upper bound of what a model
  reaches: its products are smaller, and there is other work between them.
  """
  multiply = jax.jit(jnp.matmul)
  side = SMALLEST
  while True:
    matrix = jnp.ones((side, side), dtype)
    multiply(matrix, matrix).block_until_ready()  # compiles
    seconds = min(_seconds(multiply, matrix) for _ in range(3))
    if seconds >= SECONDS or side >= LARGEST:
      return 2 * side**3 / seconds
    side *= 2


def _seconds(multiply, matrix: jax.Array) -> float:
  start = time.perf_counter()
  multiply(matrix, matrix).block_until_ready()
  return time.perf_counter() - start
