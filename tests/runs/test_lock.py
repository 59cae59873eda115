"""Real processes that want the same workdir."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import pathlib
import signal
import socket
import subprocess
import sys

import pytest

from perceiver_jax.runs.lock import lock
from perceiver_jax.types import UserError

ROOT = pathlib.Path(__file__).resolve().parents[2]
HOLD = """
import os, signal, subprocess, sys
from perceiver_jax.runs.lock import lock
def _fork():
  reader, writer = os.pipe()
  child = os.fork()
  if not child:
    os.close(1)  # or who reads it would wait for the child
    os.write(writer, b'-')
    signal.pause()
  os.read(reader, 1)
  return child
with lock(sys.argv[1]):
  child = {child}
  print(child, flush=True)
  sys.stdin.read()
"""


@contextlib.contextmanager
def _holder(workdir: pathlib.Path, child: str = '0'):
  """Another process that holds the lock, and the process number of its child."""
  with subprocess.Popen([sys.executable, '-c', HOLD.format(child=child), str(workdir)], cwd=ROOT, text=True,
                        stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
    try:
      assert process.stdout
      yield process, int(process.stdout.readline())
    finally:
      process.kill()


def test_a_second_process_is_refused_and_told_who_holds_the_workdir(tmp_path):
  with _holder(tmp_path / 'run') as (process, _), pytest.raises(UserError) as refusal, lock(tmp_path / 'run'):
    pass
  assert str(refusal.value) == (
    f'another run is writing to {tmp_path}/run (pid {process.pid} on {socket.gethostname()}); '
    'stop it, or choose another --workdir')


def test_a_refused_process_leaves_the_holder_its_lock_and_its_name(tmp_path):
  with _holder(tmp_path) as (process, _):
    for _ in range(2):
      with pytest.raises(UserError, match=f'pid {process.pid} on'), lock(tmp_path):
        pass


def test_a_killed_process_leaves_no_lock(tmp_path):
  with _holder(tmp_path) as (process, _):
    process.kill()
    process.wait()
  assert (tmp_path / 'lock').read_text().startswith(f'pid {process.pid} on ')
  with lock(tmp_path):
    assert (tmp_path / 'lock').read_text() == f'pid {os.getpid()} on {socket.gethostname()}\n'


@pytest.mark.parametrize('child', [
  'subprocess.Popen(["sleep", "60"], close_fds=False, stdout=subprocess.DEVNULL).pid',
  '_fork()',
], ids=['executed', 'forked'])
def test_a_child_that_outlives_a_run_does_not_hold_its_lock(tmp_path, child):
  with _holder(tmp_path, child) as (process, number):
    try:
      process.kill()
      process.wait()
      os.kill(number, 0)  # it lives
      with lock(tmp_path):
        pass
    finally:
      os.kill(number, signal.SIGKILL)


def test_the_same_process_may_take_the_lock_again_once_it_let_go_of_it(tmp_path):
  for _ in range(2):
    with lock(tmp_path), pytest.raises(UserError, match=f'pid {os.getpid()} on'), lock(tmp_path):
      pass


def test_a_workdir_that_cannot_be_written_is_refused(tmp_path):
  (tmp_path / 'lock').mkdir()
  with pytest.raises(UserError, match=r'cannot write .*/lock: Is a directory'), lock(tmp_path):
    pass


def test_a_file_system_without_locks_is_warned_of_and_used(tmp_path, monkeypatch, caplog):
  def flock(file: int, operation: int) -> None:
    raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

  monkeypatch.setattr(fcntl, 'flock', flock)
  with lock(tmp_path), lock(tmp_path):
    pass
  assert f'{tmp_path}/lock cannot be locked (No locks available)' in caplog.text
