"""Ctrl-C and SIGTERM: asked for once, a run ends after the step under way, saved; asked twice, at once.

Of several processes any one may be asked, and all end after the same step.
"""

from __future__ import annotations

import collections
import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from perceiver_jax.processes import parallel

INTERRUPTED = 75  # exit code


class Interruption:
  """While this context is open, SIGINT and SIGTERM set `requested` (the signal's name) and do nothing else.

  A second signal of the same kind has its usual effect. Must be entered in the main thread.
  """

  def __init__(self) -> None:
    self.requested: str | None = None
    self._previous: dict[int, Any] = {}
    self._ends_at_once = False

  def __enter__(self) -> Interruption:
    for number in (signal.SIGINT, signal.SIGTERM):
      self._previous[number] = signal.signal(number, self._request)
    return self

  def _request(self, number: int, frame: FrameType | None) -> None:
    self.requested = signal.Signals(number).name
    signal.signal(number, self._previous[number])
    if not self._ends_at_once:
      # Not print: a handler may have interrupted one.
      os.write(2, f'\n{self.requested}: saving and stopping after this step. Again stops at once.\n'.encode())

  @contextlib.contextmanager
  def at_once(self) -> Iterator[None]:
    """While this is open, as long as there is nothing to lose, the first signal ends the process with INTERRUPTED.

    Python answers a signal only between two of its own instructions, and a compilation is minutes inside one. The
    signal's number goes down a pipe at once, though, and another thread can wait at its end.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    previous = signal.set_wakeup_fd(writer)
    watcher = threading.Thread(target=_end_when_told, args=(reader,), daemon=True)
    watcher.start()
    self._ends_at_once = True
    try:
      yield
    finally:
      self._ends_at_once = False
      signal.set_wakeup_fd(previous)
      os.close(writer)
      watcher.join()
      os.close(reader)

  def __exit__(self, *error: object) -> None:
    for number, handler in self._previous.items():
      signal.signal(number, handler)


class Agreement:
  """Whether the run is to end: one answer in all processes, which must ask equally often.

  A process alone has it at once. Several have it two questions later, so that none of them waits for the devices.
  """

  def __init__(self, interruption: Interruption) -> None:
    self._interruption = interruption
    self._asked: collections.deque[Callable[[], bool]] = collections.deque()
    self.reached = False

  def __call__(self) -> bool:
    self._asked.append(parallel.any_process(self._interruption.requested is not None))
    if len(self._asked) > 2 or parallel.num_processes() == 1:
      self.reached |= self._asked.popleft()()
    return self.reached

  @property
  def cause(self) -> str:
    """Names who asked, for people: 'SIGTERM', or 'a signal to another process'."""
    return self._interruption.requested or 'a signal to another process'


def _end_when_told(reader: int) -> None:
  while number := os.read(reader, 1):  # nothing once the other end is closed
    if number[0] in (signal.SIGINT, signal.SIGTERM):
      name = signal.Signals(number[0]).name
      os.write(2, f'\n{name}: stopped while compiling; nothing is lost. The same command starts again.\n'.encode())
      os._exit(INTERRUPTED)
