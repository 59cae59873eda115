"""The only file that knows how devices work together: pmap, its axis, and what crosses it.

JAX keeps `pmap` as a thin layer over `jit` and `shard_map`; the day it goes, this file changes and no other.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from perceiver_jax.types import AXIS, Batch, Tree, UserError


def over_devices(function: Callable, *, donate: tuple[int, ...] = ()) -> Callable:
  """Runs `function` on every device at once, arguments having a leading device axis; those of `donate` are used up."""
  return jax.pmap(function, axis_name=AXIS, donate_argnums=donate)


def num_devices() -> int:
  """How many devices this process works with."""
  return jax.local_device_count()


def sum_over_devices(tree: Tree) -> Tree:
  """Inside `over_devices`: adds each array up over the devices."""
  return jax.lax.psum(tree, AXIS)


def mean_over_devices(tree: Tree) -> Tree:
  """Inside `over_devices`: averages floating arrays over the devices and leaves the others (counters) alone."""
  return jax.tree.map(lambda x: jax.lax.pmean(x, AXIS) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree)


def device_index() -> jax.Array:
  """Inside `over_devices`: the number of this device, [] int32."""
  return jax.lax.axis_index(AXIS)


def _sharding() -> NamedSharding:
  # The mesh must name its axis as pmap does, or the second call of a step compiles it again.
  return NamedSharding(Mesh(np.array(jax.local_devices()), (AXIS,)), PartitionSpec(AXIS))


def replicate(tree: Tree) -> Tree:
  """Host arrays -> the same on every device, with a leading device axis."""
  count = num_devices()
  return jax.device_put(jax.tree.map(lambda x: np.broadcast_to(x, (count, *np.shape(x))), tree), _sharding())


def unreplicate(tree: Tree) -> Tree:
  """The first device's copy, as host arrays. (`x[0]` would gather from all devices: a thousand times slower.)"""
  return jax.tree.map(lambda x: np.asarray(x.addressable_shards[0].data)[0, ...], tree)


def shard(batch: Batch) -> Batch:
  """Host arrays [B, ...] -> [devices, B / devices, ...], contiguous rows on each device."""
  count = num_devices()
  return jax.device_put(
    {name: x.reshape(count, -1, *x.shape[1:]) for name, x in batch.items()}, _sharding())


def check_batch_size(batch_size: int, micro_batches: int) -> None:
  """Raises UserError unless a global batch divides evenly over devices and micro-batches."""
  parts = num_devices() * micro_batches
  if micro_batches < 1 or batch_size < 1 or batch_size % parts:
    nearest = max(1, math.ceil(batch_size / max(1, parts) - 0.5)) * max(1, parts)
    raise UserError(
      f'batch_size={batch_size} does not divide over {num_devices()} devices x micro_batches={micro_batches}; '
      f'the nearest that does is --config.batch_size={nearest}')


def round_up(batch_size: int) -> int:
  """The smallest batch size from `batch_size` on that divides over the devices."""
  count = num_devices()
  return -(-batch_size // count) * count
