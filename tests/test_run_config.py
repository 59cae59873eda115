"""The config of a run in its folder: whose folder it is, and what must never be overwritten."""

from __future__ import annotations

import json
import pathlib

import pytest

from configs import common
from perceiver_jax import config_file, run_config
from perceiver_jax.interop import zoo
from perceiver_jax.types import UserError

FIRST_RUN = pathlib.Path(__file__).parent / 'golden' / 'first_run'


@pytest.fixture
def config():
  return config_file.load('configs/digits.py:debug')


@pytest.mark.parametrize('text', ['{"model_type": "bert"}', '{}', '[1, 2]', 'not JSON'])
def test_a_config_json_that_is_not_ours_is_never_overwritten(tmp_path, config, text):
  path = tmp_path / 'config.json'
  path.write_text(text)
  for refuse in (run_config.check_workdir, run_config.claim):
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
    run_config.load(tmp_path)


def test_a_run_that_saved_nothing_leaves_its_workdir_to_another_config(tmp_path, config):
  run_config.claim(config, tmp_path, is_new=True)
  config.seed += 1
  run_config.check_workdir(config, tmp_path, is_new=True)
  assert run_config.load(tmp_path).seed == config.seed - 1  # asking writes nothing
  run_config.claim(config, tmp_path, is_new=True)
  assert run_config.load(tmp_path).seed == config.seed


def test_a_run_that_goes_on_in_a_workdir_of_another_config_is_refused_with_the_keys(tmp_path, config):
  run_config.claim(config, tmp_path, is_new=True)
  before = (tmp_path / 'config.json').read_bytes()
  config.seed += 1
  for refuse in (run_config.check_workdir, run_config.claim):
    with pytest.raises(UserError, match='another config: seed: 0 in the workdir, 1 now'):
      refuse(config, tmp_path, is_new=False)
  assert (tmp_path / 'config.json').read_bytes() == before


def test_a_run_that_goes_on_needs_the_config_that_it_began_with(tmp_path, config):
  with pytest.raises(UserError, match=r'config\.json does not exist'):
    run_config.claim(config, tmp_path, is_new=False)
  assert list(tmp_path.iterdir()) == []


def test_the_config_of_the_first_runs_gains_every_key_that_came_later():
  assert 'mixing' not in (FIRST_RUN / 'config.json').read_text()
  first = run_config.load(FIRST_RUN)
  missing = run_config.flatten(common.get_config()).keys() - run_config.flatten(first).keys()
  assert not missing, f'say in run_config._LATER what runs without these keys did: {", ".join(sorted(missing))}'
  assert (first.data.mixing, first.optimizer.constant_share, first.model.position.init_scale) == ('none', 0.5, 0.02)
  assert first.is_locked


def test_a_config_gains_no_key_that_its_task_lacks_and_keeps_the_values_that_it_has(tmp_path):
  text = zoo.config('masked_lm')
  with text.unlocked():
    del text.optimizer['constant_share']
  run_config.save(text, tmp_path)
  assert run_config.differences(run_config.load(tmp_path), zoo.config('masked_lm')) == []
  image = zoo.config('imagenet_learned')
  image.optimizer.constant_share, image.model.position.init_scale = 0.25, 1.0
  run_config.save(image, tmp_path)
  assert run_config.differences(run_config.load(tmp_path), image) == []


def test_a_run_from_before_a_key_existed_goes_on_where_the_key_changes_nothing(tmp_path, config):
  with config.unlocked():
    del config.data['mixing'], config.optimizer['constant_share'], config.model.position['init_scale']
  run_config.save(config, tmp_path)
  now = config_file.load('configs/digits.py:debug')
  run_config.check_workdir(now, tmp_path, is_new=False)
  now.data.mixing = 'half_and_half'
  with pytest.raises(UserError, match=r"data\.mixing: 'none' in the workdir, 'half_and_half' now"):
    run_config.check_workdir(now, tmp_path, is_new=False)


@pytest.mark.parametrize('wrong', [{'attention': {}}, {'rewind': 3}, {'rewind': None}], ids=str)
def test_a_table_in_place_of_a_value_or_the_reverse_is_damage(tmp_path, config, wrong):
  values = config.to_dict() | wrong
  (tmp_path / 'config.json').write_text(json.dumps(values))
  with pytest.raises(UserError, match=r'config\.json is damaged: '):
    run_config.load(tmp_path)
