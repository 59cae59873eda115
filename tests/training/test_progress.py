"""What a run writes down: sums that survive a restart, and a log that can be cut back."""

from __future__ import annotations

import json
import math
import os
import pathlib
import resource
import struct
import subprocess
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from tensorboardX.proto import event_pb2

from perceiver_jax.config import overrides
from perceiver_jax.processes import parallel
from perceiver_jax.runs.log import Log, read_history
from perceiver_jax.training.progress import Window, summary
from perceiver_jax.types import UserError


@pytest.fixture
def config():
  return overrides.load('configs/digits.py:debug')


def _means(seed: int):
  random = np.random.default_rng(seed)
  names = ['loss', 'accuracy', *(['rare'] if seed % 2 else [])]
  return parallel.replicate({name: tuple(random.uniform(0, 1, 2).astype(np.float32)) for name in names})


def test_a_window_adds_up_sums_and_weights():
  window = Window()
  for total, weight in ((1.5, 2.0), (0.25, 0.0), (4.0, 1.0)):
    window.add(parallel.replicate({'loss': (np.float32(total), np.float32(weight))}))
  assert window.totals() == {'loss': (5.75, 3.0)} == window.totals()
  assert Window().totals() == {}


@pytest.mark.parametrize('num_before', [0, 1, 4, 7])
def test_a_window_that_is_saved_and_resumed_ends_with_the_same_bits(num_before):
  whole, before = Window(), Window()
  for seed in range(7):
    whole.add(_means(seed))
  for seed in range(num_before):
    before.add(_means(seed))
  after = Window(json.loads(json.dumps(before.totals())))
  for seed in range(num_before, 7):
    after.add(_means(seed))
  assert after.totals() == whole.totals() and set(whole.totals()) == {'loss', 'accuracy', 'rare'}


def _write(workdir: pathlib.Path, config, last_step: int, *lines: dict) -> None:
  with Log(str(workdir), config, last_step=last_step) as log:
    for line in lines:
      line = dict(line)
      log.write(line.pop('step'), line)


LINES = [{'step': step, 'train/loss': 1 / step} for step in range(1, 7)]


def test_each_line_is_on_disk_when_write_returns(tmp_path, config):
  with Log(str(tmp_path), config, last_step=0) as log:
    log.write(1, {'train/loss': 0.1, 'speed/examples_per_second': 3.0})
    log.write(1, {'validation/loss': 0.2})
    text = (tmp_path / 'metrics.jsonl').read_text()
  assert [json.loads(line) for line in text.splitlines()] == [
    {'step': 1, 'train/loss': 0.1, 'speed/examples_per_second': 3.0}, {'step': 1, 'validation/loss': 0.2}]
  assert read_history(tmp_path) == [json.loads(line) for line in text.splitlines()]
  assert read_history(tmp_path / 'tensorboard') == []


@pytest.mark.parametrize('last_step', [0, 1, 4, 6])
def test_a_log_is_cut_back_to_the_step_at_which_the_run_resumes(tmp_path, config, last_step):
  _write(tmp_path, config, 0, *LINES)
  whole = (tmp_path / 'metrics.jsonl').read_bytes()
  _write(tmp_path, config, last_step)
  assert read_history(tmp_path) == LINES[:last_step]
  _write(tmp_path, config, last_step, *LINES[last_step:])
  assert (tmp_path / 'metrics.jsonl').read_bytes() == whole


@pytest.mark.parametrize('rest', ['{"step": 3, "train/lo', '{"step": 3, "train/loss": 1.0}', '{'])
def test_a_last_line_cut_short_by_a_kill_is_left_out(tmp_path, config, rest):
  _write(tmp_path, config, 0, *LINES[:2])
  with (tmp_path / 'metrics.jsonl').open('a') as file:
    file.write(rest)
  assert read_history(tmp_path) == LINES[:2]
  _write(tmp_path, config, 6, LINES[2])
  assert read_history(tmp_path) == LINES[:3]


