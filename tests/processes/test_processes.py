"""Several real processes: the same run as in one, and none that waits for another that is gone.

A cluster of this machine: each process has two CPU devices, and they find each other at a port of localhost.
"""

from __future__ import annotations

import contextlib
import functools
import os
import pathlib
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence

import jax
import numpy as np
import pytest

from benchmarks.survive import Ended, figures, last_state, started
from perceiver_jax.processes import parallel
from tests.training.runs import ROOT

NUM_DEVICES = 2  # of each process
# SGD: what is adaptive makes much of the rounding of a gradient that is nearly 0. A batch of 8 divides over 8 devices.
ARGUMENTS = [
  f'--config={ROOT}/configs/digits.py:debug', '--config.num_steps=6', '--config.batch_size=8',
  '--config.optimizer.name=sgd', '--config.optimizer.schedule=constant_cosine', '--config.ema_decay=0.9',
  '--config.checkpoint.every_steps=2', '--config.eval.every_steps=3', '--config.log.every_steps=4',
  '--config.model.num_latents=2', '--config.model.latent_channels=8', '--config.model.num_blocks=1',
  '--config.model.query_channels=8', '--config.model.dropout_prob=0', '--config.peer_timeout_seconds=10']
TRAIN, EVAL = [str(ROOT / 'train.py')], [str(ROOT / 'eval.py')]


def _accident(what: str, split: str, step: int) -> list[str]:
  return [str(pathlib.Path(__file__).parents[1] / 'training' / 'accidents.py'), what, split, str(step), '0']


def _together(
  programs: Sequence[Sequence[str]], *arguments: str | pathlib.Path, num_devices: Sequence[int] = (),
) -> list[Ended]:
  """Runs programs as the processes 0, 1 ... of one run, each to its end; each has its number of devices."""
  with socket.socket() as free:
    free.bind(('localhost', 0))
    port = free.getsockname()[1]
  shared = [f'--coordinator_address=localhost:{port}', f'--num_processes={len(programs)}', *map(str, arguments)]
  commands = [[*program, *shared, f'--process_id={index}'] for index, program in enumerate(programs)]
  with contextlib.ExitStack() as stack:
    counts = num_devices or [NUM_DEVICES] * len(programs)
    ended = [stack.enter_context(started(command, num_devices=count))[1]
             for command, count in zip(commands, counts, strict=True)]
    return [wait() for wait in ended]


def _train(workdir: pathlib.Path, *programs: Sequence[str], extra: Sequence[str] = ()) -> list[Ended]:
  return _together(programs, f'--workdir={workdir}', *ARGUMENTS, *extra)


def _alone(workdir: pathlib.Path, num_devices: int) -> Ended:
  with started([*TRAIN, f'--workdir={workdir}', *ARGUMENTS], num_devices=num_devices) as (_, wait):
    return wait()


@pytest.fixture(scope='module')
def alone(tmp_path_factory) -> Callable[[int], pathlib.Path]:
  """(number of devices) -> the workdir of the run in one process."""
  @functools.cache
  def run(num_devices: int) -> pathlib.Path:
    workdir = tmp_path_factory.mktemp('alone') / 'run'
    assert _alone(workdir, num_devices).exit_code == 0
    return workdir

  return run


@pytest.fixture(scope='module')
def two(tmp_path_factory) -> tuple[pathlib.Path, list[Ended]]:
  """The run in two processes."""
  workdir = tmp_path_factory.mktemp('two') / 'run'
  return workdir, _train(workdir, TRAIN, TRAIN)


def _assert_same_to_rounding(workdir: pathlib.Path, expected: pathlib.Path) -> None:
  (state, _), (expected_state, _) = last_state(workdir), last_state(expected)
  assert int(state.step) == int(expected_state.step) == 6
  start = jax.tree.leaves(expected_state.params)
  largest = max(float(np.max(np.abs(leaf))) for leaf in start)
  close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6 * largest)
  jax.tree.map(close, (state.params, state.ema), (expected_state.params, expected_state.ema))
  lines, expected_lines = figures(workdir), figures(expected)
  assert [line.keys() for line in lines] == [line.keys() for line in expected_lines]
  for line, expected_line in zip(lines, expected_lines, strict=True):
    np.testing.assert_allclose(list(line.values()), list(expected_line.values()), rtol=1e-4)


