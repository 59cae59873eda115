"""Names and overrides that no file and no key can have; what is wrong with ordinary ones is in test_commands.py."""

from __future__ import annotations

import pytest
from absl import flags

from perceiver_jax.config import overrides
from perceiver_jax.types import UserError
from tests.conftest import ROOT


@pytest.mark.parametrize('name', ['x' * 5_000, f'{"x" * 5_000}/y.py', 'x\0.py', 'x\0/y.py', ''])
def test_a_name_that_no_file_can_have_is_a_missing_file(name):
  with pytest.raises(UserError, match='there is no config file'):
    overrides.load(name)


def test_the_files_beside_a_missing_one_may_be_anything(tmp_path):
  (tmp_path / 'folder.py').mkdir()
  (tmp_path / 'right.py').write_text('def get_config(): ...')
  with pytest.raises(UserError, match=r'Did you mean .*right\.py\?\n.* has: right\.py$'):
    overrides.load(f'{tmp_path}/rigth.py')


@pytest.mark.parametrize('argument', [f'--{"x" * 5_000}', f'--config.data.frame_size={"-" * 50_000}1'])
def test_an_argument_without_end_is_answered_in_a_line(argument):
  config = overrides.load(f'{ROOT}/configs/optical_flow.py')
  with pytest.raises((UserError, flags.Error)) as refusal:
    overrides.override(config, ['train.py', argument], flags.FlagValues())
  assert '\n' not in str(refusal.value)


def test_a_key_that_is_negated_takes_no_value():
  config = overrides.load(f'{ROOT}/configs/digits.py')
  with pytest.raises(UserError, match=r'--noconfig\.deterministic=0 does not take an argument'):
    overrides.override(config, ['train.py', '--noconfig.deterministic=0'], flags.FlagValues())