def test_what_is_not_a_finite_number_is_null_and_is_read_as_nan(tmp_path, config):
  line = {'step': 1, 'train/loss': math.nan, 'train/norm': math.inf, 'train/low': -math.inf, 'ok': 1.0}
  _write(tmp_path, config, 0, line)
  _write(tmp_path, config, 1)  # reads the line and writes it again
  text = (tmp_path / 'metrics.jsonl').read_text()
  assert text == '{"step": 1, "train/loss": null, "train/norm": null, "train/low": null, "ok": 1.0}\n'
  (line,) = read_history(tmp_path)
  assert [name for name, value in line.items() if math.isnan(value)] == ['train/loss', 'train/norm', 'train/low']


def _scalars(workdir: pathlib.Path) -> list[tuple[int, str, float]]:
  return [(event.step, value.tag, value.simple_value) for event in _events(workdir) for value in event.summary.value]


def _events(workdir: pathlib.Path) -> list[event_pb2.Event]:
  """Every event of every TensorBoard file: records of length, checksum, event, checksum."""
  events = []
  for path in sorted((workdir / 'tensorboard').iterdir(), key=lambda path: path.stat().st_mtime_ns):
    data, start = path.read_bytes(), 0
    while start < len(data):
      (size,) = struct.unpack_from('<Q', data, start)
      events.append(event_pb2.Event.FromString(data[start + 12:start + 12 + size]))
      start += 12 + size + 4
  return events


def test_tensorboard_gets_the_same_numbers(tmp_path, config):
  _write(tmp_path, config, 0, *({**line, 'train/norm': math.nan} for line in LINES))
  assert _scalars(tmp_path) == [(line['step'], 'train/loss', pytest.approx(line['train/loss'])) for line in LINES]


