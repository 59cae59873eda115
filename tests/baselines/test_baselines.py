"""The baselines as the task makes them: sizes, what they read, what a permutation does to them, and that they train."""

from __future__ import annotations

import functools
import json
import re

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import imagenet
from perceiver_jax.baselines import BACKBONES
from perceiver_jax.baselines.pixels import pixel_grid
from perceiver_jax.config import overrides
from perceiver_jax.config.values import check
from perceiver_jax.core.position_encoding import fourier_features
from perceiver_jax.data.permutation import permutation, permute_pixels
from perceiver_jax.inference import model as inference
from perceiver_jax.runs import weights
from perceiver_jax.tasks import image_classification
from perceiver_jax.training import experiment, loop
from perceiver_jax.types import UserError
from tests.core.test_attention import compiled, randomise

pytestmark = pytest.mark.usefixtures('quick_compilation')

BATCH = {
  'image': np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), dtype=np.uint8),
  'label': np.array([0, 1, 2, 4], np.int32),
  'mask': np.ones(4, np.float32),
}


def _config(variant: str, **changes) -> ConfigDict:
  config = imagenet.get_config(variant)
  config.update_from_flattened_dict(changes)
  return config


def _tiny(backbone: str, **changes) -> ConfigDict:
  """On images of 16 x 16, with 5 classes."""
  return _config('debug', **{'model.backbone': backbone, **changes})


def _transformed(config: ConfigDict, *, is_training: bool) -> hk.TransformedWithState:
  forward = image_classification.make(config).forward
  return hk.transform_with_state(functools.partial(forward, is_training=is_training))


def _shapes(config: ConfigDict):
  data = config.data
  batch = {'image': jax.ShapeDtypeStruct((1, data.image_size, data.image_size, data.num_channels), np.uint8)}
  return jax.eval_shape(_transformed(config, is_training=True).init, jax.random.key(0), batch)


def _random(config: ConfigDict):
  """Parameters and state far from their initial values, and functions of the names and shapes alone."""
  params, state = _shapes(config)
  averages = jax.tree.map(lambda x: np.full(x.shape, 1.5, x.dtype), state)
  return randomise(params), averages


def _logits(config: ConfigDict, image: np.ndarray) -> np.ndarray:
  return compiled(_transformed(config, is_training=False).apply)(*_random(config), None, {'image': image})[0]['logits']


# Sizes.


@pytest.mark.parametrize(('variant', 'total'), [
  ('resnet50,rgb', 25_557_032),
  ('rgb', 25_557_032),
  ('vit,rgb', 86_567_656),
  # 258 more channels of a pixel: into 64 channels by 7 x 7 pixels, into 768 by 16 x 16, into 512.
  ('resnet50', 25_557_032 + 258 * 49 * 64),
  ('vit', 86_567_656 + 258 * 256 * 768),
  ('vit,permuted', 86_567_656 + 258 * 256 * 768),
  ('transformer,rgb', 4 * 512 + 8 * (6 * (512**2 + 512) + 4 * 512) + 513 * 1000),
  ('transformer', 262 * 512 + 8 * (6 * (512**2 + 512) + 4 * 512) + 513 * 1000),
])
def test_the_baselines_have_their_exact_number_of_parameters(variant, total):
  params, _ = _shapes(_config(variant))
  assert sum(x.size for x in jax.tree.leaves(params)) == total
  assert f'{total:,}' in imagenet.__doc__ or variant in ('rgb', 'transformer,rgb', 'vit,permuted')


@pytest.mark.parametrize(('kind', 'total'), [('none', 272_474), ('fourier', 272_474 + 258 * 9 * 16)])
def test_resnet20_has_the_size_of_the_model_for_images_of_32_pixels(kind, total):
  config = _config('rgb', **{
    'model.backbone': 'resnet20', 'model.position.kind': kind, 'data.image_size': 32, 'data.num_classes': 10,
    'model.position.max_resolution': (32, 32)})
  params, _ = _shapes(config)
  assert sum(x.size for x in jax.tree.leaves(params)) == total


def test_the_transformer_reads_an_image_of_64_pixels_as_4096_tokens():
  config = _config('transformer')
  assert config.data.image_size**2 == 4096
  assert config.model.position.max_resolution == (64, 64)


# What they read.


def _grid(config: ConfigDict, image, order=None):
  function = hk.transform(lambda image: pixel_grid(image, config.model, order=order))
  return function.apply(function.init(jax.random.key(0), image), None, image)


def test_a_pixel_has_its_colours_and_then_its_position():
  config = _tiny('vit')
  pixels = _grid(config, BATCH['image'])
  rows, columns = np.meshgrid(np.linspace(-1, 1, 16), np.linspace(-1, 1, 16), indexing='ij')
  positions = fourier_features(jnp.asarray(np.stack([rows, columns], -1)), 4, (224, 224))
  assert pixels.shape == (4, 16, 16, 3 + 2 * 9)
  np.testing.assert_allclose(
    pixels[..., :3], (BATCH['image'] / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225], rtol=1e-4, atol=1e-5)
  for pixels_of_one in pixels[..., 3:]:
    np.testing.assert_allclose(pixels_of_one, positions, atol=3e-4)


