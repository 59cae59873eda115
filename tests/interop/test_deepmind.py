"""The authors' names and ours: every released tree, entry by entry, and files that hold something else."""

from __future__ import annotations

import json
import pathlib
import pickle

import haiku as hk
import jax
import numpy as np
import pytest

from perceiver_jax import config_file
from perceiver_jax.inference.model import template
from perceiver_jax.interop import deepmind
from perceiver_jax.types import UserError

ROOT = pathlib.Path(__file__).resolve().parents[2]
# Of every released model: {'params module/path:leaf': 'rows x columns'}, made by the authors' own modules.
TREES = json.loads((ROOT / 'tests' / 'golden' / 'deepmind_trees.json').read_text())
EXPERIMENTS = {
  'imagenet_fourier': 'imagenet.py', 'imagenet_learned': 'imagenet.py:learned', 'imagenet_conv': 'imagenet.py:conv',
  'masked_lm': 'masked_lm.py', 'optical_flow': 'optical_flow.py', 'video_autoencoding': 'video_autoencoding.py',
}


def _config(name, is_small=False):
  experiment = EXPERIMENTS[name]
  if is_small:
    experiment += ',debug' if ':' in experiment else ':debug'
  return config_file.load(f'{ROOT}/configs/{experiment}')


def _random(shapes):
  """Arrays of these shapes, no two alike."""
  rng = np.random.default_rng(0)
  return jax.tree.map(lambda x: rng.normal(size=x.shape).astype(x.dtype), shapes)


def _renamed(trees, task):
  """(params, state) of ours, as the authors' file has it."""
  foreign = {'params': {}, 'state': {}}
  for kind, tree in zip(foreign, trees, strict=True):
    for module, leaves in tree.items():
      for leaf, value in leaves.items():
        path, name = deepmind.foreign_name(task, f'{module}:{leaf}').rsplit(':', 1)
        foreign[kind].setdefault(path, {})[name] = value
  return foreign


def _write(path, tree):
  path.write_bytes(pickle.dumps(tree, protocol=4))
  return path


@pytest.mark.parametrize('name', TREES)
def test_every_entry_of_a_released_model_has_its_place(name):
  config = _config(name)
  found = {
    f'{kind} {module}:{leaf}': ' x '.join(map(str, value.shape))
    for kind, tree in _renamed(template(config), config.task).items()
    for module, leaves in tree.items() for leaf, value in leaves.items()}
  assert found == TREES[name]


@pytest.mark.parametrize('name', TREES)
def test_a_file_is_read_back_under_our_names(name, tmp_path):
  config = _config(name, is_small=True)
  trees = _random(template(config))
  foreign = _renamed(trees, config.task)
  mappings = {kind: hk.data_structures.to_haiku_dict(tree) for kind, tree in foreign.items()}
  path = _write(tmp_path / 'file.pystate', mappings if 'imagenet' in name else mappings['params'])
  jax.tree.map(np.testing.assert_array_equal, deepmind.load(path, config, template(config)), trees)


def test_query_key_and_value_keep_apart(tmp_path):
  """They may have the same shape, so that only their names tell them apart."""
  names = [deepmind.foreign_name('optical_flow', f'processor/self_attend_7/attention/{name}:w')
           for name in ('query', 'key', 'value', 'output')]
  path = 'perceiver_encoder/~/self_attention_7/attention/linear'
  assert names == [f'{path}:w', f'{path}_1:w', f'{path}_2:w', f'{path}_3:w']


def test_all_that_does_not_fit_is_named_at_once(tmp_path):
  config = _config('optical_flow', is_small=True)
  params = _renamed(_random(template(config)), config.task)['params']
  del params['flow_decoder/~/basic_decoder/output']['b']
  params['perceiver_encoder/~/cross_attention/layer_norm']['scale'] = np.ones(3, np.float32)
  params['an_adapter'] = {'w': np.ones((2, 2), np.float32)}
  path = _write(tmp_path / 'file.pystate', params)
  with pytest.raises(UserError) as refusal:
    deepmind.load(path, config, template(config))
  for part in ('file.pystate', 'decoder/output/b is missing', 'an_adapter/w is unexpected',
               'encoder/cross_attend_0/query_norm/scale is [3], expected [16]'):
    assert part in str(refusal.value)


def test_a_file_of_another_model_is_refused(tmp_path):
  config = _config('masked_lm', is_small=True)
  path = _write(tmp_path / 'file.pickle', _renamed(_random(template(config)), config.task)['params'])
  flow = _config('optical_flow', is_small=True)
  with pytest.raises(UserError, match=r'does not fit this model: .* is unexpected'):
    deepmind.load(path, flow, template(flow))


@pytest.mark.parametrize('tree', [
  {}, [], 3, {'params': 3}, {'module': 3}, {'module': {'w': 3}}, {'params': {'module': {'w': 'text'}}},
])
def test_a_pickle_of_anything_else_is_refused(tree, tmp_path):
  config = _config('optical_flow', is_small=True)
  with pytest.raises(UserError, match='holds no'):
    deepmind.load(_write(tmp_path / 'file.pystate', tree), config, template(config))


def test_a_pickle_that_runs_something_runs_nothing(tmp_path):
  class Malicious:
    def __reduce__(self):
      return pathlib.Path.touch, (tmp_path / 'touched',)

  config = _config('optical_flow', is_small=True)
  path = _write(tmp_path / 'file.pystate', {'module': {'w': Malicious()}})
  with pytest.raises(UserError, match='pathlib'):
    deepmind.load(path, config, template(config))
  assert not (tmp_path / 'touched').exists()


def test_there_is_no_released_text_classifier():
  config = _config('masked_lm', is_small=True)
  config.task = 'text_classification'
  with pytest.raises(UserError, match="released no model of the task 'text_classification'"):
    deepmind.convert({}, {}, config, ({}, {}))
