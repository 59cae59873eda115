"""The only file that knows how devices and processes work together: pmap, its axis, and what crosses it.

A process has some of the devices (`jax.local_devices`), and of each batch the rows for them. All processes run the same
program, and meet in whatever runs over devices: what one of them calls here, all must call, in the same order.

JAX keeps `pmap` as a thin layer over `jit` and `shard_map`; the day it goes, this file changes and no other.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import json
import math
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax._src import distributed, xla_bridge
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from perceiver_jax.types import AXIS, Batch, Tree, UserError

_PATIENCE_SECONDS, _GIVE_UP_SECONDS = 15, 300  # for the other processes to come


def join(coordinator_address: str | None, num_processes: int | None, process_id: int | None, timeout: float) -> None:
  """Makes this process one of those that work together; to be called before JAX meets a device.

  What is None, JAX finds out on TPU pods, under SLURM, Open MPI and, with the package `kubernetes`, in Kubernetes.
  Where it finds nothing, or `num_processes` is 1, the process stays alone; so it does where nothing is given and JAX
  has met a device already, in a notebook say.

  Args:
    coordinator_address: HOST:PORT of process 0, which listens there.
    num_processes: P, how many there are.
    process_id: 0 to P - 1.
    timeout: seconds without a sign of life after which JAX takes a process for dead, and ends the others.

  Raises:
    UserError: only some of the arguments are given and the rest is not to be found, they are out of range, the address
      is taken, the others do not come, or do not have as many devices, or there is none.
  """
  is_told = (coordinator_address, num_processes, process_id) != (None, None, None)
  if num_processes == 1 or (not is_told and xla_bridge.backends_are_initialized()):
    check_device()
    return
  if coordinator_address:
    _check_address(coordinator_address, is_ours=process_id == 0)
  # Its handler of SIGTERM would replace ours, which stops all processes at the same step.
  jax.config.update('jax_enable_preemption_service', False)
  try:
    with _waiting():
      jax.distributed.initialize(
        coordinator_address, num_processes, process_id, initialization_timeout=_GIVE_UP_SECONDS,
        heartbeat_timeout_seconds=math.ceil(timeout), shutdown_timeout_seconds=math.ceil(timeout))
  except ValueError as error:  # JAX's word for "no cluster here", as for a number that cannot be
    if is_told:
      raise UserError(
        f'{error}\nWhere no cluster is found, --coordinator_address=HOST:PORT, --num_processes and '
        '--process_id go together') from error
  except RuntimeError as error:
    raise UserError(f'the processes of this run do not find each other: {error}\n'
                    '--num_processes=1 trains with this process alone') from error
  check_device()
  counts = collections.Counter(device.process_index for device in jax.devices())
  if len(set(counts.values())) > 1:
    raise UserError(f'processes must have equally many devices; processes 0, 1 ... have {sorted(counts.items())}')


def check_device() -> None:
  """Raises UserError where JAX finds no device of the kind that it is told to use."""
  try:
    jax.devices()
  except (AssertionError, RuntimeError) as error:  # JAX asserts that it has found one
    platforms = os.environ.get('JAX_PLATFORMS', '')
    raise UserError(f'JAX finds no device for JAX_PLATFORMS={platforms!r}: {str(error) or "there is none"}. '
                    'Unset JAX_PLATFORMS to use what there is, or install the jax of that platform') from error


def _check_address(address: str, *, is_ours: bool) -> None:
  """Raises UserError for what is no HOST:PORT, or, if we are to listen there, is taken: JAX would share it."""
  host, _, port = address.rpartition(':')
  if not host or not port.isdecimal():
    raise UserError(f'--coordinator_address={address}: expected HOST:PORT, as node0:8476')
  try:
    if is_ours:
      listen(int(port)).close()
  except (OSError, OverflowError) as error:
    raise UserError(f'--coordinator_address={address}: process 0 cannot listen there: {error}') from error


def listen(port: int = 0) -> socket.socket:
  """A server at that port of this machine, or at a free one, for IPv4 and, where there is, IPv6."""
  is_dual = socket.has_dualstack_ipv6()
  family = socket.AF_INET6 if is_dual else socket.AF_INET
  return socket.create_server(('', port), family=family, dualstack_ipv6=is_dual, backlog=1000)


@contextlib.contextmanager
def _waiting() -> Iterator[None]:
  """Says so after a while, and lets Ctrl-C end the process, which JAX's C++ would not."""
  timer = threading.Timer(_PATIENCE_SECONDS, _say_that_we_wait)
  timer.daemon = True
  is_main = threading.current_thread() is threading.main_thread()
  previous = signal.signal(signal.SIGINT, signal.SIG_DFL) if is_main else None
  timer.start()
  try:
    yield
  finally:
    timer.cancel()
    if is_main:
      signal.signal(signal.SIGINT, previous)


