"""Signals, sent to this very process."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap

import pytest

from perceiver_jax.processes.interruption import Interruption


@pytest.fixture(autouse=True)
def handlers():
  """Handlers that tell what they caught, in place of ending the tests; put back afterwards."""
  caught: list[int] = []
  before = {number: signal.signal(number, lambda number, frame: caught.append(number))
            for number in (signal.SIGINT, signal.SIGTERM)}
  yield caught
  for number, handler in before.items():
    signal.signal(number, handler)


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_asks_and_the_second_has_its_usual_effect(handlers, capfd, number):
  with Interruption() as interruption:
    assert interruption.requested is None
    signal.raise_signal(number)
    assert (interruption.requested, handlers) == (signal.Signals(number).name, [])
    said = capfd.readouterr().err
    assert said.startswith(f'\n{signal.Signals(number).name}: saving') and said.count('\n') == 2
    signal.raise_signal(number)
    assert handlers == [number]
  assert interruption.requested == signal.Signals(number).name


def test_a_second_signal_of_the_other_kind_only_asks_again(handlers):
  with Interruption() as interruption:
    signal.raise_signal(signal.SIGTERM)
    signal.raise_signal(signal.SIGINT)
    assert (interruption.requested, handlers) == ('SIGINT', [])


def test_a_second_interruption_by_hand_ends_the_program():
  signal.signal(signal.SIGINT, signal.default_int_handler)
  with Interruption(), pytest.raises(KeyboardInterrupt):
    signal.raise_signal(signal.SIGINT)
    signal.raise_signal(signal.SIGINT)
  assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize('is_requested', [False, True])
def test_handlers_are_put_back_even_after_an_error(handlers, is_requested):
  before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
  with pytest.raises(RuntimeError), Interruption():
    assert signal.getsignal(signal.SIGINT) != before[0]
    if is_requested:
      signal.raise_signal(signal.SIGTERM)
    raise RuntimeError
  assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
  signal.raise_signal(signal.SIGTERM)
  assert handlers == [signal.SIGTERM]


# The C library's sleep is like a compilation: Python answers no signal while it lasts.
BUSY = textwrap.dedent("""
  import ctypes, os, signal, sys
  from perceiver_jax.processes.interruption import Interruption

  with Interruption() as interruption, interruption.at_once():
    if len(sys.argv) > 1:
      os.kill(os.getpid(), int(sys.argv[1]))
      ctypes.CDLL(None).sleep(60)
  print('over')
""")


@pytest.mark.slow
@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_process_at_once_where_nothing_can_be_lost(number):
  done = subprocess.run(
    [sys.executable, '-c', BUSY, str(int(number))], capture_output=True, text=True, check=False, timeout=50)
  assert (done.returncode, done.stdout) == (75, ''), done.stderr
  assert done.stderr == (
    f'\n{number.name}: stopped while compiling; nothing is lost. The same command starts again.\n')


@pytest.mark.slow
def test_without_a_signal_it_all_goes_on():
  done = subprocess.run([sys.executable, '-c', BUSY], capture_output=True, text=True, check=False, timeout=50)
  assert (done.returncode, done.stdout, done.stderr) == (0, 'over\n', '')


def test_a_signal_after_what_could_not_be_interrupted_asks_again(handlers, capfd):
  with Interruption() as interruption:
    with interruption.at_once():
      pass
    signal.raise_signal(signal.SIGTERM)
    assert (interruption.requested, handlers) == ('SIGTERM', [])
    assert 'saving and stopping' in capfd.readouterr().err
