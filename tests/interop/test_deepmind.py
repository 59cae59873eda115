"""The authors' names and ours: every released tree, entry by entry, and files that hold something else."""

from __future__ import annotations

import functools
import itertools
import json
import pathlib
import pickle

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perceiver_jax.config import overrides
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
  return overrides.load(f'{ROOT}/configs/{experiment}')


@functools.cache
def _full_size(name):
  """(config, shapes of params and state), which nobody may change."""
  config = _config(name)
  return config, template(config)


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
  config, shapes = _full_size(name)
  found = {
    f'{kind} {module}:{leaf}': ' x '.join(map(str, value.shape))
    for kind, tree in _renamed(shapes, config.task).items()
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


@pytest.mark.parametrize(('asked', 'given'), itertools.permutations(TREES, 2))
def test_a_file_of_another_released_model_is_told_by_name(asked, given):
  """At full size, but in arrays without memory."""
  (config, expected), (other, found) = _full_size(asked), _full_size(given)
  foreign = jax.tree.map(
    lambda x: np.broadcast_to(np.zeros((), x.dtype), x.shape), _renamed(found, other.task))
  with pytest.raises(UserError) as error:
    deepmind.convert(foreign['params'], foreign['state'], config, expected, 'file.pystate')
  said = str(error.value)
  assert said.startswith(f'file.pystate looks like {given}, not {asked}: it does not fit this model: ')
  assert said.count(';') == 3 and said.endswith(' in all')


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


@pytest.mark.parametrize('dtype', ['float16', 'bfloat16', 'float64'])
def test_floats_of_any_precision_become_float32_and_counters_stay(dtype):
  config = _config('imagenet_conv', is_small=True)
  likes = template(config)
  trees = jax.tree.map(
    lambda x: x.astype(jnp.dtype(dtype)) if x.dtype == np.float32 else x.astype(np.int64), _random(likes))
  foreign = _renamed(trees, config.task)
  found = deepmind.convert(foreign['params'], foreign['state'], config, likes)
  assert jax.tree.map(lambda x: x.dtype, found) == jax.tree.map(lambda x: x.dtype, likes)
  assert {x.dtype for x in jax.tree.leaves(found)} == {np.dtype('float32'), np.dtype('int32')}
  jax.tree.map(lambda x, y: np.testing.assert_array_equal(x, y.astype(x.dtype)), found, trees)


@pytest.mark.parametrize('dtype', ['complex64', 'int32', 'bool'])
def test_numbers_that_are_no_floats_are_named(dtype):
  config = _config('optical_flow', is_small=True)
  params = _renamed(_random(template(config)), config.task)['params']
  leaves = params['flow_decoder/~/basic_decoder/output']
  leaves['b'] = leaves['b'].astype(dtype)
  with pytest.raises(UserError, match=f'the tree: params/decoder/output/b is of {dtype}, not of floats'):
    deepmind.convert(params, {}, config, template(config))


def test_a_counter_is_an_integer():
  config = _config('imagenet_conv', is_small=True)
  foreign = _renamed(_random(template(config)), config.task)
  leaves = foreign['state']['image_preprocessor/~/conv2_d_downsample/~/batchnorm/~/mean_ema']
  leaves['counter'] = leaves['counter'].astype(np.float32)
  with pytest.raises(UserError, match='mean_ema/counter is of float32, not of integers'):
    deepmind.convert(foreign['params'], foreign['state'], config, template(config))


@pytest.mark.parametrize('value', [np.nan, -np.inf, 1e300])
def test_a_number_that_is_not_finite_is_told_of_by_the_name_of_its_entry(value):
  config = _config('optical_flow', is_small=True)
  params = _renamed(_random(template(config)), config.task)['params']
  leaves = params['flow_decoder/~/basic_decoder/output']
  leaves['b'] = leaves['b'].astype(np.float64)
  leaves['b'][0] = value
  with pytest.raises(UserError, match='the tree: params/decoder/output/b holds numbers that are not finite'):
    deepmind.convert(params, {}, config, template(config))
