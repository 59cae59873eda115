"""The task as a whole: sizes that the papers print, permuted pixels, what is captured, what is counted."""

import functools

import haiku as hk
import jax
import numpy as np
import pytest
from matplotlib.image import imread

from perceiver_jax.config import defaults
from perceiver_jax.config.values import check
from perceiver_jax.data import pipeline
from perceiver_jax.data.permutation import permutation
from perceiver_jax.tasks import image_classification
from perceiver_jax.types import ALWAYS, UserError
from tests.core.test_attention import compiled, randomise

pytestmark = pytest.mark.usefixtures('quick_compilation')

ORIGINAL = {'head': 'pool', 'num_cross_attends': 8}
IO_LEARNED = {
  'stem': {'kind': 'conv1x1', 'channels': 256}, 'position': {'kind': 'learned', 'projection_channels': 256}}
CONV = {'stem': {'kind': 'conv', 'channels': 64}}
CONFIG_B = {'num_blocks': 1, 'num_self_attends_per_block': 16, 'self_widening': 4}
NO_LATENT_TRANSFORMER = {'head': 'pool', 'num_blocks': 0, 'share_cross_attends': False}


def _imagenet(**model):
  config = defaults.get_config()
  config.data.update({'name': 'images', 'num_classes': 1000})
  config.model.update(model)
  return config


def _digits(permutation='none', **model):
  """A tiny model of real pictures."""
  config = defaults.get_config()
  config.data.update({
    'name': 'digits', 'image_size': 8, 'num_channels': 1, 'num_classes': 10, 'permutation': permutation})
  config.model.update({
    'num_latents': 5, 'latent_channels': 16, 'num_blocks': 2, 'num_self_attends_per_block': 2, 'num_self_heads': 2,
    'query_channels': 12, 'query_residual': False, 'position': {'num_bands': 4, 'channels': 6}})
  config.model.update(model)
  return config


PERCEIVER = {'head': 'pool', 'num_cross_attends': 2, 'num_self_attends_per_block': 1}
LEARNED = {'position': {'kind': 'learned'}}


# Sizes.


def _shapes(config):
  data = config.data
  batch = {'image': jax.ShapeDtypeStruct((1, data.image_size, data.image_size, data.num_channels), np.uint8)}
  function = hk.transform_with_state(functools.partial(image_classification.make(config).forward, is_training=True))
  params, state = jax.eval_shape(function.init, jax.random.key(0), batch)
  assert bool(state) == (config.model.stem.kind == 'conv')  # of BatchNorm
  return params


@pytest.mark.parametrize('total, model', [
  (48_440_627, {}),
  (42_135_859, {'head': 'pool'}),
  (44_912_254, ORIGINAL),
  (44_912_254, {**ORIGINAL, 'cross_attends': 'start'}),
  (326_241_856, {**ORIGINAL, 'share_cross_attends': False, 'share_blocks': False}),
  (12_654_868, {**NO_LATENT_TRANSFORMER, 'num_cross_attends': 4}),
  (23_760_448, {**NO_LATENT_TRANSFORMER, 'num_cross_attends': 8}),
  (34_866_028, {**NO_LATENT_TRANSFORMER, 'num_cross_attends': 12}),
  (48_189_577, {'head': 'pool', 'position': {'kind': 'learned', 'channels': 128}}),
  (62_255_848, IO_LEARNED),
  (55_951_080, {**IO_LEARNED, 'head': 'pool'}),
  (48_646_522, CONV),
  (42_341_754, {**CONV, 'head': 'pool'}),
  (212_170_035, CONFIG_B),
  (212_375_930, {**CONFIG_B, **CONV}),
  (213_082_618, {**CONFIG_B, 'stem': {'kind': 'conv1x1', 'channels': 256}}),
])
def test_the_models_of_the_papers_have_their_exact_number_of_parameters(total, model):
  params = _shapes(_imagenet(**model))
  assert sum(x.size for x in jax.tree.leaves(params)) == total
  assert not [path for path in params if '~' in path]
  assert {str(x.dtype) for x in jax.tree.leaves(params)} == {'float32'}


