"""What happens to runs that last for days, in real processes: kills at any moment, full disks, bad bits, odd clocks."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator

import pytest

from benchmarks.survive import SAVE, TINY, TRAINING, Fault, differences, last_state, survive
from perceiver_jax.runs.checkpoint import Checkpoints
from perceiver_jax.runs.log import read_history
from tests.training.runs import NUM_STEPS, Ended, train, train_until


@pytest.mark.slow
@pytest.mark.parametrize(('seed', 'moments'), [(0, [SAVE]), (1, [TRAINING]), (2, [SAVE, TRAINING])])
def test_a_run_that_is_killed_at_random_goes_on_at_its_newest_whole_checkpoint_and_ends_the_same(
    whole, tmp_path, seed, moments):
  """`survive` raises where a process does not go on there, or meets half a checkpoint; make soak has more seeds."""
  kills = [Fault(signal.SIGKILL, moment) for moment in moments]
  accidents = survive(random.Random(seed), TINY, tmp_path / 'run', iter(kills), seconds=1.0)
  assert [accident.fault for accident in accidents] == kills
  assert not differences(tmp_path / 'run', whole[0])


@pytest.mark.slow
def test_every_difference_between_the_ends_of_two_runs_is_named(whole, tmp_path):
  other = tmp_path / 'run'
  shutil.copytree(whole[0], other)
  assert not differences(other, whole[0])
  state, extras = last_state(other)
  shutil.rmtree(other / 'checkpoints/6')
  with Checkpoints(other / 'checkpoints', keep_last=2, best='lowest validation/loss') as checkpoints:
    checkpoints.save(6, state._replace(num_skipped=state.num_skipped + 1), {**extras, 'evaluated': False}, None)
  with (other / 'metrics.jsonl').open('a') as log:
    log.write('{"step": 6}\n')
  assert differences(other, whole[0]) == ['metrics.jsonl', 'extras', '.num_skipped']


@pytest.fixture(scope='module')
def troubled(tmp_path_factory) -> tuple[pathlib.Path, list[Ended], pathlib.Path, pathlib.Path]:
  """A run in three processes whose clocks jump, the two damaged files between them, a second run begun beside it."""
  workdir = tmp_path_factory.mktemp('troubled') / 'run'
  ended = [train_until('memory', 'train', 5, workdir, hours=5)]
  flipped = _largest_file(workdir / 'checkpoints/4/state')
  _flip_a_bit(flipped)
  ended.append(train_until('SIGTERM', 'train', 4, workdir, hours=-7))
  cut = _largest_file(workdir / 'checkpoints/5/state')
  os.truncate(cut, cut.stat().st_size // 2)
  for hours, path in zip(itertools.cycle((-9, 30)), sorted(workdir.rglob('*')), strict=False):
    os.utime(path, (path.stat().st_mtime + 3600 * hours,) * 2)
  ended.append(train_until('second', 'train', 5, workdir, hours=1000))
  return workdir, ended, flipped, cut


def _largest_file(folder: pathlib.Path) -> pathlib.Path:
  return max((path for path in folder.rglob('*') if path.is_file()), key=lambda path: path.stat().st_size)


def _flip_a_bit(path: pathlib.Path) -> None:
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 8
  path.write_bytes(data)


@pytest.mark.slow
def test_a_reader_thread_that_dies_ends_the_run_at_once_with_what_it_died_of(troubled):
  _, (dead, *_), *_ = troubled
  assert (dead.exit_code, dead.out) == (3, ''), dead.err
  assert '\nMemoryError: no room for this record\n' in dead.err
  assert dead.steps[-1] == 4  # the save that was under way


@pytest.mark.slow
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_is_used(troubled):
  workdir, (_, after_flip, after_cut), flipped, cut = troubled
  for ended, step, file in ((after_flip, 4, flipped), (after_cut, 5, cut)):
    checkpoint = workdir / 'checkpoints' / str(step)
    name = file.relative_to(checkpoint)
    assert f'checkpoint {checkpoint} is damaged: {name} has changed since it was written' in ended.err
    assert f'Resuming at step {step - 1} of {NUM_STEPS}.' in ended.err
  assert after_flip.exit_code == 75


@pytest.mark.slow
def test_a_second_run_on_the_same_workdir_is_refused_and_the_first_goes_on(troubled):
  workdir, (*_, last), *_ = troubled
  exit_code, out, err = json.loads((workdir.parent / 'second.json').read_text())
  assert (exit_code, out) == (1, '')
  assert re.search(
    rf'^error: another run is writing to {workdir} \(pid \d+ on .+\); stop it, or choose another --workdir$', err)
  assert last.exit_code == 0, last.err


@pytest.mark.slow
def test_a_clock_that_jumps_changes_neither_rates_nor_the_time_that_is_left(troubled):
  etas = [int(minutes) for ended in troubled[1] for minutes in re.findall(r', ETA (-?\d+):', ended.err)]
  rates = [line['speed/examples_per_second'] for line in read_history(str(troubled[0]))
           if 'speed/examples_per_second' in line]
  assert etas and all(0 <= minutes < 60 for minutes in etas)
  assert rates and all(0.02 < rate < 1e6 for rate in rates)  # a clock five hours ahead would make it 0.002


@pytest.mark.slow
def test_a_run_that_had_all_these_troubles_ends_with_the_bits_of_one_left_alone(whole, troubled):
  assert not differences(troubled[0], whole[0])


@contextlib.contextmanager
def _small_disk(path: pathlib.Path) -> Iterator[pathlib.Path | None]:
  """A file system of two megabytes, as it is seen from here; None where the system lets nobody mount one."""
  path.mkdir()
  with contextlib.ExitStack() as stack:
    try:
      holder = stack.enter_context(subprocess.Popen(
        ['unshare', '--user', '--map-root-user', '--mount', 'sh', '-c',
         'mount -t tmpfs -o size=2m none "$0" && echo mounted && exec sleep 600', str(path)],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True))
    except FileNotFoundError:
      yield None
      return
    stack.callback(holder.kill)
    assert holder.stdout
    yield pathlib.Path(f'/proc/{holder.pid}/root{path}') if holder.stdout.readline() else None


@pytest.mark.slow
def test_a_disk_that_fills_up_stops_the_run_which_goes_on_once_there_is_room(whole, tmp_path):
  with _small_disk(tmp_path / 'disk') as disk:
    workdir = (disk or tmp_path) / 'run'
    full = train_until('fill' if disk else 'limit', 'train', 3, workdir)
    assert (full.exit_code, full.out) == (1, ''), full.err
    last = full.err.splitlines()[-1]
    assert re.match(rf'error: (a checkpoint was not written to|checkpoint|cannot write) {workdir}', last), full.err
    assert 'Traceback' not in full.err
    (workdir.parent / 'filler').unlink(missing_ok=True)
    ended = train(workdir)
    assert ended.exit_code == 0 and f'Resuming at step {full.steps[-1]} of' in ended.err, ended.err
    assert not differences(workdir, whole[0])
