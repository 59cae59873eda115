"""What killed processes left beside weights: the next save removes it, and nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict

from perceiver_jax.runs import weights
from perceiver_jax.types import UserError

CONFIG = ConfigDict({'seed': 0})
PARAMS = {'head': {'w': np.ones((2, 3), np.float32)}}


@pytest.fixture
def saved(tmp_path) -> Path:
  weights.save(tmp_path / 'weights', CONFIG, PARAMS, {})
  return tmp_path / 'weights'


@pytest.fixture
def dead_process() -> int:
  """The id of a process that has ended."""
  process = subprocess.Popen([sys.executable, '-c', ''])
  process.wait()
  return process.pid


def test_what_killed_processes_left_is_removed_by_the_next_save(saved, dead_process):
  names = [
    f'.weights.{dead_process}.tmp', f'.weights.{dead_process}.old',  # what is to go; the others are not such, or in use
    f'.weights.{os.getppid()}.old', f'.weights.{os.getppid()}.tmp', f'.weightsx.{dead_process}.tmp',
    f'.weights.{dead_process}.new', '.weights.x.tmp']
  for name in names:
    (saved.parent / name).mkdir()
    (saved.parent / name / 'config.json').touch()
  weights.save(saved, CONFIG, PARAMS, {})
  assert {path.name for path in saved.parent.iterdir()} == {'weights', *names[2:]}


def test_the_only_whole_weights_are_not_removed_by_a_save_that_fails(saved, dead_process):
  old = saved.with_name(f'.weights.{dead_process}.old')
  saved.rename(old)
  with pytest.raises(UserError, match='cannot write'):
    weights.save(saved, CONFIG, {'a': {'b': 'text'}}, {})
  assert weights.load(old).params.keys() == PARAMS.keys()
