"""The config of a run in its folder: whose folder it is, and what must never be overwritten."""

from __future__ import annotations

import json

import pytest

from perceiver_jax.config import overrides
from perceiver_jax.config.saved import check_workdir, claim, load_config
from perceiver_jax.types import UserError


@pytest.fixture
def config():
  return overrides.load('configs/digits.py:debug')


@pytest.mark.parametrize('text', ['{"model_type": "bert"}', '{}', '[1, 2]', 'not JSON'])
def test_a_config_json_that_is_not_ours_is_never_overwritten(tmp_path, config, text):
  path = tmp_path / 'config.json'
  path.write_text(text)
  for refuse in (check_workdir, claim):
    with pytest.raises(UserError, match=f'{path} is (not one of ours|damaged)'):
      refuse(config, tmp_path, is_new=True)
  assert path.read_text() == text and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize('text, fault', [
  ('[' * 100_000 + ']' * 100_000, 'nested too deeply'),
  ('{"a":' * 600 + '1' + '}' * 600, 'nested too deeply'),
  ('{"num_steps": 1, "model": 3}', 'model is 3, no table of keys'),
  ('{"num_steps": 1, "data": [1, 2]}', r'data is \(1, 2\), no table of keys'),
  ('{"num_steps": 1, "model": null}', 'model is None, no table of keys'),
])
def test_a_config_json_of_another_form_is_damaged(tmp_path, text, fault):
  (tmp_path / 'config.json').write_text(text)
  with pytest.raises(UserError, match=rf'config\.json is damaged: .*{fault}'):
    load_config(tmp_path)


def test_a_run_that_saved_nothing_leaves_its_workdir_to_another_config(tmp_path, config):
  claim(config, tmp_path, is_new=True)
  config.seed += 1
  check_workdir(config, tmp_path, is_new=True)
  assert load_config(tmp_path).seed == config.seed - 1  # asking writes nothing
  claim(config, tmp_path, is_new=True)
  assert load_config(tmp_path).seed == config.seed


def test_a_run_that_goes_on_in_a_workdir_of_another_config_is_refused_with_the_keys(tmp_path, config):
  claim(config, tmp_path, is_new=True)
  before = (tmp_path / 'config.json').read_bytes()
  config.seed += 1
  for refuse in (check_workdir, claim):
    with pytest.raises(UserError, match='another config: seed: 0 in the workdir, 1 now'):
      refuse(config, tmp_path, is_new=False)
  assert (tmp_path / 'config.json').read_bytes() == before


def test_a_run_that_goes_on_needs_the_config_that_it_began_with(tmp_path, config):
  with pytest.raises(UserError, match=r'config\.json does not exist'):
    claim(config, tmp_path, is_new=False)
  assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize('wrong', [{'model': 3}, {'data': None}], ids=str)
def test_a_value_in_place_of_a_table_is_damage(tmp_path, config, wrong):
  values = config.to_dict() | wrong
  (tmp_path / 'config.json').write_text(json.dumps(values))
  with pytest.raises(UserError, match=r'config\.json is damaged: '):
    load_config(tmp_path)