def test_without_positions_a_pixel_has_its_colours_only():
  config = _tiny('vit', **{'model.position.kind': 'none'})
  pixels = _grid(config, BATCH['image'])
  np.testing.assert_array_equal(pixels, _grid(_tiny('vit'), BATCH['image'])[..., :3])


def test_a_learned_position_is_one_for_each_pixel():
  config = _tiny('resnet20', **{'model.position.kind': 'learned', 'model.position.channels': 7})
  assert _grid(config, BATCH['image']).shape == (4, 16, 16, 10)
  params, _ = _shapes(config)
  assert params['positions']['table'].shape == (256, 7)


def test_a_moved_pixel_brings_its_position_to_its_new_place():
  config, order = _tiny('vit'), permutation(256)
  moved = _grid(config, permute_pixels(BATCH['image'], order), order)
  np.testing.assert_array_equal(moved, permute_pixels(np.asarray(_grid(config, BATCH['image'])), order))


# What a permutation does.


def _change(config: ConfigDict, kind: str) -> float:
  """How far the logits move, as a share of the largest, where the pixels of the images and of the model are moved."""
  at_home = _logits(config, BATCH['image'])
  assert at_home.shape == (4, 5) and np.ptp(at_home, axis=0).min() > 0.01
  with config.unlocked():
    moved = ConfigDict(config.to_dict())
  moved.data.permutation = kind
  logits = _logits(moved, permute_pixels(BATCH['image'], permutation(256)))
  return np.abs(logits - at_home).max() / np.abs(at_home).max()


@pytest.mark.parametrize('backbone', ['perceiver', 'transformer'])
def test_pixels_that_move_with_their_positions_change_nothing_where_all_pixels_are_alike(backbone):
  config = _tiny(backbone)
  assert _change(config, 'joint') < 1e-5
  assert _change(config, 'pixels') > 0.01


@pytest.mark.parametrize('kind', ['fourier', 'none'])
@pytest.mark.parametrize('backbone', ['resnet20', 'vit'])
def test_pixels_that_move_change_what_sees_windows_even_with_their_positions(backbone, kind):
  assert _change(_tiny(backbone, **{'model.position.kind': kind}), 'joint') > 0.01


def test_without_positions_a_transformer_sees_a_bag_of_pixels():
  config = _tiny('transformer', **{'model.position.kind': 'none'})
  assert _change(config, 'pixels') < 1e-5


# Computing.


@pytest.mark.parametrize('backbone', BACKBONES)
def test_logits_come_with_nothing_captured(backbone):
  config = _tiny(backbone)
  run = functools.partial(_transformed(config, is_training=False).apply, capture=True)
  params, state = _shapes(config)
  outputs, _ = jax.eval_shape(run, params, state, None, {'image': BATCH['image']})
  assert outputs.keys() == {'logits', 'captured'} and outputs['captured'] == {}
  assert outputs['logits'].shape == (4, 5)


@pytest.mark.parametrize('backbone', ['resnet20', 'vit', 'transformer'])
def test_the_loss_has_a_gradient_by_every_parameter(backbone):
  config = _tiny(backbone)
  task, apply = image_classification.make(config), _transformed(config, is_training=True).apply
  params, state = _random(config)

  def loss(params):
    outputs, _ = apply(params, state, None, BATCH)
    return task.measure(outputs, BATCH)['loss'][0]

  gradients = compiled(jax.grad(loss))(params)
  # A bias of all keys adds the same to all logits of a query: it has none but rounding.
  largest = {f'{module}/{leaf}': np.abs(x).max() for module, leaves in gradients.items() for leaf, x in leaves.items()}
  assert [path for path, x in largest.items() if not x > 1e-6 and not path.endswith('/key/b')] == []
  assert all(np.isfinite(list(largest.values())))


@pytest.mark.parametrize(('backbone', 'num_attentions'), [('resnet20', 0), ('vit', 2), ('transformer', 2)])
def test_a_baseline_computes_in_bfloat16_where_the_precision_says_so(backbone, num_attentions):
  config = _tiny(backbone, precision='params=float32,compute=bfloat16,output=float32')
  built = experiment.build(config, image_classification.make(config))
  params, state = _random(config)
  text = str(jax.make_jaxpr(lambda *trees: built.apply(*trees, None, BATCH, is_training=False)[0])(params, state))
  if backbone == 'transformer' and jax.default_backend() == 'cpu':
    num_attentions *= config.model.num_self_heads  # large ones are multiplied head by head
  products = re.findall(r':(\w+)\[.*\] = (?:dot_general|conv_general_dilated)\[', text)
  assert products.count('f32') == num_attentions  # logits of attention, on purpose
  assert products.count('bf16') == len(products) - num_attentions > 8


