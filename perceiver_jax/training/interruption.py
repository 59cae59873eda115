"""Ctrl-C and SIGTERM: asked for once, a run ends after the step under way, saved; asked twice, at once."""

from __future__ import annotations

import os
import signal
from types import FrameType
from typing import Any


class Interruption:
  """While this context is open, SIGINT and SIGTERM set `requested` (the signal's name) and do nothing else.

  A second signal of the same kind has its usual effect. Must be entered in the main thread.
  """

  def __init__(self) -> None:
    self.requested: str | None = None
    self._previous: dict[int, Any] = {}

  def __enter__(self) -> Interruption:
    for number in (signal.SIGINT, signal.SIGTERM):
      self._previous[number] = signal.signal(number, self._request)
    return self

  def _request(self, number: int, frame: FrameType | None) -> None:
    self.requested = signal.Signals(number).name
    signal.signal(number, self._previous[number])
    # Not print: a handler may have interrupted one.
    os.write(2, f'\n{self.requested}: saving and stopping after this step. Again stops at once.\n'.encode())

  def __exit__(self, *error: object) -> None:
    for number, handler in self._previous.items():
      signal.signal(number, handler)
