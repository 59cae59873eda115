"""The run that others are compared with."""

from __future__ import annotations

import pathlib

import pytest

from tests.training.runs import Ended, train


@pytest.fixture(scope='session')
def whole(tmp_path_factory) -> tuple[pathlib.Path, Ended]:
  """A run that nothing disturbed, traced as it went."""
  workdir = tmp_path_factory.mktemp('whole') / 'run'
  return workdir, train(workdir, '--profile=2')
