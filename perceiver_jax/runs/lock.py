"""One run to a workdir: the second one that is started there is refused."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from absl import logging

from perceiver_jax.types import UserError

LOCK = 'lock'
_WITHOUT_LOCKS = (errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.ENOSYS)

_held: set[int] = set()  # file descriptors


@contextlib.contextmanager
def lock(workdir: str | os.PathLike) -> Iterator[None]:
  """While this context is open, no other process (and no second context of this one) can hold the same workdir.

  The system lets go of the lock when the process ends, however it ends. So `workdir`/lock is never deleted, and that it
  exists says nothing; what it says, 'pid 4711 on host', is for people. Children of the process do not hold the lock.
  Where the file system has no locks, this is logged, and nothing is locked.

  Args:
    workdir: the folder of the run; made where missing.

  Raises:
    UserError: another run holds it, or `workdir`/lock cannot be written.
  """
  path = Path(workdir, LOCK)
  for folder in path.parents:
    if folder.exists() and not folder.is_dir():
      raise UserError(f'{workdir} cannot hold a run: {folder} is a file, and not a folder; choose another --workdir')
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)  # NFS locks only what is open for writing
  except OSError as error:
    raise UserError(f'cannot write {path}: {error.strerror}') from error
  _held.add(file)
  try:
    _acquire(file, path)
    yield
  finally:
    if file in _held:  # a forked child that comes by has closed it
      _held.remove(file)
      os.close(file)


def _acquire(file: int, path: Path) -> None:
  try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError as error:
    holder = os.pread(file, 1000, 0).decode(errors='replace').strip() or 'pid unknown'
    raise UserError(
      f'another run is writing to {path.parent} ({holder}); stop it, or choose another --workdir') from error
  except OSError as error:
    if error.errno not in _WITHOUT_LOCKS:
      raise UserError(f'cannot lock {path}: {error.strerror}') from error
    logging.warning('%s cannot be locked (%s): see to it that no other run writes there', path, error.strerror)
  with contextlib.suppress(OSError):  # a full disk; the lock holds without it
    os.ftruncate(file, 0)
    os.pwrite(file, f'pid {os.getpid()} on {socket.gethostname()}\n'.encode(), 0)


def _let_go() -> None:
  """In a forked child, which would hold the lock as long as it lives. What is executed anew has the file closed."""
  for file in _held:
    os.close(file)
  _held.clear()


os.register_at_fork(after_in_child=_let_go)
