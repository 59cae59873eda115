"""What every test shares: eight CPU devices, float32 products, a compilation cache, and no network.

JAX reads these settings when it is imported, and processes that a test starts inherit them, so they are set here first,
in the environment. PERCEIVER_TEST_PLATFORM=cuda runs the tests of numerics on a GPU.
"""

from __future__ import annotations

import ipaddress
import os
import pathlib
import socket
import sys
from importlib import metadata

ROOT = pathlib.Path(__file__).resolve().parent.parent

os.environ['JAX_PLATFORMS'] = os.environ.get('PERCEIVER_TEST_PLATFORM', 'cpu')
# The older of two code generators compiles in a third of the time; jaxlib 0.11 has only the newer one. Processes with
# XLA_FLAGS of their own are compiled as a person's are; XLA_FLAGS=--xla_cpu_use_fusion_emitters=true does so to all.
QUICKER = '--xla_cpu_use_fusion_emitters=false ' if metadata.version('jaxlib').startswith('0.10.') else ''
os.environ['XLA_FLAGS'] = (
  f'{QUICKER}{os.environ.get("XLA_FLAGS", "")} --xla_force_host_platform_device_count=8'.strip())
os.environ['XLA_PYTHON_CLIENT_PREALLOCATE'] = 'false'  # workers of pytest-xdist share the GPU
os.environ['JAX_DEFAULT_MATMUL_PRECISION'] = 'float32'
os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', str(ROOT / '.cache' / 'jax'))
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0')
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES', '-1')
# A killed process leaves half an entry, which JAX compiles again; tests that read a process's stderr need not hear it.
os.environ['PYTHONWARNINGS'] = 'ignore:Error reading persistent compilation cache entry'

import pytest
from absl import flags

flags.FLAGS.mark_as_parsed()  # Grain reads absl flags, which nobody parses under pytest


def _is_here(address) -> bool:
  """Says whether an address given to `socket.connect` is on this machine: a Unix socket's path or a loopback host."""
  if not isinstance(address, tuple):
    return True
  host = address[0]
  if host in ('', 'localhost', 'localhost.localdomain'):
    return True
  try:
    return ipaddress.ip_address(host).is_loopback
  except ValueError:
    return False


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
  """Lets no test speak to another machine: what passes here passes offline."""

  def guarded(connect):
    def attempt(self, address):
      if not _is_here(address):
        raise OSError(f'tests have no network: refused to connect to {address}')
      return connect(self, address)
    return attempt

  monkeypatch.setattr(socket.socket, 'connect', guarded(socket.socket.connect))
  monkeypatch.setattr(socket.socket, 'connect_ex', guarded(socket.socket.connect_ex))


@pytest.fixture(autouse=True)
def no_unreadable_records():
  """Lets each test begin as a process does, which has met no record that it could not read."""
  if pipeline := sys.modules.get('perceiver_jax.data.pipeline'):
    pipeline._unreadable.clear()


@pytest.fixture(scope='module')
def quick_compilation():
  """For modules in which nothing is run often enough to be worth optimizing."""
  import jax

  before = jax.config.read('jax_disable_most_optimizations')
  jax.config.update('jax_disable_most_optimizations', True)
  yield
  jax.config.update('jax_disable_most_optimizations', before)
