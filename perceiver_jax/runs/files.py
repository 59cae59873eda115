"""What Orbax and TensorStore say of a disk that is full: ten tracebacks and two thousand characters, made one line."""

from __future__ import annotations

import contextlib
import logging as std_logging
import os
import re
import sys
from collections.abc import Iterator

from absl import logging

from perceiver_jax.types import UserError


@contextlib.contextmanager
def disk_errors(what: str) -> Iterator[None]:
  """Turns what the system refuses into a UserError, `what: No space left on device`."""
  try:
    yield
  except (OSError, ValueError) as error:  # TensorStore says ValueError when the disk is full
    line = str(error).splitlines()[0]
    system = re.search(r'([^:\[]+) \[os_error_code=', line)
    raise UserError(f'{what}: {system[1].strip() if system else line}') from error


def quiet_orbax() -> None:
  """Silences what is printed about a save that fails, as `disk_errors` tells it; for the rest of the process."""
  logging.get_absl_logger().addFilter(_is_not_orbax_failing)
  std_logging.getLogger('asyncio').addFilter(_is_not_another_write)
  if sys.unraisablehook is not _show_unless_from_closed_loop:
    _previous_hooks.append(sys.unraisablehook)
    sys.unraisablehook = _show_unless_from_closed_loop


_previous_hooks = [sys.__unraisablehook__]


def _is_not_orbax_failing(record: std_logging.LogRecord) -> bool:
  return record.levelno < std_logging.ERROR or f'{os.sep}orbax{os.sep}' not in record.pathname


def _is_not_another_write(record: std_logging.LogRecord) -> bool:
  """Whether it is something else than a write of TensorStore that failed after the first, for which Orbax waited."""
  exception = record.exc_info[1] if record.exc_info else None
  return not (isinstance(exception, ValueError) and str(exception).startswith('RESOURCE_EXHAUSTED'))


def _show_unless_from_closed_loop(unraisable: sys.UnraisableHookArgs) -> None:
  """TensorStore reports here each of its writes that fails after the first, for which Orbax no longer waits."""
  if not isinstance(unraisable.exc_value, RuntimeError) or str(unraisable.exc_value) != 'Event loop is closed':
    _previous_hooks[-1](unraisable)
