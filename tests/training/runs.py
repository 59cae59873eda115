"""Runs in processes of their own: what the tests of accidents start, and what they look at when it has ended."""

from __future__ import annotations

import pathlib
from typing import NamedTuple

from benchmarks.survive import ROOT, TINY, started
from perceiver_jax.runs.checkpoint import saved_steps

NUM_STEPS = 6  # of TINY


class Ended(NamedTuple):
  """A process that has ended, and the steps whose checkpoints it left."""

  exit_code: int
  out: str
  err: str
  steps: list[int]


def start(program: list[str], workdir: pathlib.Path, *arguments: str, num_devices: int = 2) -> Ended:
  """Any program of ours, to its end."""
  with started([*program, f'--workdir={workdir}', *arguments], num_devices=num_devices) as (_, wait):
    return Ended(*wait(), saved_steps(workdir / 'checkpoints'))


def train(workdir: pathlib.Path, *arguments: str) -> Ended:
  """train.py."""
  return start([str(ROOT / 'train.py')], workdir, *TINY, *arguments)


def train_until(what: str, split: str, step: int, workdir: pathlib.Path, *arguments: str, hours: int = 0) -> Ended:
  """train.py with an accident: see accidents.py."""
  program = [str(pathlib.Path(__file__).with_name('accidents.py')), what, split, str(step), str(hours)]
  return start(program, workdir, *TINY, *arguments)


def files(workdir: pathlib.Path) -> dict[str, bytes]:
  """Everything in it."""
  return {str(path.relative_to(workdir)): path.read_bytes() for path in workdir.rglob('*') if path.is_file()}
