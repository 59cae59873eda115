"""Keeps what JAX has compiled for the next start. Imports no JAX, which reads the place when it is imported."""

from __future__ import annotations

import hashlib
import os
import platform
import sys
import tempfile
from pathlib import Path


def keep_compiled() -> None:
  """Lets JAX keep what took it a second or more to compile, for the next start; to be called before JAX is imported.

  It goes to $XDG_CACHE_HOME/perceiver_jax/compiled (~/.cache where that is not set), in a folder for each kind of CPU:
  machines that share a home need not have the same instructions. JAX_COMPILATION_CACHE_DIR names another place, or
  none if it is empty. Nothing is kept where that cannot be, which is said on stderr.
  """
  if 'JAX_COMPILATION_CACHE_DIR' in os.environ:
    return
  cache = Path(os.environ.get('XDG_CACHE_HOME') or '~/.cache').expanduser()
  folder = cache / 'perceiver_jax' / 'compiled' / _instructions()
  try:
    folder.mkdir(parents=True, exist_ok=True)
    tempfile.TemporaryFile(dir=folder).close()
  except OSError as error:
    print(f'{folder}: {error.strerror}; what is compiled is not kept for the next start', file=sys.stderr)
    return
  os.environ['JAX_COMPILATION_CACHE_DIR'] = str(folder)


def _instructions() -> str:
  """A name for what this CPU can do: XLA compiles for all of it."""
  try:
    lines = Path('/proc/cpuinfo').read_text().splitlines()
  except OSError:
    return platform.machine()
  features = next((line for line in lines if line.lower().startswith(('flags', 'features'))), '')
  return f'{platform.machine()}-{hashlib.sha256(features.encode()).hexdigest()[:8]}'
