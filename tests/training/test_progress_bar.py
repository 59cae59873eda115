"""What a person sees of a run and of a long evaluation: a bar on a terminal, lines elsewhere, no wrong rate."""

from __future__ import annotations

import math
import os
import pty
import re
import select
import sys
import termios
import time
from types import SimpleNamespace

import numpy as np
import pytest
import tqdm.std

from perceiver_jax.training import progress
from perceiver_jax.training.progress import Progress, counted


@pytest.fixture
def clock(monkeypatch):
  """A clock that is moved by hand."""
  clock = SimpleNamespace(now=100.0)
  monkeypatch.setattr(progress, 'time', SimpleNamespace(monotonic=lambda: clock.now))
  return clock


def _take(bar: Progress, clock, num_steps: int, seconds: float) -> None:
  for _ in range(num_steps):
    bar.advance()
  clock.now += seconds


def test_progress_prints_plain_lines_where_there_is_no_terminal(capsys, clock):
  values = {'train/loss': 1.23456, 'train/accuracy': 0.5, 'train/gradient_norm': 3.0}
  with Progress(first_step=10, num_steps=400, batch_size=64) as bar:
    bar.say('Compiling ...')
    _take(bar, clock, 1, seconds=60.0)
    bar.restart_clock(11)
    _take(bar, clock, 9, seconds=4.5)
    rates = bar.report(20, values)
    with bar.paused():
      clock.now += 1000.0
    _take(bar, clock, 10, seconds=2.5)
    bar.report(30, {'train/loss': math.nan})
    _take(bar, clock, 370, seconds=1.0)
    bar.report(400, {})
  assert rates == {'speed/examples_per_second': 128.0, 'speed/examples_per_second_per_device': 16.0}
  assert capsys.readouterr().err.splitlines() == [
    'Compiling ...',
    'step 20/400, ETA 3:10, 128 examples/s (16 a device), loss 1.235, accuracy 0.5',
    'step 30/400, ETA 1:32, 256 examples/s (32 a device), loss nan',
    'step 400/400, ETA 0:00, 23,680 examples/s (2,960 a device)',
  ]


def test_a_report_of_steps_that_were_not_timed_has_no_rate(capsys, clock):
  with Progress(first_step=10, num_steps=400, batch_size=64) as bar:
    _take(bar, clock, 1, seconds=60.0)
    bar.restart_clock(11)
    clock.now += 0.001
    assert bar.report(11, {'train/loss': 1.5}) == {}
    _take(bar, clock, 1, seconds=0.5)
    assert bar.report(12, {'train/loss': 1.5})['speed/examples_per_second'] == 128.0
  assert capsys.readouterr().err.splitlines() == [
    'step 11/400, loss 1.5', 'step 12/400, ETA 3:14, 128 examples/s (16 a device), loss 1.5']


def _read_all(keyboard: int) -> str:
  """What a terminal was sent; its other end is closed."""
  seen = b''
  while select.select([keyboard], [], [], 0.2)[0]:
    try:
      seen += os.read(keyboard, 2**16)
    except OSError:  # how Linux says that it is over
      break
  os.close(keyboard)
  return seen.decode()


def test_progress_prints_plain_lines_on_a_terminal_without_a_width(monkeypatch):
  keyboard, terminal = pty.openpty()
  termios.tcsetwinsize(terminal, (0, 0))
  with os.fdopen(terminal, 'w') as screen:
    monkeypatch.setattr(sys, 'stderr', screen)
    with Progress(first_step=2, num_steps=10, batch_size=64) as bar:
      bar.advance()
      time.sleep(0.01)
      bar.report(3, {'train/loss': 1.5})
  line = r'step 3/10, ETA \d:\d\d, [\d,]+ examples/s \([\d,]+ a device\), loss 1.5\r\n'
  assert re.fullmatch(line, _read_all(keyboard))


def test_a_clock_that_is_set_back_does_not_stop_the_bar(monkeypatch):
  keyboard, terminal = pty.openpty()
  termios.tcsetwinsize(terminal, (24, 80))
  now = SimpleNamespace(time=1e9)
  monkeypatch.setattr(tqdm.std, 'time', lambda: now.time)
  with os.fdopen(terminal, 'w') as screen:
    monkeypatch.setattr(sys, 'stderr', screen)
    with Progress(first_step=2, num_steps=10, batch_size=64) as bar:
      now.time -= 3600
      for _ in range(3):
        time.sleep(0.15)  # tqdm shows ten states a second at most
        bar.advance()
  shown = _read_all(keyboard)
  assert '4/10' in shown and '-1:' not in shown


def _batches(num_batches: int):
  for index in range(num_batches):
    yield {'mask': np.array([1, 1, 1, 0.5 if index % 2 else 0], np.float32)}


def _evaluate(clock, *seconds: float) -> None:
  """Takes so long over each batch."""
  for _, each in zip(counted(_batches(len(seconds)), 'test'), seconds, strict=True):
    clock.now += each


def test_a_long_evaluation_tells_how_many_examples_are_through_ever_more_seldom(capsys, clock):
  _evaluate(clock, 100.0, *[4.0] * 20)
  assert capsys.readouterr().err.splitlines() == [
    'test: 14 examples, 1 examples/s', 'test: 24 examples, 1 examples/s', 'test: 45 examples, 1 examples/s']


def test_a_short_evaluation_is_quiet_however_long_its_first_batch_takes(capsys, clock):
  _evaluate(clock, 100.0, 4.0, 4.0)
  assert capsys.readouterr().err == ''
  _evaluate(clock)


def test_a_long_evaluation_has_a_bar_on_a_terminal_which_goes_away(monkeypatch):
  monkeypatch.setattr(progress, 'QUIET_SECONDS', 0.01)
  keyboard, terminal = pty.openpty()
  termios.tcsetwinsize(terminal, (24, 120))
  with os.fdopen(terminal, 'w') as screen:
    monkeypatch.setattr(sys, 'stderr', screen)
    for _ in counted(_batches(4), 'validation'):
      time.sleep(0.15)  # a bar is drawn ten times a second
  shown = _read_all(keyboard)
  assert re.search(r'validation: [\d.]+ examples \[\d\d:\d\d, .* examples/s\]', shown), shown
  assert shown.endswith('\r') and '\n' not in shown


def test_progress_is_a_bar_on_a_terminal(monkeypatch):
  keyboard, terminal = pty.openpty()
  termios.tcsetwinsize(terminal, (24, 120))
  with os.fdopen(terminal, 'w') as screen:
    monkeypatch.setattr(sys, 'stderr', screen)
    with Progress(first_step=2, num_steps=10, batch_size=64) as bar:
      bar.say('step 2: validation/loss 0.25')
      bar.advance()
      time.sleep(0.01)
      rates = bar.report(3, {'train/loss': 1.5})
    seen = b''
    while b'loss 1.5' not in seen and select.select([keyboard], [], [], 10)[0]:  # it arrives in parts
      seen += os.read(keyboard, 2**16)
  shown = seen.decode()
  os.close(keyboard)
  assert re.search(r'30%.*3/10 \[\d\d:\d\d<.*examples/s.*loss 1\.5', shown), shown  # 00:01<00:07 is past and to come
  assert '\r' in shown and 'step 2: validation/loss 0.25\r\n' in shown and 'ETA' not in shown
  assert rates['speed/examples_per_second'] > 0
