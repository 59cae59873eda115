"""Whether training in bfloat16 costs accuracy: configs/digits.py in both precisions, a pair for each seed.

  python -m benchmarks.precision             writes benchmarks/results/precision.json: six runs

Workdirs are runs/precision/<compute>-<seed>; a run that was stopped goes on, one that has finished is not repeated.
Within a pair the parameters at the start and the order of the data are the same: the noise of the difference is what is
left of the spread of seeds.
"""

from __future__ import annotations

import itertools
import math
import pathlib
import statistics
import sys
from collections.abc import Sequence
from typing import Any

from benchmarks import record
from configs import digits
from perceiver_jax.runs.log import read_history
from perceiver_jax.tasks import image_classification
from perceiver_jax.training import loop

ROOT = pathlib.Path(__file__).resolve().parents[1]
RESULTS = ROOT / 'benchmarks' / 'results' / 'precision.json'
COMPUTE = ('float32', 'bfloat16')
SEEDS = (0, 1, 2)
PACKAGES = ('jax', 'jaxlib', 'dm-haiku', 'jmp', 'optax', 'numpy', 'scikit-learn')


def main() -> int:
  """Returns the exit code."""
  accuracies: dict[str, list[float]] = {compute: [] for compute in COMPUTE}
  for compute, seed in itertools.product(COMPUTE, SEEDS):
    accuracy = train(compute, seed)
    if accuracy is None:
      return loop.INTERRUPTED
    accuracies[compute].append(accuracy)
  found = summary(accuracies['float32'], accuracies['bfloat16'])
  record.write(RESULTS, {**record.surroundings(PACKAGES), 'seeds': SEEDS, 'test_accuracy': accuracies, **found})
  print(found)
  return 0


def train(compute: str, seed: int) -> float | None:
  """Test accuracy of a whole run, in [0, 1]; None if it was interrupted."""
  workdir = str(ROOT / 'runs' / 'precision' / f'{compute}-{seed}')
  config = digits.get_config()
  config.update({'seed': seed, 'precision': f'params=float32,compute={compute},output=float32'})
  code = loop.train(config, workdir, image_classification.make(config))
  return read_history(workdir)[-1]['test/accuracy'] if code == loop.FINISHED else None


def summary(full: Sequence[float], low: Sequence[float]) -> dict[str, Any]:
  """The mean of low - full over pairs, its standard error, and the spread of `full` over seeds, a deviation."""
  differences = [b - a for a, b in zip(full, low, strict=True)]
  return {
    'mean_difference': statistics.mean(differences),
    'standard_error': statistics.stdev(differences) / math.sqrt(len(differences)),
    'deviation_over_seeds': statistics.stdev(full),
  }


if __name__ == '__main__':
  sys.exit(main())