@pytest.mark.slow
def test_two_processes_end_with_the_parameters_and_figures_of_one(two, alone):
  workdir, ended = two
  assert [each.exit_code for each in ended] == [0, 0], ended[1].err
  _assert_same_to_rounding(workdir, alone(4))


@pytest.mark.slow
def test_four_processes_end_with_the_parameters_and_figures_of_one(alone, tmp_path):
  ended = _train(tmp_path / 'run', *[TRAIN] * 4)
  assert [each.exit_code for each in ended] == [0] * 4, ended[3].err
  _assert_same_to_rounding(tmp_path / 'run', alone(8))


@pytest.mark.slow
def test_one_process_alone_speaks_and_writes(two):
  workdir, (first, second) = two
  assert 'Finished 6 steps: ' in first.out and 'step 3: validation/accuracy' in first.err
  assert _ours(second) == ''
  assert sorted(path.name for path in workdir.iterdir()) == [
    'checkpoints', 'class_names.json', 'config.json', 'lock', 'metrics.jsonl', 'summary.png', 'tensorboard']
  assert len(list((workdir / 'tensorboard').iterdir())) == 1
  assert [line['step'] for line in figures(workdir)] == [3, 4, 6, 6, 6]


def _ours(ended: Ended) -> str:
  """What a process said, without what Gloo says of its connections, from several threads at once."""
  lines = (ended.out + ended.err).splitlines(keepends=True)
  return ''.join(line for line in lines if not re.search('Gloo|peer ranks', line))


@pytest.mark.slow
def test_eval_in_two_processes_counts_every_example_once_and_prints_once(two):
  workdir, _ = two
  first, second = _together([EVAL, EVAL], f'--workdir={workdir}')
  assert (first.exit_code, second.exit_code) == (0, 0), first.err + second.err
  printed = dict(re.findall(r'^(\S+): (\S+)$', first.out, re.MULTILINE))
  last = figures(workdir)[-1]
  assert printed['examples'] == '359' and _ours(second) == ''
  np.testing.assert_allclose(float(printed['test/loss']), last['test/loss'], rtol=1e-5)
  np.testing.assert_allclose(float(printed['test/accuracy']), last['test/accuracy'], rtol=1e-5)


@pytest.mark.slow
def test_a_signal_to_one_process_stops_all_at_one_step_and_the_run_goes_on_with_other_processes(alone, tmp_path):
  workdir = tmp_path / 'run'
  first, second = _train(workdir, TRAIN, _accident('SIGTERM', 'train', 1))
  assert (first.exit_code, second.exit_code) == (75, 75), first.err + second.err
  (step,) = re.findall(
    r'^Stopped by a signal to another process and saved. The same command resumes at step (\d)\.$', first.out,
    re.MULTILINE)
  assert 2 <= int(step) <= 5 and (workdir / 'checkpoints' / step).is_dir()
  ended = _alone(workdir, num_devices=8)
  assert ended.exit_code == 0 and f'Resuming at step {step} of 6.' in ended.err, ended.err
  _assert_same_to_rounding(workdir, alone(8))


@pytest.mark.slow
def test_a_run_of_one_process_goes_on_in_two(alone, tmp_path):
  workdir = tmp_path / 'run'
  with started(
      [*_accident('SIGTERM', 'train', 2), f'--workdir={workdir}', *ARGUMENTS], num_devices=1) as (_, wait):
    assert wait().exit_code == 75
  first, second = _train(workdir, TRAIN, TRAIN)
  assert (first.exit_code, second.exit_code) == (0, 0) and 'Resuming at step 3 of 6.' in first.err, first.err
  _assert_same_to_rounding(workdir, alone(4))