def _say_that_we_wait() -> None:
  print('Waiting for the other processes. Have all been started, and can they reach process 0? If they do not come '
        f'within {_GIVE_UP_SECONDS} seconds, JAX ends this one with exit code 134. --num_processes=1 goes on alone.',
        file=sys.stderr, flush=True)


def meet() -> None:
  """Returns when all processes have called it."""
  multihost_utils.sync_global_devices('perceiver_jax')


def part() -> None:
  """Ends what `join` began, in all processes; they must have met."""
  jax.distributed.shutdown()


def num_processes() -> int:
  """Returns how many processes work together."""
  return jax.process_count()


def process_id() -> int:
  """Returns the number of this process; number 0 alone writes."""
  return jax.process_index()


def coordinator_host() -> str:
  """Returns the host of process 0, as the others know it."""
  # There is no public way to ask what JAX found out.
  return str(distributed.global_state.coordinator_address).rpartition(':')[0].strip('[]')


def rows(batch_size: int) -> slice:
  """Returns the rows of a global batch for this process: processes take contiguous rows, in order."""
  size = batch_size // num_processes()
  return slice(process_id() * size, (process_id() + 1) * size)


def from_first(read: Callable[[], tuple[Tree, Any]], template: Tree = None) -> tuple[Tree, Any]:
  """Calls `read` in process 0 alone, and returns its result in all of them.

  Args:
    read: () -> (arrays, anything that JSON can hold).
    template: shapes and dtypes of the arrays.
  """
  if num_processes() == 1:
    return read()
  arrays, text = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), template), b''
  if process_id() == 0:
    arrays, values = read()
    text = json.dumps(values).encode()
  arrays, size = multihost_utils.broadcast_one_to_all((arrays, np.int32(len(text))))
  text = multihost_utils.broadcast_one_to_all(np.frombuffer(text.ljust(size), np.uint8))
  return arrays, json.loads(text.tobytes())


def sum_over_processes(number: int) -> int:
  """The sum of every process's number."""
  return int(np.sum(multihost_utils.process_allgather(np.int32(number))))


def any_process(says: bool) -> Callable[[], bool]:
  """Begins to ask whether any process says so; the answer, the same in all, comes when it is called for."""
  if num_processes() == 1:
    return lambda: says
  total = _sum()(np.full(jax.local_device_count(), says, np.int32))
  return lambda: bool(unreplicate(total))


@functools.cache
def _sum() -> Callable:
  return over_devices(sum_over_devices)


def over_devices(function: Callable, *, donate: tuple[int, ...] = ()) -> Callable:
  """Runs `function` on every device at once, arguments having a leading device axis; those of `donate` are used up."""
  return jax.pmap(function, axis_name=AXIS, donate_argnums=donate)


def num_devices() -> int:
  """Returns how many devices all processes have together."""
  return jax.device_count()


def sum_over_devices(tree: Tree) -> Tree:
  """Inside `over_devices`: adds each array up over the devices."""
  return jax.lax.psum(tree, AXIS)


def mean_over_devices(tree: Tree) -> Tree:
  """Inside `over_devices`: averages floating arrays over the devices and leaves the others (counters) alone."""
  return jax.tree.map(lambda x: jax.lax.pmean(x, AXIS) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree)


def gather_over_devices(tree: Tree) -> Tree:
  """Joins the rows of all devices, in their order, inside `over_devices`: [R, ...] -> [devices * R, ...]."""
  return jax.tree.map(lambda x: jax.lax.all_gather(x, AXIS, tiled=True), tree)


def device_index() -> jax.Array:
  """Inside `over_devices`: the number of this device, [] int32."""
  return jax.lax.axis_index(AXIS)


def _sharding() -> NamedSharding:
  # The mesh must name its axis as pmap does, or the second call of a step compiles it again.
  return NamedSharding(Mesh(np.array(jax.local_devices()), (AXIS,)), PartitionSpec(AXIS))


def replicate(tree: Tree) -> Tree:
  """Host arrays -> the same on every device of this process, with a leading device axis."""
  count = jax.local_device_count()
  return jax.device_put(jax.tree.map(lambda x: np.broadcast_to(x, (count, *np.shape(x))), tree), _sharding())


def unreplicate(tree: Tree) -> Tree:
  """The first device's copy, as host arrays. (`x[0]` would gather from all devices: a thousand times slower.)"""
  return jax.tree.map(lambda x: np.asarray(x.addressable_shards[0].data)[0, ...], tree)


def shard(batch: Batch) -> Batch:
  """This process's rows, host arrays [R, ...] -> [devices, R / devices, ...], contiguous on each of its devices."""
  count = jax.local_device_count()
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
