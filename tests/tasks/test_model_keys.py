"""Each key of config.model reaches the model: parameters, what attends to what, or the numbers themselves."""

from __future__ import annotations

import haiku as hk
import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import digits
from perceiver_jax.tasks import image_classification

BATCH = {
  'image': np.random.default_rng(0).integers(0, 256, (2, 8, 8, 1), dtype=np.uint8),
  'label': np.zeros(2, np.int32),
  'mask': np.ones(2, np.float32),
}


@pytest.fixture
def config():
  return digits.get_config('perceiver,debug')


def _model(config: ConfigDict) -> hk.TransformedWithState:
  return hk.transform_with_state(image_classification.make(config).forward)


def _shapes(config: ConfigDict) -> dict[str, tuple[int, ...]]:
  """Of every parameter, by its path."""
  params, _ = jax.eval_shape(lambda key: _model(config).init(key, BATCH, is_training=True), jax.random.key(0))
  return {f'{module}/{name}': array.shape for module, arrays in params.items() for name, array in arrays.items()}


def _outputs(config: ConfigDict, **kwargs):
  """With parameters that are the same for every config with the same tree, and none of them zero."""
  model = _model(config)

  def run(key):
    params, state = model.init(key, BATCH, is_training=True)
    params = jax.tree.map(lambda x: x + 0.1 * jax.random.normal(key, x.shape), params)
    return model.apply(params, state, None, BATCH, is_training=False, **kwargs)[0]

  return jax.jit(run)(jax.random.key(0))


def test_blocks_share_their_parameters_or_not(config):
  shared = _shapes(config)
  config.model.share_blocks = False
  assert set(_shapes(config)) - set(shared) == {
    name.replace('self_attend_0', 'self_attend_1') for name in shared if 'self_attend_0' in name}


def test_later_cross_attends_share_their_parameters_or_not(config):
  config.model.num_cross_attends = config.model.num_blocks = 3
  shared = _shapes(config)
  config.model.share_cross_attends = False
  assert set(_shapes(config)) - set(shared) == {
    name.replace('cross_attend_1', 'cross_attend_2') for name in shared if 'cross_attend_1' in name}


def test_cross_attends_stand_where_the_config_says(config):
  interleaved = _outputs(config)['logits']
  config.model.cross_attends = 'start'
  assert np.max(np.abs(_outputs(config)['logits'] - interleaved)) > 1e-3


def test_cross_attends_have_the_heads_that_the_config_says(config):
  config.model.num_cross_heads = 19  # 1 channel of a pixel, and 2 * (2 * 4 + 1) of its position
  captured = _outputs(config, capture=True)['captured']
  assert captured['cross_attends'].shape == (2, 2, 19, 4, 64)


def test_mlps_are_as_wide_as_the_config_says(config):
  config.model.widening = 3
  shapes = _shapes(config)
  assert shapes['processor/self_attend_0/mlp/hidden/w'] == (16, 48)
  assert shapes['encoder/cross_attend_0/mlp/hidden/w'] == (16, 48)


def test_bands_are_spaced_as_the_config_says(config):
  linear = _outputs(config)['logits']
  config.model.position.spacing = 'log'
  assert np.max(np.abs(_outputs(config)['logits'] - linear)) > 1e-3
