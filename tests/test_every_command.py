"""Runs the example of docs/adding_a_task.md through every command, as a user's module and as our file (law 10)."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

from tests.test_readme import example_files

ROOT = pathlib.Path(__file__).resolve().parent.parent

# One process runs all commands: to start one takes longer than what it does.
SCRIPT = """
import json, pathlib, sys
import numpy as np
task, flags = sys.argv[1], sys.argv[2:]
if pathlib.Path('run').exists():
  sys.modules.update(cv2=None, grain=None, sklearn=None)  # to use a model must not import them
from perceiver_jax.commands.convert import convert
from perceiver_jax.commands.eval import evaluate
from perceiver_jax.commands.plan import plan
from perceiver_jax.commands.predict import predict
import perceiver_jax
codes = {}
points = np.random.default_rng(0).uniform(-1, 1, (3, 32, 2)).astype(np.float32)
np.savez('batch.npz', points=points)
codes['predict'] = predict(['predict', '--model=run', *flags, 'batch.npz', '--output=outputs.npz'])
codes['convert'] = convert(['convert', 'run', 'weights', *flags])
codes['predict converted'] = predict(['predict', '--model=weights', *flags, 'batch.npz', '--output=again.npz'])
codes['plan'] = plan(['plan', '--config=configs/rings.py', '--json=plan.json'])
model = perceiver_jax.load('weights', task=task if flags else None)
outputs, again = (np.load(name)['logits'] for name in ('outputs.npz', 'again.npz'))
same = [np.array_equal(outputs, other) for other in (
  again, model.logits(points=points), model.run({'points': points})['logits'],
  model.predict({'points': points})['logits'])]
print(json.dumps({'codes': codes, 'same': same, 'shape': outputs.shape}))
"""


@pytest.fixture(params=['mytasks.rings', pytest.param('rings', marks=pytest.mark.slow)])
def folder(request, tmp_path):
  """A folder with the example in it: beside the package, or in a copy of the package."""
  files = example_files()
  if request.param == 'rings':
    shutil.copytree(ROOT / 'perceiver_jax', tmp_path / 'perceiver_jax', ignore=shutil.ignore_patterns('__pycache__'))
    files = {name.replace('mytasks/', 'perceiver_jax/tasks/'): text.replace("'mytasks.rings'", "'rings'")
             for name, text in files.items()}
  for name, text in files.items():
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(text)
  return tmp_path, request.param


def _run(folder: pathlib.Path, *arguments: str) -> subprocess.CompletedProcess:
  package = folder if (folder / 'perceiver_jax').exists() else ROOT
  return subprocess.run(
    [sys.executable, *arguments], cwd=folder, env={**os.environ, 'XLA_FLAGS': '', 'PYTHONPATH': str(package)},
    capture_output=True, text=True, check=False)


def test_the_example_trains_resumes_and_serves_in_every_command(folder):
  folder, task = folder
  short = ['--config.num_steps=60', '--config.eval.every_steps=20', '--config.checkpoint.every_steps=20']
  train = ['-m', 'perceiver_jax', 'train', '--config=configs/rings.py', '--workdir=run', *short]
  stopped = _run(folder, '-c', f"""
import signal, sys
from perceiver_jax.runs import workdir
from perceiver_jax.commands.train import train
save = workdir.Workdir.save
workdir.Workdir.save = lambda self, step, *rest: (step == 20 and signal.raise_signal(15), save(self, step, *rest))[1]
sys.exit(train({['train', *train[3:]]!r}))
""")
  assert stopped.returncode == 75, stopped.stderr
  resumed = _run(folder, *train)
  assert resumed.returncode == 0 and 'Resuming at step 2' in resumed.stderr, resumed.stderr
  last = json.loads((folder / 'run' / 'metrics.jsonl').read_text().splitlines()[-1])
  assert last['run/finished'] == 1 and (folder / 'run' / 'summary.png').exists()
  evaluated = _run(folder, '-m', 'perceiver_jax', 'eval', '--workdir=run')
  assert f'test/accuracy: {last["test/accuracy"]:.6g}' in evaluated.stdout, evaluated.stderr
  flags = [f'--task={task}'] if '.' in task else []
  used = _run(folder, '-c', SCRIPT, task, *flags)
  assert used.returncode == 0, used.stderr
  found = json.loads(used.stdout.splitlines()[-1])
  assert set(found['codes'].values()) == {0} and found['same'] == [True] * 4 and found['shape'] == [3, 2]
  assert json.loads((folder / 'plan.json').read_text())['parameters'] > 1000
  if flags:
    refused = _run(folder, '-m', 'perceiver_jax', 'predict', '--model=weights', 'batch.npz')
    assert refused.returncode == 1 and '--task=mytasks.rings' in refused.stderr and 'Traceback' not in refused.stderr
