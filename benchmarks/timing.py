"""Times that can be compared: of calls that take turns, round by round, on cores that stay the same.

A ratio is of two calls of one round, one soon after the other, so that what else the machine does counts for little;
then its median over rounds, minimum and maximum.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import pathlib
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from tqdm import tqdm

from perceiver_jax.types import UserError

LONG_ENOUGH = 1.0  # seconds; what takes less is called several times a measurement, as the first finds caches cold


class Taken(NamedTuple):
  """What one call took."""

  seconds: float      # by the clock
  cpu_seconds: float  # of this process's threads: steadier where others use the machine


Figure = dict[str, float]  # median, min, max


def figure(values: Sequence[float]) -> Figure:
  return {'median': statistics.median(values), 'min': min(values), 'max': max(values)}


def ratios(ones: Sequence[float], others: Sequence[float]) -> Figure:
  """Of ones to others, each to that of its own round."""
  return figure([one / other for one, other in zip(ones, others, strict=True)])


def take(call: Callable[[], Any], num_calls: int = 1) -> Taken:
  """What one of `num_calls` calls, one after the other, takes on average; `call` returns when its work is done."""
  cpu, start = time.process_time(), time.perf_counter()
  for _ in range(num_calls):
    call()
  seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu
  return Taken(seconds / num_calls, cpu_seconds / num_calls)


def measured(call: Callable[[], Any]) -> Callable[[], Taken]:
  """A measurement of `call`, which is called twice now: so that it is warm, and to see how often it is to be called."""
  call()
  num_calls = max(1, round(LONG_ENOUGH / max(take(call).seconds, 1e-9)))
  return lambda: take(call, num_calls)


def in_turns(measures: Mapping[str, Callable[[], Taken]], repeats: int, title: str) -> dict[str, list[Taken]]:
  """{name: what it took, one per round}; what is measured is warm already."""
  taken: dict[str, list[Taken]] = {name: [] for name in measures}
  for _ in tqdm(range(repeats), desc=title, unit='round'):
    for name, measure in measures.items():
      taken[name].append(measure())
  return taken


@contextlib.contextmanager
def cores(num_cores: int | None) -> Iterator[None]:
  """Keeps to the last `num_cores` of those this process may use, with what is started inside; None keeps all.

  XLA and OpenMP make as many threads as there are cores left, if they have not begun. Raises UserError.
  """
  if num_cores is None:
    yield
    return
  if not hasattr(os, 'sched_setaffinity'):
    raise UserError('--threads needs a system that keeps a process on some cores, as Linux does; leave it out here')
  before = os.sched_getaffinity(0)
  if not 1 <= num_cores <= len(before):
    raise UserError(f'--threads={num_cores}, but there are {len(before)} cores to use')
  os.sched_setaffinity(0, sorted(before)[-num_cores:])
  try:
    yield
  finally:
    os.sched_setaffinity(0, before)


def add_flags(parser: argparse.ArgumentParser, name: str) -> None:
  """--repeats, --json, and --threads, which every measurement of time has."""
  path = pathlib.Path(__file__).parent / 'results' / f'{name}.json'
  parser.add_argument('--repeats', type=positive, default=5, help='rounds; figures are their medians')
  parser.add_argument('--json', type=pathlib.Path, default=path, help='the file to write')
  parser.add_argument('--threads', type=positive, help='keeps to as many cores; by default all')


def positive(text: str) -> int:
  """A flag's whole number, at least 1. Raises ValueError."""
  if int(text) < 1:
    raise ValueError(text)
  return int(text)


def positives(text: str) -> list[int]:
  """A flag's '56,112'. Raises ValueError."""
  return [positive(word) for word in text.split(',')]


def say(text: str) -> None:
  """A line of progress, which is none of the results."""
  print(text, file=sys.stderr, flush=True)


def table(columns: Mapping[str, Callable[[Any], Any]], rows: Sequence[Any]) -> str:
  """Markdown: of each row every column's value, None as –, numbers to three digits."""
  lines = ['| ' + ' | '.join(columns) + ' |', '|---' * len(columns) + '|']
  return '\n'.join([*lines, *('| ' + ' | '.join(_cell(get(row)) for get in columns.values()) + ' |' for row in rows)])


def _cell(value: Any) -> str:
  if value is None:
    return '–'
  if not isinstance(value, float):
    return str(value)
  return f'{value:.3g}' if abs(value) < 1000 else f'{value:,.0f}'


def spread(value: Figure) -> str:
  """'2.1 (1.9 to 2.2)'"""
  return f'{_cell(value["median"])} ({_cell(value["min"])} to {_cell(value["max"])})'
