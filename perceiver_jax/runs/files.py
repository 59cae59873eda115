"""Files of a run: paths that Orbax can take, atomic writes, and errors of the disk in one line."""

from __future__ import annotations

import contextlib
import logging as std_logging
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from absl import logging

from perceiver_jax.types import UserError


def write_atomically(path: str | os.PathLike, text: str) -> None:
  """Writes a file in one move: a kill leaves the old one or the new one. Raises OSError."""
  path = Path(path)
  unfinished = path.with_name(f'{path.name}.{os.getpid()}.tmp')
  unfinished.write_text(text, encoding='utf-8')
  unfinished.replace(path)


def check_local(what: str, path: str | os.PathLike | None) -> None:
  """Raises UserError for the address of a storage in place of a path: a run needs locks, renames and appends.

  Args:
    what: the flag or the key, for the message.
    path: as a person gave it; None is fine.
  """
  scheme, found, rest = str(path or '').partition('://')
  if not found or not re.fullmatch('[A-Za-z][A-Za-z0-9+.-]*', scheme):
    return
  advice = {
    'gs': f'mount it (gcsfuse {rest.partition("/")[0]} /mnt/bucket) or copy it (gsutil -m cp -r)',
    's3': f'mount it (mount-s3 {rest.partition("/")[0]} /mnt/bucket) or copy it (aws s3 cp --recursive)',
    'file': f'leave out the scheme: {rest}',
  }.get(scheme.lower(), 'mount it, or copy it to a disk of this machine')
  raise UserError(
    f'{what}={path} is an address, and only paths of this machine serve: {advice}; see docs/operations.md')


@contextlib.contextmanager
def plain_path(directory: Path) -> Iterator[Path]:
  """Gives a directory a name that Orbax and TensorStore take as it is: some characters are patterns to them.

  It is a symbolic link to the directory, which need not exist yet, where its own name will not do.
  """
  if re.fullmatch(r'[\w/. +=,:@~-]*', str(directory)):
    yield directory
    return
  with tempfile.TemporaryDirectory(prefix='perceiver_jax') as folder:
    link = Path(folder, 'directory')
    link.symlink_to(directory.absolute(), target_is_directory=True)
    yield link


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
