"""A trace of a few steps, for TensorBoard's profile page or ui.perfetto.dev."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator

import jax

NUM_UNTRACED = 2  # compilation would drown the steps that we want to see


@contextlib.contextmanager
def profiler(workdir: str, first_step: int, num_steps: int) -> Iterator[Callable[[int], None]]:
  """Yields a function to be called before each step; it traces `num_steps` steps into `workdir`/profile (0 = none)."""
  start = first_step + NUM_UNTRACED
  tracing = contextlib.ExitStack()

  def before(step: int) -> None:
    if num_steps and step == start:
      tracing.enter_context(jax.profiler.trace(os.path.join(workdir, 'profile')))
    if step == start + num_steps:
      tracing.close()

  with tracing:
    yield before