KILLED = """
import os, pathlib, signal, sys, time
from perceiver_jax.config import overrides
from perceiver_jax.runs.log import Log

log = Log(sys.argv[1], overrides.load('configs/digits.py:debug'), last_step=0)
(path,) = pathlib.Path(sys.argv[1], 'tensorboard').iterdir()
log.write(1, {'train/loss': 0.5})
deadline = time.monotonic() + 60
while b'train/loss' not in path.read_bytes() and time.monotonic() < deadline:
  time.sleep(0.1)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
def test_tensorboard_sees_the_last_numbers_of_a_run_that_is_killed_seconds_later(tmp_path):
  environment = {**os.environ, 'PYTHONPATH': os.pathsep.join(sys.path)}
  subprocess.run([sys.executable, '-c', KILLED, str(tmp_path)], env=environment, check=False)
  assert _scalars(tmp_path) == [(1, 'train/loss', 0.5)]


def test_tensorboard_is_told_where_a_run_resumes(tmp_path, config):
  _write(tmp_path, config, 0, *LINES)
  _write(tmp_path, config, 4, *LINES[4:])
  starts = [event.step for event in _events(tmp_path) if event.session_log.status == event_pb2.SessionLog.START]
  assert starts[-1] == 5  # what was written from step 5 on is void


@pytest.fixture
def wandb(monkeypatch):
  """A stand-in for the library that notes how it is used."""
  calls = []
  module = ModuleType('wandb')
  module.init = lambda **kwargs: calls.append(('init', kwargs)) or SimpleNamespace(
    id=kwargs['id'] or 'k3y',
    log=lambda values, step: calls.append(('log', step, values)),
    finish=lambda exit_code: calls.append(('finish', exit_code)))
  monkeypatch.setitem(sys.modules, 'wandb', module)
  return calls


def test_wandb_is_told_everything_where_asked_for(tmp_path, config, wandb):
  _write(tmp_path, config, 0, LINES[0])
  assert wandb == []
  config.log.wandb = True
  _write(tmp_path / '.' / '', config, 0, *LINES[:2])
  (_, settings), *calls = wandb
  assert (settings['dir'], settings['name'], settings['config']) == (str(tmp_path), tmp_path.name, config.to_dict())
  assert calls == [('log', 1, {'train/loss': 1.0}), ('log', 2, {'train/loss': 0.5}), ('finish', 0)]


def test_wandb_resumes_the_run_that_it_began_in_this_workdir(tmp_path, config, wandb):
  config.log.wandb = True
  for name in ('run', 'other'):
    (tmp_path / name).mkdir()
  _write(tmp_path / 'run', config, 0, LINES[0])
  (tmp_path / 'run').rename(tmp_path / 'moved')
  _write(tmp_path / 'moved', config, 1, LINES[1])
  _write(tmp_path / 'other', config, 0, LINES[0])
  starts = [settings for call, settings, *_ in wandb if call == 'init']
  assert [(settings['id'], settings['resume']) for settings in starts] == [
    (None, 'allow'), ('k3y', 'allow'), (None, 'allow')]


def test_wandb_is_told_that_a_run_failed(tmp_path, config, wandb):
  config.log.wandb = True
  with pytest.raises(RuntimeError), Log(str(tmp_path), config, last_step=0):
    raise RuntimeError
  assert wandb[-1] == ('finish', 1)


def test_a_missing_wandb_is_answered_with_what_to_do(tmp_path, config, monkeypatch):
  monkeypatch.setitem(sys.modules, 'wandb', None)
  config.log.wandb = True
  with pytest.raises(UserError, match='wandb is not installed: pip install wandb'):
    Log(str(tmp_path), config, last_step=0)


@pytest.mark.parametrize('text', [b'\xff\xfe\n', b'[1]\n', b'not JSON\n', b'{"train/loss": 1.0}\n'])
def test_a_damaged_line_of_the_log_is_named(tmp_path, text):
  (tmp_path / 'metrics.jsonl').write_bytes(b'{"step": 1}\n' + text)
  with pytest.raises(UserError, match=f'{tmp_path}/metrics.jsonl, line 2 is damaged'):
    read_history(tmp_path)


@pytest.mark.parametrize('name', ['metrics.jsonl', 'tensorboard'])
def test_what_stands_in_the_way_of_the_log_is_named(tmp_path, config, name):
  path = tmp_path / name
  path.mkdir() if name == 'metrics.jsonl' else path.write_text('a file')
  with pytest.raises(UserError, match=f'cannot (read|write) {path}.*: (Is a directory|File exists)'):
    Log(str(tmp_path), config, last_step=0)


def test_a_log_that_cannot_be_written_any_more_is_named(tmp_path, config):
  with Log(str(tmp_path), config, last_step=0) as log:
    (tmp_path / 'metrics.jsonl').unlink()
    (tmp_path / 'metrics.jsonl').mkdir()
    with pytest.raises(UserError, match=f'cannot write {tmp_path}/metrics.jsonl: Is a directory'):
      log.write(1, {'train/loss': 1.0})


@pytest.mark.parametrize('name', ['metrics.jsonl', 'tensorboard'])
def test_a_full_disk_ends_a_run_with_a_message_and_it_goes_on_once_there_is_room(tmp_path, config, name):
  limits, num_bytes = resource.getrlimit(resource.RLIMIT_FSIZE), 10_000
  with pytest.raises(UserError, match=f'cannot write {tmp_path}/{name}: File too large'), \
       Log(str(tmp_path), config, last_step=0) as log:
    if name == 'metrics.jsonl':  # which is then the larger of the two
      log.write(1, {f'speed/{i}' * 99: math.nan for i in range(9)})
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, limits[1]))  # the system refuses the write, as of a full disk
    try:
      for step in range(2, 500):  # tensorboardX's own thread would die, and its queue of ten wait for ever
        log.write(step, {'train/loss': 1 / step})
    finally:
      resource.setrlimit(resource.RLIMIT_FSIZE, limits)
  assert 2 < step < 499
  _write(tmp_path, config, step - 1, {'step': step, 'train/loss': 0.0})
  assert [line['step'] for line in read_history(tmp_path)][-3:] == [step - 2, step - 1, step]


def test_a_run_that_resumes_at_once_writes_over_no_earlier_curve(tmp_path, config):
  for step in range(3):
    _write(tmp_path, config, step, {'step': step + 1, 'train/loss': float(step)})
  assert _scalars(tmp_path) == [(1, 'train/loss', 0.0), (2, 'train/loss', 1.0), (3, 'train/loss', 2.0)]


def test_a_summary_shows_metrics_and_nothing_else():
  values = {'step': 3, 'test/accuracy': 0.98765, 'speed/examples_per_second': 9.0, 'validation/loss': math.nan,
            'train/loss': 2.0, 'checkpoint/best_step': 3}
  assert summary(values) == 'test/accuracy 0.9877, validation/loss nan, train/loss 2'