def test_batchnorm_learns_averages_in_training_and_uses_them_after():
  config = _tiny('resnet20')
  params, state = _random(config)
  _, trained = compiled(_transformed(config, is_training=True).apply)(params, state, None, BATCH)
  _, kept = compiled(_transformed(config, is_training=False).apply)(params, state, None, BATCH)
  assert {path.split('/')[0] for path in state} == {'stem_norm', 'group_0', 'group_1', 'group_2'}
  jax.tree.map(np.testing.assert_array_equal, kept, state)
  assert all(np.any(trained[path]['average'] != state[path]['average']) for path in state)
  alone = _logits(config, BATCH['image'][:1])
  np.testing.assert_allclose(alone, _logits(config, BATCH['image'])[:1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('backbone', ['vit', 'transformer'])
def test_layers_are_those_of_the_latent_transformer(backbone):
  config = _tiny(backbone)
  config.model.update({'num_blocks': 2, 'num_self_attends_per_block': 2})
  shared = {path for path in _shapes(config)[0] if path.startswith('processor/')}
  latents = {path for path in _shapes(_tiny('perceiver', **{
    'model.num_blocks': 2, 'model.num_self_attends_per_block': 2}))[0] if path.startswith('processor/')}
  assert shared == latents
  once = _logits(_tiny(backbone, **{'model.num_blocks': 1, 'model.num_self_attends_per_block': 2}), BATCH['image'])
  assert np.abs(_logits(config, BATCH['image']) - once).max() > 0.01
  config.model.share_blocks = False
  assert len({path.split('/')[1] for path in _shapes(config)[0] if path.startswith('processor/')}) == 4


def test_a_vit_cuts_patches_as_large_as_the_config_says():
  config = _tiny('vit')
  for patch_size, num_tokens in ((4, 17), (8, 5)):
    config.model.stem.patch_size = patch_size
    params, _ = _shapes(config)
    assert params['token_positions']['table'].shape == (num_tokens, 16)
    assert params['patches']['w'].shape == (patch_size**2 * 21, 16)


# The whole program.


@pytest.mark.slow
@pytest.mark.parametrize(('variant', 'has_state'), [
  ('resnet50,permuted', True), ('vit,rgb', False), ('transformer', False), ('conv', True)])
def test_a_variant_trains_through_the_loop_to_a_picture_and_can_be_used(variant, has_state, tmp_path):
  labels = np.arange(100) % 5
  images = np.random.default_rng(0).integers(0, 156, (100, 16, 16, 3)) + 20 * labels[:, None, None, None]
  np.savez(tmp_path / 'images.npz', images=images.astype(np.uint8), labels=labels)
  config = overrides.load(f'configs/imagenet.py:{variant},debug')
  config.update_from_flattened_dict({
    'num_steps': 2, 'batch_size': 8, 'eval.every_steps': 1, 'eval.batch_size': 16, 'log.every_steps': 1,
    'data.name': 'images', 'data.path': str(tmp_path / 'images.npz'), 'data.class_names': None})
  assert loop.train(config, str(tmp_path / 'run'), image_classification.make(config)) == 0
  history = [json.loads(line) for line in (tmp_path / 'run' / 'metrics.jsonl').read_text().splitlines()]
  assert all(np.isfinite(list(line.values())).all() for line in history) and 'test/loss' in history[-1]
  assert (tmp_path / 'run' / 'summary.png').read_bytes().startswith(b'\x89PNG')
  built = experiment.build(config, image_classification.make(config)).init()
  assert bool(built.state) == has_state
  weights.save(tmp_path / 'saved', config, built.params, built.state)
  loaded = weights.load(tmp_path / 'saved')
  again = inference.build(loaded.config, loaded.params, loaded.state).run({'image': BATCH['image']})
  assert again['logits'].shape == (4, 5)


# Mistakes.


@pytest.mark.parametrize(('changes', 'message'), [
  ({'model.backbone': 'resnet'}, r"model.backbone is 'resnet'; did you mean .* perceiver, resnet50, .*transformer"),
  ({'model.stem.kind': 'conv'}, r"model.backbone='vit' reads pixels: it has no stem.kind='conv'"),
  ({'model.position.kind': 'sines'}, r"model.position.kind is 'sines'.* It is one of fourier"),
  ({'model.stem.patch_size': 3}, r'patches of 1 x 3 x 3 do not divide \[1, 16, 16, 21\]'),
  ({'model.num_self_heads': 3}, r'3 heads do not divide qk_channels = 16'),
])
def test_a_baseline_that_cannot_be_made_is_the_users_mistake(changes, message):
  with pytest.raises(UserError, match=message):
    check(_tiny('vit', **changes))
    _shapes(_tiny('vit', **changes))


@pytest.mark.parametrize(('entries', 'message'), [
  ({'valid': np.ones((4, 256), np.uint8)}, r"model.backbone='vit' reads whole images: .* `valid`"),
  ({'image': BATCH['image'][:, :8]}, r'image is \[batch, 16, 16, 3\], not \[4, 8, 16, 3\]'),
])
def test_a_batch_that_a_vit_cannot_read_is_the_users_mistake(entries, message):
  config = _tiny('vit')
  with pytest.raises(UserError, match=message):
    jax.eval_shape(_transformed(config, is_training=False).apply, *_shapes(config), None, {**BATCH, **entries})
