"""What every subject shares: how many cases there are, what one may cost, and what may come of it.

`make test` runs the same few thousand cases every time. `make fuzz` sets PERCEIVER_FUZZ to how many times as many,
which are new each time. A subject that reads a file leaves its last input in the folder that pytest keeps, for the
case of an input that ends the whole process.
"""

from __future__ import annotations

import contextlib
import functools
import os
import resource
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings

from perceiver_jax.types import UserError

TIMES = int(os.environ.get('PERCEIVER_FUZZ', '0'))
NUM_RUN: Counter[str] = Counter()           # cases, by the name of their test

# After which a case hangs: seconds of work of this process, and seconds on the clock of a machine that may be busy.
_TIMERS = ((signal.ITIMER_PROF, signal.SIGPROF, 20), (signal.ITIMER_REAL, signal.SIGALRM, 300))
_ADDRESSES = 4 * 2**30                      # [bytes] of new addresses; a thread of C takes 128 MiB of them untouched
_MEMORY = 2**29                             # [bytes] of new memory
_STATUS = Path('/proc/self/statm')          # Linux alone has it; elsewhere memory is not bounded


class Hang(BaseException):
  """Not an Exception, which the code under test could answer."""


def cases(
  number: int, memory: int = _MEMORY, **strategies: Any,
) -> Callable[[Callable[..., None]], Callable[..., None]]:
  """A decorator: `number` cases of a test, whose arguments are drawn from `strategies`; others are fixtures."""
  def decorate(test: Callable[..., None]) -> Callable[..., None]:
    @settings(
      max_examples=number * max(TIMES, 1), derandomize=not TIMES, database=None, deadline=None, print_blob=True,
      phases=(Phase.explicit, Phase.generate, Phase.shrink), suppress_health_check=list(HealthCheck))
    @given(**strategies)
    @functools.wraps(test)
    def counted(*arguments: Any, **drawn: Any) -> None:
      NUM_RUN[test.__name__] += 1
      with bounded(memory):
        test(*arguments, **drawn)
    return counted
  return decorate


@contextlib.contextmanager
def bounded(memory: int = _MEMORY) -> Iterator[None]:
  """Fails where what is inside takes more `memory` [bytes] at once, or does not end."""
  page = resource.getpagesize()
  addresses, resident = (int(word) * page for word in _STATUS.read_text().split()[:2]) if _STATUS.exists() else (0, 0)
  soft, hard = resource.getrlimit(resource.RLIMIT_AS)
  peak = _peak()
  handlers = [signal.signal(number, _stop) for _, number, _ in _TIMERS]
  if addresses:
    resource.setrlimit(resource.RLIMIT_AS, (addresses + _ADDRESSES, hard))
  for timer, _, seconds in _TIMERS:
    signal.setitimer(timer, seconds)
  try:
    yield
  except Hang:
    raise AssertionError('it does not end') from None
  finally:
    for (timer, number, _), handler in zip(_TIMERS, handlers, strict=True):
      signal.setitimer(timer, 0)
      signal.signal(number, handler)
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
  taken = _peak() - resident if addresses and _peak() > peak else 0
  assert taken <= memory, f'it took {taken / 2**20:,.0f} MiB'


def answer(call: Callable[..., Any], *arguments: Any) -> Any:
  """What `call` returns, or the UserError that it raises; any other exception is a finding."""
  try:
    return call(*arguments)
  except UserError as error:
    assert str(error)
    return error


def _peak() -> int:
  return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _stop(*_: Any) -> None:
  raise Hang