@pytest.mark.slow
@pytest.mark.parametrize('victim', [0, 1])
def test_a_process_that_is_killed_ends_the_others_with_a_message(tmp_path, victim):
  programs = [TRAIN, TRAIN]
  programs[victim] = _accident('SIGKILL', 'train', 4)
  ended = _train(tmp_path / 'run', *programs)
  other = ended[1 - victim]
  assert ended[victim].exit_code == -9
  if victim == 0 and other.exit_code == -6:  # JAX, which loses its coordinator, was quicker than we
    assert 'This most likely indicates that another task died' in other.err
    return
  assert other.exit_code == 75, other.err
  assert re.search(
    rf'^error: process {victim}( on \S+)? has ended: it died, or its machine is gone\nprocess {1 - victim} on \S+ '
    r'stops too\. Once that is mended, start all processes again: the run goes on from its newest checkpoint\.$',
    other.err, re.MULTILINE), other.err
  assert (tmp_path / 'run' / 'checkpoints' / '2').is_dir()


@pytest.mark.slow
def test_a_process_that_fails_says_why_everywhere_and_all_end_with_its_code(tmp_path):
  first, second = _train(tmp_path / 'run', _accident('memory', 'train', 3), TRAIN)
  assert (first.exit_code, second.exit_code) == (3, 3), first.err + second.err
  assert 'MemoryError: no room for this record' in first.err
  assert re.search(r'^error: process 0( on \S+)? has ended: .*no room for this record$', second.err, re.MULTILINE)


@pytest.mark.slow
def test_processes_of_two_configs_are_refused(tmp_path):
  first, second = _together([TRAIN, [*TRAIN, '--config.seed=1']], f'--workdir={tmp_path}/run', *ARGUMENTS)
  assert (first.exit_code, second.exit_code) == (1, 1), first.err + second.err
  assert 'error: process 1 was started with another config than process 0: seed: 0 there, 1 here\n' in second.err
  assert re.search(r'^error: process 1 on \S+ has ended: process 1 was started with another', first.err, re.MULTILINE)
  assert not (tmp_path / 'run').exists()


@pytest.mark.slow
def test_processes_with_different_numbers_of_devices_are_refused(tmp_path):
  ended = _together([TRAIN, TRAIN], f'--workdir={tmp_path}/run', *ARGUMENTS, num_devices=[2, 1])
  for each in ended:
    assert each.exit_code == 1 and 'equally many devices' in each.err and 'Traceback' not in each.err, each.err
  assert not (tmp_path / 'run').exists()


def test_an_address_that_is_taken_is_refused(tmp_path):
  with parallel.listen() as taken:
    port = taken.getsockname()[1]
    with started([*TRAIN, f'--workdir={tmp_path}/run', *ARGUMENTS, f'--coordinator_address=localhost:{port}',
                  '--num_processes=2', '--process_id=0']) as (_, wait):
      ended = wait()
  assert ended.exit_code == 1 and re.search(rf'localhost:{port}: process 0 cannot listen there: .*in use', ended.err)


@pytest.mark.parametrize('flags, message', [
  (['--process_id=1'], 'go together'),
  (['--coordinator_address=node0', '--num_processes=2', '--process_id=1'], 'node0: expected HOST:PORT'),
  (['--num_processes=2', '--process_id=2'], 'process_id'),
  (['--num_processes=0'], 'is not a positive integer')])
def test_flags_of_processes_that_make_no_sense_are_answered_at_once(tmp_path, flags, message):
  done = subprocess.run(
    [sys.executable, *TRAIN, f'--workdir={tmp_path}/run', *ARGUMENTS, *flags], capture_output=True, text=True,
    env={**os.environ, 'PYTHONPATH': str(ROOT)}, check=False)
  assert done.returncode in (1, 2) and re.search(message, done.stderr), done.stderr
  assert 'Traceback' not in done.stderr and not (tmp_path / 'run').exists()
