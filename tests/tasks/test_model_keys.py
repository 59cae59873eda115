"""Each key of config.model reaches the model: parameters, what attends to what, or the numbers themselves."""

from __future__ import annotations

import functools

import haiku as hk
import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import digits
from perceiver_jax.config.values import check
from perceiver_jax.tasks import image_classification
from perceiver_jax.types import UserError
from tests.core.test_attention import compiled, randomise

pytestmark = pytest.mark.usefixtures('quick_compilation')

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


def _outputs(config: ConfigDict, batch=BATCH, **kwargs):
  """With parameters that are the same for every config with the same tree, and none of them zero."""
  model = _model(config)
  params, state = jax.eval_shape(functools.partial(model.init, is_training=True), jax.random.key(0), BATCH)
  apply = compiled(functools.partial(model.apply, is_training=False, **kwargs))
  return apply(randomise(params), jax.tree.map(lambda x: np.ones(x.shape, x.dtype), state), None, batch)[0]


@pytest.mark.parametrize(('backbone', 'part'), [
  ('perceiver', 'encoder/latents'), ('resnet50', 'resnet50/~/logits/w'), ('resnet20', 'group_2/~/block_2/~/conv_1/w'),
  ('vit', 'class_token/table'), ('transformer', 'tokens/w')])
def test_the_model_is_the_one_that_the_config_says(config, backbone, part):
  config.model.backbone = backbone
  assert part in _shapes(config)


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
  config.model.self_widening = 3
  config.model.cross_widening = 2
  shapes = _shapes(config)
  assert shapes['processor/self_attend_0/mlp/hidden/w'] == (16, 48)
  assert shapes['encoder/cross_attend_0/mlp/hidden/w'] == (16, 32)


def test_attention_is_as_wide_as_the_config_says(config):
  config.model.qk_channels = 6
  config.model.v_channels = 10
  shapes = _shapes(config)
  for block in ('encoder/cross_attend_0', 'processor/self_attend_0'):
    assert shapes[f'{block}/attention/key/w'][1] == 6
    assert shapes[f'{block}/attention/value/w'][1] == 10
    assert shapes[f'{block}/attention/output/w'] == (10, 16)


@pytest.mark.parametrize(('key', 'value'), [('gelu', 'exact'), ('encoder_residual', False)])
def test_blocks_are_as_the_config_says(config, key, value):
  before = _outputs(config)['logits']
  config.model.gelu = 'exact' if key == 'gelu' else 'tanh'
  config.model.encoder_residual = key != 'encoder_residual'
  assert config.model[key] == value
  assert np.max(np.abs(_outputs(config)['logits'] - before)) > 1e-6


def test_an_image_without_a_valid_element_reads_what_the_config_says(config):
  blind = {**BATCH, 'valid': np.zeros((2, 64), np.uint8)}
  zero = _outputs(config, batch=blind)['logits']
  config.model.masked_rows = 'mean'
  assert np.max(np.abs(_outputs(config, batch=blind)['logits'] - zero)) > 1e-3
  assert np.isfinite(zero).all()


def test_the_stem_cuts_patches_as_large_as_the_config_says(config):
  config.model.stem.kind = 'patches'
  config.model.stem.patch_size = 2
  config.model.position.max_resolution = (8, 8)
  assert _outputs(config, capture=True)['captured']['cross_attends'].shape[-1] == 16


def test_a_convolution_pads_as_the_config_says(config):
  config.model.stem.kind = 'conv'
  before = _outputs(config)['logits']
  config.model.stem.padding = 'symmetric'
  assert np.max(np.abs(_outputs(config)['logits'] - before)) > 1e-4


def test_pixels_that_move_with_their_positions_need_an_element_each(config):
  config.model.stem.kind = 'conv'
  config.data.permutation = 'joint'
  with pytest.raises(UserError, match=r"permutation=joint needs an element for each pixel, not stem.kind='conv'"):
    _model(config)


def test_bands_are_spaced_as_the_config_says(config):
  linear = _outputs(config)['logits']
  config.model.position.spacing = 'log'
  assert np.max(np.abs(_outputs(config)['logits'] - linear)) > 1e-3


@pytest.mark.parametrize('attention_impl', ['factored', 'chunked'])
def test_attention_is_computed_as_the_config_says_with_the_same_result(config, attention_impl):
  config.attention_impl = 'dense'
  dense = _outputs(config, capture=True)
  config.attention_impl = attention_impl
  assert np.max(np.abs(_outputs(config)['logits'] - dense['logits'])) < 1e-5
  captured = _outputs(config, capture=True)['captured']['cross_attends']
  np.testing.assert_array_equal(captured, dense['captured']['cross_attends'])  # the weights are those of the dense path


def test_an_attention_of_another_name_is_the_users_mistake(config):
  config.attention_impl = 'sparse'
  with pytest.raises(UserError, match=r"attention_impl is 'sparse'.* It is one of auto, dense, factored, chunked"):
    check(config)
