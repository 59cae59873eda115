"""Half an hour of faults: a training that is killed over and over must end where one left alone ends. `make soak`

Four lanes, each of real processes of train.py on the digits; the first two side by side for --minutes, then the others:

  kills    AdamW, dropout, a moving average; SIGKILL and SIGTERM while training and during saves. Every run ends with
           the bits of the one left alone: state, extras, metrics.jsonl but for times and rates.
  devices  The same faults, and after each the run goes on with 1, 2 or 4 devices. They add up in another order, and
           every step amplifies that; so plain SGD at a low rate without dropout (whose masks depend on the number of
           devices), and the parameters may differ by TOLERANCE of the largest of them.
  seeds    20 runs of 60 steps, with two kills each, whose ends are compared as those of kills.
  memory   One run left alone. After a quarter of its steps its memory may grow by 2 %, its open files and threads stay.
           It saves as seldom as a real run: at each save TensorStore (0.1.86) loses 257 bytes whenever it describes
           where an array goes, which Orbax has it do for each array.

Figures go to benchmarks/results/soak.json. Exit code 1 if anything did not survive; what is left of it is in runs/soak.
"""

from __future__ import annotations

import argparse
import collections
import itertools
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks import record
from benchmarks.survive import (
  ROOT,
  SAVE,
  TINY,
  TRAINING,
  Accident,
  Fault,
  Violation,
  differences,
  figures,
  last_state,
  leave_alone,
  started,
  survive,
)
from perceiver_jax.config.saved import load_config
from perceiver_jax.runs.log import read_history
from perceiver_jax.tasks import image_classification
from perceiver_jax.training.experiment import build

RESULTS = ROOT / 'benchmarks/results/soak.json'
FOLDER = ROOT / 'runs/soak'
FAULTS = [Fault(number, moment) for number in (signal.SIGKILL, signal.SIGTERM) for moment in (TRAINING, SAVE)]
NUM_SEEDS = 20
SEED_STEPS = 60                             # with a save every two, and time for a kill between them
SECONDS = 30.0                              # at most, of work before a fault
TOLERANCE = 1e-4
MAX_GROWTH = 0.02
NUM_IN_POOLS = 3                            # threads that pools start as late as they are needed
PACKAGES = ('jax', 'jaxlib', 'dm-haiku', 'optax', 'numpy', 'orbax-checkpoint')


class Lane(NamedTuple):
  """A run that is repeated: its arguments, and the numbers of devices that its processes have."""

  num_steps: int
  arguments: Sequence[str]
  counts: Sequence[int]


MEMORY_STEPS = 6000
SELDOM = ['--config.checkpoint.every_steps=500', '--config.eval.every_steps=500', '--config.log.every_steps=20']
OFTEN = ['--config.checkpoint.every_steps=50', '--config.eval.every_steps=200', '--config.log.every_steps=5']
LANES = {
  'kills': Lane(3000, [*TINY, *OFTEN], (2,)),
  'devices': Lane(1200, [
    *TINY, *OFTEN, '--config.optimizer.name=sgd', '--config.optimizer.peak_lr=0.002',
    '--config.model.dropout_prob=0.0', '--config.model.attention_dropout_prob=0.0'], (1, 2, 4)),
}


class Sample(NamedTuple):
  """What a process holds when so many steps are taken."""

  step: int
  memory: int                               # its own, in bytes: pages of files come and go as the system likes
  files: int
  threads: int


def main() -> int:
  """Returns the exit code."""
  parser = argparse.ArgumentParser(description='A training that is killed over and over.')
  parser.add_argument('--minutes', type=float, default=30.0, help='how long the first two lanes go on')
  parser.add_argument('--seeds', type=int, default=NUM_SEEDS, help='how many short runs there are after them')
  parser.add_argument('--lane', choices=[*LANES, 'seeds', 'memory'], help=argparse.SUPPRESS)
  arguments = parser.parse_args()
  signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: whoever started a process ends it
  if arguments.lane:
    return run_lane(arguments.lane, arguments.minutes, arguments.seeds)
  shutil.rmtree(FOLDER, ignore_errors=True)
  FOLDER.mkdir(parents=True)
  start = time.monotonic()
  try:
    for names in (list(LANES), ['seeds', 'memory']):
      run_side_by_side(names, arguments.minutes, arguments.seeds)
  except KeyboardInterrupt:
    print('Stopped; nothing is concluded.', file=sys.stderr)
    return 130
  lanes = {name: json.loads((FOLDER / f'{name}.json').read_text()) for name in (*LANES, 'seeds', 'memory')}
  result = {**record.surroundings(PACKAGES), 'minutes': round((time.monotonic() - start) / 60, 1), **summarize(lanes)}
  record.write(RESULTS, result)
  print(table(result['faults']))
  for violation in result['violations']:
    print(f'error: {violation}', file=sys.stderr)
  if not result['violations']:
    shutil.rmtree(FOLDER)
  return 1 if result['violations'] else 0


