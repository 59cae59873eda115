"""Runs in processes of their own: what the tests of accidents start, and what they look at when it has ended."""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from benchmarks.survive import ROOT, TINY, started
from perceiver_jax.data import pipeline
from perceiver_jax.data.dataset import Dataset, Numbers
from perceiver_jax.runs.checkpoint import saved_steps
from perceiver_jax.types import Spec

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


def read_when_asked(monkeypatch) -> None:
  """Lets the pipeline make each batch when it is asked for, not ahead: what happens in a batch happens at its step."""
  monkeypatch.setattr(
    pipeline, '_read_ahead', lambda batch_at, steps, num_threads: (batch_at(step) for step in steps))


def of_batches(
  make: Callable[[str, int, int], dict[str, np.ndarray]], spec: Spec, *, train_size: int, eval_size: int,
) -> Callable[..., Dataset]:
  """Returns `Task.dataset` of made-up data: make(split, number, size) -> {name: [size, ...]}; 2 batches to evaluate."""
  def dataset(split: str, *, is_training: bool) -> Dataset:
    size, made = train_size if is_training else eval_size, {}

    def prepare(record: int, *, random: np.random.Generator, position: int, step: int) -> dict[str, np.ndarray]:
      number, row = divmod(position, size)
      if row == 0 or number not in made:    # made anew in each evaluation, and by several threads at once
        made[number] = make(split, number, size)
      return {name: made[number][name][row] for name in spec}

    return Dataset(Numbers(size if is_training else 2 * size), spec, prepare)

  return dataset
