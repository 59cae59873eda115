"""Permuted images in small: 2103.03206, table 2, on data and a machine that everyone has. `make permuted`

Trains configs/placed_digits.py, seven models x raw and permuted pixels x three seeds, a process per core, and writes

  benchmarks/results/permuted.json   a line for every run
  docs/permuted.png                  the picture
  README.md                          the table, between its <!-- permuted --> marks

A run has a workdir of its own below runs/permuted and is resumed where it was left; one that has finished is not
repeated. Ctrl-C stops, and the same command goes on. `--quick` trains an eighth as long with one seed, too short for
Perceiver IO to learn, and leaves the three files alone: what it finds stands in runs/permuted-quick.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import datetime
import itertools
import json
import math
import os
import pathlib
import queue
import signal
import subprocess
import sys
import threading
import time
from typing import Any

import jax
from ml_collections import ConfigDict

from benchmarks import permuted_report, record
from configs import placed_digits
from perceiver_jax.processes import parallel
from perceiver_jax.runs.checkpoint import Checkpoints
from perceiver_jax.tasks import image_classification
from perceiver_jax.training import loop
from perceiver_jax.training.evaluate import evaluate
from perceiver_jax.training.experiment import build, open_split
from perceiver_jax.training.step import averaged
from perceiver_jax.types import Task

ROOT = pathlib.Path(__file__).resolve().parents[1]
RESULTS = ROOT / 'benchmarks/results/permuted.json'
MODELS = ('io', 'perceiver', 'resnet20', 'resnet20,rgb', 'vit', 'vit,rgb', 'transformer')  # variants of the config
ORDERS = ('raw', 'permuted')
SEEDS = (0, 1, 2)
SHARES = (0.25, 0.5, 1.0)                   # of the budget
QUICK = 8                                   # times shorter
PACKAGES = ('jax', 'jaxlib', 'dm-haiku', 'optax', 'numpy', 'scikit-learn')


def main() -> int:
  """Returns the exit code."""
  parser = argparse.ArgumentParser(description='Permuted images in small.')
  parser.add_argument('--quick', action='store_true', help='an eighth of the steps and one seed: 7 minutes')
  parser.add_argument('--processes', type=int, default=len(_cores()), help='runs at a time, each on a core of its own')
  parser.add_argument('--run', help=argparse.SUPPRESS)
  parser.add_argument('--core', type=int, help=argparse.SUPPRESS)
  arguments = parser.parse_args()
  quick = arguments.quick
  if arguments.run:
    return run(arguments.run, quick=quick, core=arguments.core)
  seeds = SEEDS[:1] if quick else SEEDS
  signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
  names = [f'{seed}-{model}-{order}' for seed, model, order in itertools.product(seeds, MODELS, ORDERS)]
  if not run_all(names, quick=quick, processes=max(1, arguments.processes)):
    return 1
  study = {**record.surroundings(PACKAGES), 'runs': [read_result(folder(name, quick)) for name in names]}
  print(permuted_report.table(study))
  if quick:
    permuted_report.write(study, folder('permuted.json', quick), folder('permuted.png', quick), None)
  else:
    permuted_report.write(study, RESULTS, ROOT / 'docs/permuted.png', ROOT / 'README.md')
  return 0


def folder(name: str, quick: bool) -> pathlib.Path:
  """The workdir of a run called SEED-MODEL-ORDER."""
  return ROOT / 'runs' / ('permuted-quick' if quick else 'permuted') / name


def read_result(workdir: pathlib.Path) -> dict[str, Any] | None:
  """What a run came to; None while it has not finished."""
  path = workdir / 'result.json'
  return json.loads(path.read_text()) if path.exists() else None


def run_all(names: list[str], *, quick: bool, processes: int) -> bool:
  """Runs what has no result yet, `processes` at a time, a line for each that ends; returns whether all have one now."""
  waiting = [name for name in names if not read_result(folder(name, quick))]
  print(f'{len(waiting)} of {len(names)} runs to do, {processes} at a time; each writes {folder("*", quick)}/log.txt',
        flush=True)
  cores: queue.SimpleQueue[int] = queue.SimpleQueue()
  for core in range(processes):
    cores.put(core)
  started: list[subprocess.Popen] = []
  is_stopping, starting = threading.Event(), threading.Lock()

  def one(name: str) -> int | None:
    """Runs one in a process; its exit code, None where it was not begun as all are to stop."""
    core = cores.get()
    workdir = folder(name, quick)
    workdir.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, '-m', 'benchmarks.permuted', f'--run={name}', f'--core={core}', *['--quick'] * quick]
    # A GPU, if there is one, could not be shared by all of them.
    environment = {**os.environ, 'JAX_PLATFORMS': 'cpu'}
    with (workdir / 'log.txt').open('a') as log:
      with starting:  # a thread whose run ends takes up the next, perhaps just as all are told to stop
        if is_stopping.is_set():
          return None
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
        started.append(process)
      code = process.wait()
    cores.put(core)
    return code

  start = time.monotonic()
  with concurrent.futures.ThreadPoolExecutor(processes) as pool:
    futures = {pool.submit(one, name): name for name in waiting}
    try:
      for done, future in enumerate(concurrent.futures.as_completed(futures), 1):
        name = futures[future]
        result = read_result(folder(name, quick))
        if future.result() or not result:
          raise RuntimeError(f'{name} ended with exit code {future.result()}: see {folder(name, quick)}/log.txt')
        rest = datetime.timedelta(seconds=round((time.monotonic() - start) / done * (len(waiting) - done)))
        shown = ' '.join(f'{value:.1%}' for value in result['accuracy'].values())
        print(f'{len(names) - len(waiting) + done}/{len(names)} {name}: {shown}, ETA {rest}', flush=True)
    except (KeyboardInterrupt, RuntimeError) as stopped:
      for future in futures:
        future.cancel()
      with starting:
        is_stopping.set()
      for process in started:
        process.terminate()                 # they save, and end
      print(f'{str(stopped) or "Stopped."} The same command goes on from here.', file=sys.stderr)
      return False
  return True


def run(name: str, *, quick: bool, core: int | None) -> int:
  """Trains one run to its end, or goes on with it. Returns the exit code of training."""
  cores = _cores()
  if core is not None and hasattr(os, 'sched_setaffinity'):
    os.sched_setaffinity(0, {cores[core % len(cores)]})
  seed, model, order = name.split('-')
  config = placed_digits.get_config(','.join([model, *['permuted'] * (order == 'permuted')]))
  config.seed = int(seed)
  if quick:
    config.num_steps //= QUICK
    config.optimizer.warmup_steps //= QUICK
    config.eval.every_steps = config.checkpoint.every_steps = config.num_steps // 4
  return train(config, folder(name, quick), {'seed': config.seed, 'model': model, 'order': order})


def _cores() -> list[int]:
  """Those that this process may use; of systems other than Linux all."""
  return sorted(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else list(range(os.cpu_count() or 1))


def train(config: ConfigDict, workdir: pathlib.Path, what: dict[str, Any]) -> int:
  """Trains in a workdir, and in the end writes its result, which begins with `what`. Returns the exit code."""
  task = image_classification.make(config)
  code = loop.train(config, str(workdir), task)
  if code == loop.FINISHED:
    record.write(workdir / 'result.json', {**what, **measure(config, task, workdir)})
  return code


def measure(config: ConfigDict, task: Task, workdir: pathlib.Path) -> dict[str, Any]:
  """{'parameters', 'examples', 'accuracy': {'25%', '50%', '100%'}} of a run that has finished, on the test records.

  By the parameters after that share of the steps, not by those of the best checkpoint: nothing is chosen.
  """
  experiment, dataset = build(config, task), open_split(config, task, 'test', is_training=False)
  template = jax.eval_shape(experiment.init)
  accuracy = {}
  with Checkpoints(
      str(workdir / 'checkpoints'), keep_last=config.checkpoint.keep_last,
      best=config.checkpoint.best) as checkpoints:
    for share in SHARES:
      state, _ = checkpoints.restore(int(share * config.num_steps), template)
      params, model_state = parallel.replicate((averaged(state), state.state))
      found = evaluate(
        task, experiment, params, model_state, 'test', dataset, batch_size=config.eval.batch_size)
      assert found is not None              # nothing interrupts it
      accuracy[f'{share:.0%}'] = found.values['test/accuracy']
  parameters = sum(math.prod(x.shape) for x in jax.tree.leaves(template.params))
  return {'parameters': parameters, 'examples': config.num_steps * config.batch_size, 'accuracy': accuracy}


if __name__ == '__main__':
  sys.exit(main())