def run_side_by_side(names: Sequence[str], minutes: float, seeds: int) -> None:
  """Each lane in a process of its own, which leaves FOLDER/<lane>.json; on Ctrl-C they end first."""
  command = [sys.executable, '-m', 'benchmarks.soak', f'--minutes={minutes}', f'--seeds={seeds}']
  environment = {
    'JAX_COMPILATION_CACHE_DIR': str(FOLDER / 'compiled'),  # killed processes may leave half an entry
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0', **os.environ, 'JAX_PLATFORMS': 'cpu'}
  processes = [subprocess.Popen([*command, f'--lane={name}'], cwd=ROOT, env=environment) for name in names]
  try:
    for process in processes:
      process.wait()
  finally:
    for process in processes:
      process.terminate()
    for process in processes:
      process.wait()


def run_lane(name: str, minutes: float, seeds: int) -> int:
  """Writes FOLDER/<lane>.json: {'accidents', 'runs', 'violations', ...}, accidents with whether the run survived."""
  result: dict[str, Any] = {'accidents': [], 'runs': 0, 'violations': []}
  try:
    if name == 'seeds':
      repeat_short_runs(result, seeds)
    elif name == 'memory':
      watch_one_run(result)
    else:
      repeat_runs(name, result, minutes)
  except Violation as violation:
    say(name, f'VIOLATION: {violation}')
    result['violations'].append(f'{name}: {violation}')
  except KeyboardInterrupt:
    return 130
  (FOLDER / f'{name}.json').write_text(json.dumps(result))
  return 0


def repeat_runs(name: str, result: dict[str, Any], minutes: float) -> None:
  """One run left alone, then others through faults until the time is over."""
  lane, expected, chance = LANES[name], FOLDER / f'{name}-alone', random.Random(name)
  arguments = [*lane.arguments, f'--config.num_steps={lane.num_steps}']
  end = time.monotonic() + 60 * minutes
  say(name, f'{lane.num_steps:,} steps, left alone ...')
  leave_alone(expected, *arguments)
  for number in itertools.count():
    workdir = FOLDER / f'{name}-{number}'
    faults = itertools.takewhile(lambda _: time.monotonic() < end, endless(chance))
    run(name, result, chance, arguments, workdir, faults, seconds=SECONDS, counts=lane.counts)
    if lane.counts == (2,):
      check_equal(workdir, expected)
    else:
      result['moved'] = moved(expected)
      result.setdefault('largest_difference', []).append(check_close(workdir, expected))
    shutil.rmtree(workdir)
    if time.monotonic() > end:
      return


def repeat_short_runs(result: dict[str, Any], seeds: int) -> None:
  expected, arguments = FOLDER / 'seeds-alone', [*TINY, f'--config.num_steps={SEED_STEPS}']
  seconds = leave_alone(expected, *arguments)
  for seed in range(seeds):
    chance, workdir = random.Random(seed), FOLDER / f'seed-{seed}'
    kills = itertools.islice((fault for fault in endless(chance) if fault.signal == signal.SIGKILL), 2)
    run('seeds', result, chance, arguments, workdir, kills, seconds=seconds)
    check_equal(workdir, expected)
    shutil.rmtree(workdir)


def watch_one_run(result: dict[str, Any]) -> None:
  samples = watch(FOLDER / 'memory', [*TINY, *SELDOM, f'--config.num_steps={MEMORY_STEPS}'])
  result['held'] = held(samples, MEMORY_STEPS)
  result['violations'] += growths(result['held'])
  result['runs'] = 1
  say('memory', f'held: {result["held"]}')


def run(name: str, result: dict[str, Any], chance: random.Random, arguments: Sequence[str], workdir: Path,
        faults: Iterator[Fault], **options: Any) -> None:
  """`survive`, told of line by line; counts its accidents in `result`."""
  def told(accident: Accident) -> None:
    result['accidents'].append({
      'fault': str(accident.fault), 'steps_again': accident.reached - accident.saved,
      'num_devices': accident.num_devices, 'run': result['runs'], 'survived': False})
    say(name, f'{len(result["accidents"])} faults; run {result["runs"]}: {accident.fault} at about step '
              f'{accident.reached}, step {accident.saved} is saved, {accident.num_devices} devices')

  survive(chance, arguments, workdir, faults, told=told, **options)
  for accident in result['accidents']:
    accident['survived'] = True
  result['runs'] += 1
  say(name, f'run {result["runs"] - 1} has ended')


def endless(chance: random.Random) -> Iterator[Fault]:
  while True:
    yield chance.choice(FAULTS)


def check_equal(workdir: Path, expected: Path) -> None:
  if different := differences(workdir, expected):
    raise Violation(f'{workdir} ended otherwise than {expected}: {", ".join(different[:9])}')


def check_close(workdir: Path, expected: Path) -> float:
  """The largest difference of two runs' parameters, as a share of the largest parameter."""
  (state, _), (other, _) = last_state(workdir), last_state(expected)
  difference = largest(jax.tree.map(np.subtract, state.params, other.params)) / largest(other.params)
  steps = [[line['step'] for line in figures(folder)] for folder in (workdir, expected)]
  if not difference <= TOLERANCE or int(state.step) != int(other.step) or steps[0] != steps[1]:
    raise Violation(f'{workdir} ended otherwise than {expected}: parameters differ by {difference:.2g}, steps {steps}')
  return difference


def moved(workdir: Path) -> float:
  """How far the run took its parameters, as `check_close` measures it: what a difference is to be compared with."""
  config = load_config(workdir)
  first, (last, _) = build(config, image_classification.make(config)).init(), last_state(workdir)
  return largest(jax.tree.map(np.subtract, last.params, first.params)) / largest(last.params)


def largest(tree: Any) -> float:
  return max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(tree))