def test_bands_spaced_by_logarithm_are_as_many():
  assert _shapes(_imagenet(position={'spacing': 'log'})) == _shapes(_imagenet())


# What it computes, on real pictures.


@functools.cache
def _pictures(permutation='none', is_training=False):
  task = image_classification.make(_digits(permutation))
  dataset = task.dataset('test', is_training=is_training)
  return next(pipeline.batches(dataset, 'test', batch_size=4, is_training=is_training))


def _model(config, capture=False):
  """(batch) -> outputs on the host, of random parameters: a function of their names and shapes alone."""
  forward = functools.partial(image_classification.make(config).forward, is_training=False, capture=capture)
  apply, params = compiled(hk.transform_with_state(forward).apply), randomise(_shapes(config))
  return lambda batch: apply(params, {}, None, batch)[0]


def _difference(outputs, others):
  return np.abs(outputs['logits'] - others['logits']).max() / np.abs(others['logits']).max()


@pytest.mark.parametrize('model', [{}, PERCEIVER, LEARNED], ids=['io', 'perceiver', 'learned'])
def test_pixels_that_move_with_their_positions_change_no_logit_and_pixels_that_move_alone_do(model):
  at_home = _model(_digits(**model))(_pictures())
  assert np.ptp(at_home['logits'], axis=0).min() > 0.01  # the head is no longer zero, and sees the picture
  joint, pixels = (_model(_digits(permutation, **model)) for permutation in ('joint', 'pixels'))
  assert (_pictures('joint')['image'] != _pictures()['image']).mean() > 0.4
  assert _difference(joint(_pictures('joint')), at_home) < 1e-5
  assert _difference(pixels(_pictures('pixels')), at_home) > 0.01
  assert _difference(joint(_pictures()), at_home) > 0.01  # positions that move alone


def test_every_batch_of_a_permuted_run_has_the_same_pixels_in_the_same_other_places():
  order = permutation(64)
  for is_training in (False, True):
    pictures = _pictures('none', is_training)
    for kind in ('joint', 'pixels'):
      moved = _pictures(kind, is_training)
      np.testing.assert_array_equal(moved['image'].reshape(4, 64), pictures['image'].reshape(4, 64)[:, order])
      for name in ('label', 'mask'):
        np.testing.assert_array_equal(moved[name], pictures[name])


def test_batches_hold_what_the_task_reads():
  task, batch = image_classification.make(_digits()), _pictures()
  fields = {**task.inputs, **task.targets, **ALWAYS}
  assert {name: (x.shape[1:], x.dtype.name) for name, x in batch.items()} == {
    name: (field.shape, field.dtype) for name, field in fields.items() if not field.is_optional}


@pytest.mark.parametrize('model', [{}, PERCEIVER], ids=['io', 'perceiver'])
def test_what_the_attentions_looked_at_comes_back_if_asked_for_and_changes_no_logit(model):
  config = _digits(**model)
  plain, outputs = _model(config)(_pictures()), _model(config, capture=True)(_pictures())
  assert plain.keys() == {'logits'}
  np.testing.assert_allclose(outputs['logits'], plain['logits'], rtol=1e-5, atol=1e-5)
  captured = outputs['captured']
  expected = {'latents': (4, 5, 16)}
  if model:
    expected |= {'cross_attends': (2, 4, 1, 5, 64), 'self_attends': (2, 1, 4, 2, 5, 5)}
  else:
    expected |= {'cross_attends': (1, 4, 1, 5, 64), 'self_attends': (2, 2, 4, 2, 5, 5), 'decoder': (4, 1, 1, 5)}
  assert {name: x.shape for name, x in captured.items()} == expected
  for name in expected.keys() - {'latents'}:
    np.testing.assert_allclose(captured[name].sum(-1), 1.0, rtol=1e-5, err_msg=name)


