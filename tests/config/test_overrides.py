"""Names and overrides that no file and no key can have; what is wrong with ordinary ones is in test_commands.py."""

from __future__ import annotations

import pytest
from absl import flags
from ml_collections import ConfigDict

from perceiver_jax.config import overrides
from perceiver_jax.config.values import CHOICES, check, flatten, parse_best
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


def _overridden(*arguments, experiment='digits'):
  config = overrides.load(f'{ROOT}/configs/{experiment}.py')
  overrides.override(config, ['train.py', *arguments], flags.FlagValues())
  return config


@pytest.mark.parametrize('key', ['ema_decay', 'init_from', 'data.path', 'data.class_names', 'model.qk_channels'])
def test_none_unsets_any_placeholder(key):
  set_ = overrides.load(f'{ROOT}/configs/digits.py')
  value = {'ema_decay': 0.5, 'model.qk_channels': 8}.get(key, 'somewhere')
  set_.update_from_flattened_dict({key: value})
  overrides.override(set_, ['train.py', f'--config.{key}=None', '--config.seed=3'], flags.FlagValues())
  assert flatten(set_)[key] is None and set_.seed == 3


def test_none_does_not_unset_a_key_that_needs_a_value():
  with pytest.raises(UserError, match=r'--config\.batch_size=None: expected a whole number'):
    _overridden('--config.batch_size=None')
  assert _overridden('--config.optimizer.name=None').optimizer.name == 'None'  # which `check` refuses, as any word


@pytest.mark.parametrize('argument, message', [
  ('init_from=', 'config.init_from is empty, as from a variable of the shell that is not set'),
  ('data.path=', 'config.data.path is empty'),
  ('ema_decay=1', 'ema_decay is 1.0; it must be at least 0 and less than 1'),
  ('seed=9223372036854775808', 'seed is 9223372036854775808; it must be from 0'),
  ('seed=4294967296', 'seed is 4294967296; it must be from 0'),
  ('seed=-1', 'seed is -1; it must be from 0'),
])
def test_values_that_would_be_taken_for_something_else_are_refused(argument, message):
  with pytest.raises(UserError, match=message):
    check(_overridden(f'--config.{argument}'))


@pytest.mark.parametrize('wrong, right', [
  ('optimizer.learning_rate', 'optimizer.peak_lr'), ('lr', 'optimizer.peak_lr'), ('epochs', 'num_steps'),
  ('model.depth', 'model.num_self_attends_per_block'), ('num_layers', 'model.num_self_attends_per_block'),
  ('model.heads', 'model.num_self_heads'), ('dropout', 'model.dropout_prob'), ('warmup', 'optimizer.warmup_steps'),
  ('batch_sise', 'batch_size'), ('pretrained', 'init_from'),
])
def test_the_fields_other_words_for_a_key_are_known(wrong, right):
  with pytest.raises(UserError, match=f'Did you mean --config.{right}'):
    _overridden(f'--config.{wrong}=1')