def watch(workdir: Path, arguments: Sequence[str]) -> list[Sample]:
  """Runs train.py to its end; what it held, five times a second."""
  samples = []
  with started([ROOT / 'train.py', f'--workdir={workdir}', *arguments]) as (process, wait):
    while process.poll() is None:
      time.sleep(0.2)
      if (sample := take_sample(process.pid, workdir)) is not None:
        samples.append(sample)
    ended = wait()
  if ended.exit_code:
    raise Violation(f'{workdir}: left alone, and ended with exit code {ended.exit_code}\n{ended.err}')
  return samples


def take_sample(pid: int, workdir: Path) -> Sample | None:
  """None where the process has just ended, or taken no step."""
  try:
    status = dict(line.split(':', 1) for line in Path(f'/proc/{pid}/status').read_text().splitlines())
    files = len(os.listdir(f'/proc/{pid}/fd'))
    history = read_history(str(workdir))
    return Sample(int(history[-1]['step']), 1024 * int(status['RssAnon'].split()[0]), files, int(status['Threads']))
  except (OSError, KeyError, IndexError):
    return None


def held(samples: Sequence[Sample], num_steps: int) -> dict[str, list[float]]:
  """{'memory', 'files', 'threads'}, in each of five parts of what follows the first quarter of the steps.

  Memory is the median. A save and an evaluation have files and threads of their own for a moment, so of these it is the
  least at any time: what is never given back raises that.
  """
  parts: list[list[Sample]] = [[] for _ in range(5)]
  for sample in samples:
    part = int(5 * (sample.step / num_steps - 0.25) / 0.75)
    if sample.step >= num_steps / 4 and part < 5:
      parts[part].append(sample)
  if not all(parts):
    raise Violation(f'{len(samples)} looks at the process, which is too few')
  kinds: dict[str, Callable[[Iterator[float]], float]] = {'memory': statistics.median, 'files': min, 'threads': min}
  return {name: [kind(getattr(sample, name) for sample in part) for part in parts] for name, kind in kinds.items()}


def growths(values: Mapping[str, Sequence[float]]) -> list[str]:
  """What grew by more than it may. That memory falls does not count: what compiling took may come back at any time."""
  memory, most = values['memory'], {'files': 0, 'threads': NUM_IN_POOLS}
  rises = sum(max(0, late - early) for early, late in itertools.pairwise(memory))
  found = [f'memory grew by {rises:,.0f} bytes: {memory}'] if rises > MAX_GROWTH * memory[-1] else []
  return found + [
    f'{name} grew: {values[name]}' for name in most if max(values[name]) > values[name][0] + most[name]]


def summarize(lanes: Mapping[str, Any]) -> dict[str, Any]:
  """The record, but for where and when: {'faults': [one per lane and kind], 'violations', 'runs', 'held', ...}."""
  kinds: dict[tuple[str, str], list[dict[str, Any]]] = collections.defaultdict(list)
  for name, lane in lanes.items():
    for accident in lane['accidents']:
      kinds[name, accident['fault']].append(accident)
  return {
    'runs': {name: lane['runs'] for name, lane in lanes.items()},
    'faults': [{
      'lane': name, 'fault': fault, 'injected': len(accidents),
      'survived': sum(accident['survived'] for accident in accidents),
      'steps_again_mean': round(statistics.mean(accident['steps_again'] for accident in accidents), 1),
      'steps_again_max': max(accident['steps_again'] for accident in accidents),
    } for (name, fault), accidents in sorted(kinds.items())],
    'largest_difference': max(lanes['devices'].get('largest_difference', []), default=None),
    'tolerance': TOLERANCE, 'moved': lanes['devices'].get('moved'),
    'held': lanes['memory'].get('held'),
    'violations': [violation for lane in lanes.values() for violation in lane['violations']],
  }


def table(faults: Sequence[Mapping[str, Any]]) -> str:
  """For people; steps taken again are those logged and not saved, to within the five steps between two lines."""
  lines = [f'{line["lane"]:8} {line["fault"]:24} {line["injected"]:9} {line["survived"]:9} '
           f'{line["steps_again_mean"]:9.1f} {line["steps_again_max"]:6}' for line in faults]
  return '\n'.join(['lane     fault                     injected  survived  steps taken again: mean, most', *lines])


def say(lane: str, what: str) -> None:
  print(f'{time.strftime("%H:%M:%S")} {lane}: {what}', flush=True)


if __name__ == '__main__':
  sys.exit(main())
