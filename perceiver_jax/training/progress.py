"""Shows how far a run is: a bar on a terminal, lines elsewhere."""

from __future__ import annotations

import contextlib
import itertools
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from tqdm import tqdm

from perceiver_jax import metrics
from perceiver_jax.processes import parallel
from perceiver_jax.training.step import STEP_FIGURES
from perceiver_jax.types import Batch, Mean, Tree

QUIET_SECONDS = 10.0  # an evaluation that takes no longer shows no progress


class Window:
  """Metrics of the steps since the last report. They stay on the device until `totals` is asked for."""

  def __init__(self, saved: Mapping[str, Sequence[float]] | None = None):
    """saved: what `totals` returned in the run that this one resumes."""
    self._totals: dict[str, Mean] = {name: (pair[0], pair[1]) for name, pair in (saved or {}).items()}
    self._waiting: list[Tree] = []

  def add(self, means: Tree) -> None:
    """means: {name: (sum, weight)}, replicated over devices."""
    self._waiting.append(means)

  def totals(self) -> dict[str, Mean]:
    """Returns {name: (sum, weight)}, added in the order of the steps, so that an interruption changes no digit."""
    for means in self._waiting:
      self._totals = metrics.add(self._totals, parallel.unreplicate(means))
    self._waiting = []
    return {name: (float(total), float(weight)) for name, (total, weight) in self._totals.items()}


def summary(values: dict[str, float]) -> str:
  """The metrics among `values` in one line for people: 'test/loss 0.08, test/accuracy 0.98'."""
  return ', '.join(
    f'{name} {value:.4g}' for name, value in values.items()
    if '/' in name and not name.startswith(('speed/', 'checkpoint/', 'run/')))


def _is_terminal() -> bool:
  """Whether a bar would be seen. Some terminals (of containers, of CI) say that they are 0 columns wide."""
  return (parallel.process_id() == 0 and sys.stderr.isatty()
          and os.get_terminal_size(sys.stderr.fileno()).columns > 0)


def _open_bar(**options) -> tqdm:
  bar = tqdm(dynamic_ncols=True, disable=not _is_terminal(), **options)
  bar._time = time.monotonic  # a clock that is set back by an hour would stop the bar for that hour
  bar.unpause()
  return bar


class Progress:
  """A bar on a terminal, plain lines elsewhere: step, total, ETA, examples/s, loss; a context manager."""

  def __init__(self, first_step: int, num_steps: int, batch_size: int):
    self._batch_size = batch_size
    self._bar = _open_bar(total=num_steps, initial=first_step, unit='step')
    self._time, self._step = time.monotonic(), first_step

  def advance(self) -> None:
    """One more step was started."""
    self._bar.update()

  def restart_clock(self, step: int) -> None:
    """Leaves what came before, the compilation, out of the rate."""
    self._time, self._step = time.monotonic(), step

  def report(self, step: int, values: dict[str, float]) -> dict[str, float]:
    """Shows the window that ends at `step`; returns its rates as {'speed/name': per second}.

    There is none, {}, where the clock has seen no step: the first step of a process compiles, and is not timed.
    """
    now, num_steps = time.monotonic(), step - self._step
    measured = {name.removeprefix('train/'): value for name, value in values.items()}
    names = sorted(measured.keys() - STEP_FIGURES, key=lambda name: (name != 'loss', name))
    words = [f'{name} {measured[name]:.4g}' for name in names]
    rates, eta = {}, []
    if num_steps:
      seconds_per_step = (now - self._time) / num_steps
      rate = self._batch_size / seconds_per_step
      rate_per_device = rate / parallel.num_devices()
      rates = {'speed/examples_per_second': rate, 'speed/examples_per_second_per_device': rate_per_device}
      per_device = f' ({rate_per_device:,.0f} a device)' if parallel.num_devices() > 1 else ''
      words.insert(0, f'{rate:,.0f} examples/s{per_device}')
      minutes, seconds = divmod(round((self._bar.total - step) * seconds_per_step), 60)
      eta = [f'ETA {minutes}:{seconds:02d}']
    self._time, self._step = now, step
    self._bar.set_postfix_str(', '.join(words))
    if self._bar.disable:
      self.say(', '.join([f'step {step}/{self._bar.total}', *eta, *words]))
    return rates

  @contextlib.contextmanager
  def paused(self) -> Iterator[None]:
    """Leaves the time of something else (an evaluation) out of the rate."""
    start = time.monotonic()
    yield
    self._time += time.monotonic() - start

  def say(self, text: str) -> None:
    """Prints a line without tearing the bar, in one of the processes."""
    if parallel.process_id() == 0:
      self._bar.write(text, file=sys.stderr)
      sys.stderr.flush()

  def __enter__(self) -> Progress:
    return self

  def __exit__(self, *error: object) -> None:
    self._bar.close()


def counted(batches: Iterator[Batch], split: str) -> Iterator[Batch]:
  """Passes batches on, and tells how many examples are through: a bar on a terminal, elsewhere lines, ever more seldom.

  The clock starts after the first batch, which compiles. How many there will be, nobody knows: there is no ETA.
  """
  num_examples = 0
  for batch in itertools.islice(batches, 1):
    yield batch
    num_examples = int(np.count_nonzero(batch['mask']))
  num_first, start, next_seconds = num_examples, time.monotonic(), QUIET_SECONDS
  with _open_bar(
    desc=split, initial=num_first, unit=' examples', unit_scale=True, delay=QUIET_SECONDS, leave=False) as bar:
    for batch in batches:
      yield batch
      num_new = int(np.count_nonzero(batch['mask']))
      bar.update(num_new)
      num_examples += num_new
      seconds = time.monotonic() - start
      if bar.disable and seconds >= next_seconds and parallel.process_id() == 0:
        rate = (num_examples - num_first) / seconds
        print(f'{split}: {num_examples:,} examples, {rate:,.0f} examples/s', file=sys.stderr, flush=True)
        next_seconds = 2 * seconds