def test_the_logits_of_a_picture_do_not_depend_on_its_company():
  backwards = {name: x[::-1] for name, x in _pictures().items()}
  model = _model(_digits())
  logits = model(_pictures())['logits']
  assert (logits.shape, logits.dtype) == ((4, 10), np.float32)
  np.testing.assert_allclose(model(backwards)['logits'][::-1], logits, rtol=1e-5, atol=1e-6)


PATCHES = {'stem': {'kind': 'patches', 'patch_size': 2}}


@pytest.mark.parametrize(('permutation', 'model', 'has_maps'), [
  ('none', {}, True), ('joint', PERCEIVER, True), ('none', PATCHES, True), ('pixels', PATCHES, False),
  ('joint', {'backbone': 'transformer'}, False)])
def test_every_kind_of_model_is_drawn(permutation, model, has_maps, tmp_path):
  config, path = _digits(permutation, **model), tmp_path / 'summary.png'
  models = {capture: _model(config, capture) for capture in (False, True)}
  image_classification.make(config).draw(
    lambda batch, capture=False: models[capture](batch), [{'step': 1, 'test/accuracy': 0.5}], str(path))
  picture = imread(path)[..., :3]
  heading = picture[55:80, 900:1060]  # 'Where latents look', or the first row of a wider grid of pictures
  assert (heading.min() < 0.5) == has_maps


# What counts.


def test_loss_and_accuracy_follow_the_config_and_leave_padding_out():
  config = _digits()
  config.label_smoothing = 0.2
  task = image_classification.make(config)
  logits = np.random.default_rng(0).normal(size=(4, 10)).astype(np.float32)
  batch = {'label': np.array([3, 0, 9, 9]), 'mask': np.array([1, 1, 0, 0.5], np.float32)}
  logits[0, 3] = logits[2, 9] = 9
  logits[3, 9] = logits[1, 0] = -9
  target = 0.8 * np.eye(10)[batch['label']] + 0.02
  expected = -(target * (logits - np.log(np.exp(logits).sum(-1, keepdims=True)))).sum(-1)
  found = task.measure({'logits': logits}, batch)
  total, weight = found.pop('loss')
  np.testing.assert_allclose([total, weight], [(batch['mask'] * expected).sum(), 2.5], rtol=1e-5)
  assert found.keys() == {'accuracy'}
  np.testing.assert_allclose(found['accuracy'], (1, 2.5))


def test_of_more_than_ten_classes_the_five_highest_are_counted_as_well():
  logits = np.tile(np.arange(11, dtype=np.float32), (4, 1))
  batch = {'label': np.array([10, 6, 5, 7]), 'mask': np.array([1, 1, 1, 0], np.float32)}
  figures = image_classification.make(_imagenet()).measure({'logits': logits}, batch)
  assert figures.pop('loss') and figures == {'accuracy': (1, 3), 'top_5_accuracy': (2, 3)}


# Mistakes.


@pytest.mark.parametrize('change, message', [
  ({'data.name': 'digit'}, r"there is no data set 'digit'; perceiver_jax/data has: digits"),
  ({'data.permutation': 'both'}, r"data.permutation is 'both'.* one of none, joint, pixels"),
  ({'model.head': 'token'}, r"model.head is 'token'.* one of query, pool"),
  ({'model.position.kind': 'none'}, r"model.position.kind is 'fourier' or 'learned', not 'none'"),
  ({'model.position.spacing': 'octaves'}, r"model.position.spacing is 'octaves'"),
  ({'model.cross_attends': 'end'}, r"model.cross_attends is 'end'"),
  ({'model.num_cross_attends': 5}, r'5 interleaved cross-attends do not divide 2 blocks'),
  ({'model.num_self_heads': 3}, r'3 heads do not divide qk_channels = 16'),
  ({'model.num_cross_heads': 2}, r'2 heads do not divide qk_channels = 19'),
])
def test_a_config_that_makes_no_model_is_the_users_mistake(change, message):
  config = _digits()
  config.update_from_flattened_dict(change)
  with pytest.raises(UserError, match=message):
    check(config)
    _shapes(config)
    image_classification.make(config).dataset('test', is_training=False)
