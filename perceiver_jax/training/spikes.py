"""Spikes of the loss: when there is one, and where the run then goes on. Pure; training/loop.py acts on it.

After PaLM (2204.02311, section 5.1): its authors went back to a checkpoint from before the spike and left out the
batches seen around it, and the spike did not return. The same batches did no harm to other parameters.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from perceiver_jax.types import NumericsError

NUM_WINDOWS = 10                            # log windows that say what is usual
NUMBER = 'rewind/number'                    # in the log: how manieth


class Past(NamedTuple):
  """What decides, beside the steps to come, whether a run goes back and how it goes on; every checkpoint holds it."""

  offset: int = 0                           # the step after s steps takes batch s + offset
  num_rewinds: int = 0
  losses: tuple[float, ...] = ()            # of the last windows, at most NUM_WINDOWS, the newest last


class Spike(NamedTuple):
  """The window that ended at `step` had a mean loss far above the usual one; `past` is what came before it."""

  step: int
  loss: float
  usual: float
  past: Past


def read(extras: Mapping[str, Any]) -> Past:
  """The past among what a checkpoint holds, {'past': past._asdict()} in JSON; that of a run at its start without it."""
  saved = extras.get('past', {})
  return Past(**{**saved, 'losses': tuple(saved.get('losses', ()))})


def judge(past: Past, step: int, loss: float, factor: float | None) -> tuple[Past, Spike | None]:
  """The past once the window that ends at `step` belongs to it, and the spike that the window is, if it is one.

  Args:
    past: of all windows before.
    step: number of steps taken.
    loss: the window's mean, above 0; NaN, if all its steps were skipped, counts for nothing.
    factor: a loss above this times the median of the last NUM_WINDOWS windows is a spike; None looks for none. There is
      none before that many windows.
  """
  if factor is None or math.isnan(loss):
    return past, None
  if len(past.losses) == NUM_WINDOWS:
    usual = statistics.median(past.losses)
    if loss > factor * usual:
      return past, Spike(step, loss, usual, past)
  return past._replace(losses=(*past.losses, loss)[-NUM_WINDOWS:]), None


def check(spike: Spike, rewind: ConfigDict) -> None:
  """Raises NumericsError where the run has gone back as often as config.rewind allows."""
  if spike.past.num_rewinds >= rewind.max_rewinds:
    raise NumericsError(
      f'train/loss is {spike.loss:.4g} at step {spike.step}, more than {rewind.factor} times the usual '
      f'{spike.usual:.4g}, and the run has gone back rewind.max_rewinds={rewind.max_rewinds} times already.\n'
      'Lower optimizer.peak_lr, or look at the data. Checkpoints from before are intact.')


def start(config: ConfigDict, step: int) -> int:
  """The number of steps before the log window that holds `step`."""
  return (step - 1) // config.log.every_steps * config.log.every_steps


def target(config: ConfigDict, step: int) -> int:
  """Where a run goes back to should the window that holds `step` be a spike: a saved step before the window, or 0.

  Of those steps that every run of this config saves: where an interruption saved must not matter.
  """
  return max(
    start(config, step) // every * every for every in (config.checkpoint.every_steps, config.eval.every_steps))


def rewound(spike: Spike, step: int, restored: Past) -> Past:
  """The past of a run that goes back to `step`: there it takes the batch that would have followed the spike.

  `restored` is the past that it had there: what is usual then is usual again.
  """
  return Past(spike.past.offset + spike.step - step, spike.past.num_rewinds + 1, restored.losses)


def line(spike: Spike, past: Past) -> dict[str, float]:
  """What the log says of a rewind, at the step where the run goes on with `past`."""
  return {NUMBER: past.num_rewinds, 'rewind/from_step': spike.step, 'rewind/loss': spike.loss,
          'rewind/usual_loss': spike.usual, 'rewind/offset': past.offset}
