"""Names and overrides that no file and no key can have; what is wrong with ordinary ones is in test_commands.py."""

from __future__ import annotations

import pytest
from absl import flags
from ml_collections import ConfigDict

from perceiver_jax.config import overrides
from perceiver_jax.config.values import CHOICES, check, parse_best
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


@pytest.mark.parametrize('text, expected', [
  (None, None), ('None', None), ('lowest validation/loss', ('lowest', 'validation/loss')),
  ('highest clean/epe_all', ('highest', 'clean/epe_all'))])
def test_the_best_checkpoint_is_said_in_two_words(text, expected):
  assert parse_best(text) == expected


@pytest.mark.parametrize('text', [
  '', 'validation/loss', 'best validation/loss', 'lowest loss', 'lowest  a/b', 'lowest a/ b'])
def test_another_form_of_the_best_checkpoint_is_answered_with_an_example(text):
  with pytest.raises(UserError, match=r'write it like .lowest validation/loss. or'):
    parse_best(text)


@pytest.mark.parametrize('key', CHOICES)
def test_a_word_that_a_key_does_not_know_is_answered_with_the_nearest_when_the_config_is_read(key):
  config = ConfigDict({'section': 1}) if '.' not in key else ConfigDict()
  *sections, leaf = key.split('.')
  inner = config
  for section in sections:
    inner[section] = ConfigDict()
    inner = inner[section]
  word = CHOICES[key][0]
  inner[leaf] = word
  check(config)
  inner[leaf] = word[:-1] + '~'
  with pytest.raises(UserError, match=rf'^{key} is .*did you mean .* It is one of {word}, '):
    check(config)
