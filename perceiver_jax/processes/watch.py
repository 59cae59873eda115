"""Processes of one run that watch each other, so that none waits for one that is gone.

By itself JAX notices a dead process after a timeout, and then ends the others without a word that would help. Here
every process keeps a connection to process 0. The system closes it at once when a process dies, whatever it died of,
and when its machine is gone for `timeout` seconds; then process 0 tells the others, and all end with a message. One
that fails says why first. Where no connection can be made, JAX's own way remains. A connection carries lines of JSON:

  {"process": 3}                                                 the first line, to process 0: who is there
  {"ended": "process 3 on host b", "code": 1, "why": "..."}      a process has failed; both ways
  {"ended": null}                                                this process has finished; both ways
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, NoReturn, TextIO

from absl import logging

from perceiver_jax.processes import parallel
from perceiver_jax.processes.interruption import INTERRUPTED
from perceiver_jax.types import NumericsError, UserError

HURRY_SECONDS = 5.0  # for a stranger to say who it is; for the others to hear what we say before we are gone


class Watch:
  """The connections of this process: to all others in process 0, to process 0 in the others."""

  def __init__(self, timeout: float) -> None:
    """Connects all processes, which must all call it; `timeout` in seconds, as above."""
    self._name = f'process {parallel.process_id()} on {socket.gethostname()}'
    self._lines: dict[str, socket.socket] = {}
    self._lock, self._is_over = threading.Lock(), False
    with parallel.listen() as server:
      _, port = parallel.from_first(lambda: (None, server.getsockname()[1]))
      try:
        if parallel.process_id() == 0:
          self._welcome(server, timeout)
        else:
          line = socket.create_connection((parallel.coordinator_host(), port), timeout)
          _send(line, {'process': self._name})
          self._follow('process 0', line, line.makefile(), timeout)
      except OSError as error:
        logging.warning(
          '%s cannot watch the others (%s): should one die, the rest will end only after minutes, and not say why.',
          self._name, error)

  def _welcome(self, server: socket.socket, timeout: float) -> None:
    server.settimeout(timeout)
    while len(self._lines) < parallel.num_processes() - 1:
      line, _ = server.accept()
      line.settimeout(HURRY_SECONDS)
      with contextlib.suppress(OSError, ValueError, TypeError, KeyError, RecursionError):  # a stranger
        reader = line.makefile()
        self._follow(str(json.loads(reader.readline(1000))['process']), line, reader, timeout)

  def _follow(self, name: str, line: socket.socket, reader: TextIO, timeout: float) -> None:
    _notice_silence(line, timeout)
    self._lines[name] = line
    threading.Thread(target=self._listen, args=(name, reader), daemon=True).start()

  def _listen(self, name: str, reader: TextIO) -> None:
    """Waits, all the run long, for what the other process has to say, or for its end."""
    with contextlib.suppress(OSError, ValueError):
      news = json.loads(reader.readline())
      if news['ended'] is None:
        return
      return self._end(news)
    self._end({'ended': name, 'code': INTERRUPTED, 'why': 'it died, or its machine is gone'})

  def _end(self, news: dict[str, Any]) -> None:
    with self._lock:  # the first to come here ends the process
      if self._is_over:
        return
      try:
        self._tell(news)
        print(
          f'\nerror: {news["ended"]} has ended: {news["why"]}\n{self._name} stops too. Once that is mended, start all '
          'processes again: the run goes on from its newest checkpoint.', file=sys.stderr, flush=True)
        self._wait_for_others()
      finally:  # also where nobody reads stderr any more
        os._exit(news['code'])

  def _tell(self, news: dict[str, Any]) -> None:
    for line in self._lines.values():
      with contextlib.suppress(OSError):
        _send(line, news)
        line.shutdown(socket.SHUT_WR)

  def fail(self, error: BaseException, explain: Callable[[BaseException], int]) -> NoReturn:
    """Tells all processes that this one has failed, and ends it with the exit code that `explain` returns."""
    if not isinstance(error, UserError | NumericsError | KeyboardInterrupt):
      # A dying process breaks collectives elsewhere: wait, so that the original error is reported first.
      time.sleep(HURRY_SECONDS)
    code = 3
    try:
      with self._lock:
        self._is_over = True
        code = explain(error)
        self._tell({'ended': self._name, 'code': code, 'why': str(error) or type(error).__name__})
      self._wait_for_others()
    finally:
      os._exit(code)

  def _wait_for_others(self) -> None:
    """Waits until the others have closed their ends: a process that ends breaks the collectives of the rest."""
    deadline = time.monotonic() + HURRY_SECONDS
    for line in self._lines.values():
      with contextlib.suppress(OSError):
        line.settimeout(max(0.0, deadline - time.monotonic()))
        while line.recv(1000):
          pass

  def finish(self) -> None:
    """Tells all processes that this one has done its part."""
    with self._lock:
      self._is_over = True
      self._tell({'ended': None})


def _send(line: socket.socket, news: dict[str, Any]) -> None:
  line.sendall(json.dumps(news).encode() + b'\n')


def _notice_silence(line: socket.socket, timeout: float) -> None:
  """Lets the system ask whether the other machine is still there, so that reading fails when it is not."""
  line.settimeout(None)
  line.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
  # Asked after half the time, and then three times more.
  for option, value in (('TCP_KEEPIDLE', timeout / 2), ('TCP_KEEPINTVL', timeout / 6), ('TCP_KEEPCNT', 3)):
    if hasattr(socket, option):  # not everywhere
      line.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), max(1, round(value)))
