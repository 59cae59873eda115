"""Training processes that are killed at random and started again: what they end with, and what of it was lost.

`survive` is one run of `train.py` and its accidents; `differences` says how two runs' ends differ. The tests and
`benchmarks/soak.py` share them.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from perceiver_jax.config.saved import load_config
from perceiver_jax.runs.checkpoint import Checkpoints, saved_steps
from perceiver_jax.runs.log import read_history
from perceiver_jax.runs.workdir import FINISHED_MARK
from perceiver_jax.tasks import image_classification
from perceiver_jax.training.experiment import build
from perceiver_jax.types import TrainState

ROOT = Path(__file__).resolve().parents[1]

# Dropout, a moving average, micro-batches, a window of metrics that a restart cuts: all that a resume must carry over.
TINY = [
  f'--config={ROOT}/configs/digits.py:debug', '--config.num_steps=6', '--config.batch_size=8',
  '--config.micro_batches=2', '--config.ema_decay=0.9', '--config.optimizer.warmup_steps=1',
  '--config.checkpoint.every_steps=2', '--config.eval.every_steps=3', '--config.log.every_steps=4',
  '--config.model.num_latents=2', '--config.model.latent_channels=8', '--config.model.num_blocks=1',
  '--config.model.query_channels=8', '--config.model.dropout_prob=0.1', '--config.model.attention_dropout_prob=0.1',
]

PATIENCE = 1800.0                           # seconds, after which a process hangs
TRAINING, SAVE = 'while training', 'during a save'  # moments


class Fault(NamedTuple):
  """A signal, and when it comes."""

  signal: signal.Signals
  moment: str

  def __str__(self) -> str:
    return f'{self.signal.name} {self.moment}'


class Ended(NamedTuple):
  """A process that has ended."""

  exit_code: int
  out: str
  err: str


class Accident(NamedTuple):
  """A fault that came: where the run stood by its log, the newest whole checkpoint, and the number of devices."""

  fault: Fault
  reached: int
  saved: int
  num_devices: int


class Violation(Exception):
  """A run did not survive as it must."""


def wait_for(process: subprocess.Popen, is_true: Callable[[], bool]) -> bool:
  """Returns whether it came true before the process ended."""
  while process.poll() is None:
    if is_true():
      return True
    time.sleep(0.001)
  return False


@contextlib.contextmanager
def started(
  command: Sequence[str | Path], *, num_devices: int = 2,
) -> Iterator[tuple[subprocess.Popen, Callable[[], Ended]]]:
  """A Python program in a process of its own, and what waits for its end; killed where the context is left before."""
  environment = {
    **os.environ, 'XLA_FLAGS': f'--xla_force_host_platform_device_count={num_devices}', 'PYTHONPATH': str(ROOT),
    'JAX_PLATFORMS': 'cpu', 'JAX_DISABLE_MOST_OPTIMIZATIONS': '1'}
  with (
    tempfile.TemporaryFile('w+') as out, tempfile.TemporaryFile('w+') as err,
    subprocess.Popen([sys.executable, *command], stdout=out, stderr=err, env=environment) as process,
  ):
    def wait() -> Ended:
      try:
        code = process.wait(PATIENCE)
      except subprocess.TimeoutExpired as error:
        raise Violation(f'{" ".join(map(str, command))} does not end') from error
      out.seek(0)
      err.seek(0)
      return Ended(code, out.read(), err.read())

    try:
      yield process, wait
    finally:
      process.kill()


def leave_alone(workdir: Path, *arguments: str) -> float:
  """Runs train.py to its end; returns how many seconds it was at work, its start not counted."""
  with started([ROOT / 'train.py', f'--workdir={workdir}', *arguments]) as (process, wait):
    _await(TRAINING, process, workdir, 0)
    start, ended = time.monotonic(), wait()
  if ended.exit_code:
    raise Violation(f'{workdir}: left alone, and ended with exit code {ended.exit_code}\n{ended.err}')
  return time.monotonic() - start


def survive(
  chance: random.Random, arguments: Sequence[str], workdir: Path, faults: Iterator[Fault], *, seconds: float,
  counts: Sequence[int] = (2,), told: Callable[[Accident], None] = lambda accident: None,
) -> list[Accident]:
  """Runs train.py through the `faults` to its end, and returns those that came before it.

  Args:
    chance: when each comes, and on how many devices each process runs.
    arguments: of train.py, but for the workdir.
    workdir: of the run.
    faults: what is to come, a process each; when there are no more, the run is left alone.
    seconds: how long a process is at most at work, its start not counted, before its fault or the save that it hits.
    counts: numbers of devices to choose from.
    told: called with each.

  Raises:
    Violation: a process ended otherwise than its fault says, did not go on at the newest checkpoint that was whole, or
      found a damaged one.
  """
  accidents: list[Accident] = []
  while True:
    fault, num_devices, newest = next(faults, None), chance.choice(counts), _newest(workdir)
    with started([ROOT / 'train.py', f'--workdir={workdir}', *arguments], num_devices=num_devices) as (process, wait):
      if fault and _await(fault.moment, process, workdir, chance.uniform(0, seconds)):
        process.send_signal(fault.signal)
      ended = wait()
    check_start(workdir, ended, newest)
    if ended.exit_code == 0:
      return accidents
    if not fault or ended.exit_code not in _exit_codes(fault, workdir):
      raise Violation(f'{workdir}: exit code {ended.exit_code} after {fault}\n{ended.err}')
    reached = max([_newest(workdir), *(int(line['step']) for line in read_history(str(workdir)))])
    accidents.append(Accident(fault, reached, _newest(workdir), num_devices))
    told(accidents[-1])


def _await(moment: str, process: subprocess.Popen, workdir: Path, seconds: float) -> bool:
  """Returns at that moment, after so many seconds of work; False if the process ended before."""
  lock = workdir / 'lock'
  if not wait_for(process, lambda: lock.exists() and f'pid {process.pid} ' in lock.read_text()):
    return False
  end = time.monotonic() + seconds
  return wait_for(process, lambda: time.monotonic() > end and (
    moment == TRAINING or any((workdir / 'checkpoints').glob('*.orbax-checkpoint-tmp'))))


def check_start(workdir: Path, ended: Ended, newest: int) -> None:
  """Raises Violation where a process that has ended did not go on at step `newest`, or met a damaged checkpoint."""
  found = re.search(r'^Resuming at step (\d+) of', ended.err, re.MULTILINE)
  resumed = int(found[1]) if found else 0
  is_right = resumed == newest or (not resumed and (ended.exit_code or 'has finished already' in ended.out))
  if not is_right or 'damaged' in ended.err:
    raise Violation(f'{workdir}: went on at step {resumed}, but {newest} was whole\n{ended.err}')


def _exit_codes(fault: Fault, workdir: Path) -> tuple[int, ...]:
  """What the process may end with. One that has written its last line no longer listens to SIGTERM."""
  has_finished = any(FINISHED_MARK in line for line in read_history(str(workdir)))
  return (75,) if fault.signal == signal.SIGTERM and not has_finished else (-fault.signal,)


def _newest(workdir: Path) -> int:
  return max(saved_steps(workdir / 'checkpoints'), default=0)


def figures(workdir: Path) -> list[dict[str, float]]:
  """The lines of metrics.jsonl, without times and rates."""
  return [{name: value for name, value in line.items() if not name.startswith('speed/')}
          for line in read_history(str(workdir))]


def last_state(workdir: Path) -> tuple[TrainState, dict[str, Any]]:
  """The state, of NumPy arrays, and the extras of a run's newest checkpoint."""
  config = load_config(workdir)
  template = jax.eval_shape(build(config, image_classification.make(config)).init)
  with Checkpoints(
    workdir / 'checkpoints', keep_last=config.checkpoint.keep_last, best=config.checkpoint.best,
  ) as checkpoints:
    restored = checkpoints.restore_latest(template)
  if not restored:
    raise Violation(f'{workdir} holds no checkpoint')
  return restored


def differences(workdir: Path, expected: Path) -> list[str]:
  """What of a run's end is not that of another, bit for bit: files, figures, entries of the state, extras."""
  (state, extras), (expected_state, expected_extras) = last_state(workdir), last_state(expected)
  pairs: dict[str, tuple[Any, Any]] = {
    'config.json': ((workdir / 'config.json').read_text(), (expected / 'config.json').read_text()),
    'the newest checkpoint': (_newest(workdir), _newest(expected)),  # older ones may be those of a SIGTERM
    'metrics.jsonl': (json.dumps(figures(workdir)), json.dumps(figures(expected))),  # NaN equals NaN
    'extras': (extras, expected_extras),
    'the tree of the state': (jax.tree.structure(state), jax.tree.structure(expected_state)),
  }
  leaves = zip(jax.tree_util.tree_leaves_with_path(state), jax.tree.leaves(expected_state), strict=False)
  return [name for name, (one, other) in pairs.items() if one != other] + [
    jax.tree_util.keystr(path) for (path, one), other in leaves
    if np.asarray(one).dtype != np.asarray(other).dtype or not np.array_equal(one, other)]
