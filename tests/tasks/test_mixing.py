"""Training on mixtures of two pictures: which they are, what the model sees of them, what their labels count for."""

from __future__ import annotations

import functools
import itertools

import haiku as hk
import jax
import numpy as np
import pytest

from perceiver_jax.adapters.mixing import half_and_half
from perceiver_jax.config.values import check
from perceiver_jax.data import pipeline
from perceiver_jax.tasks import image_classification
from perceiver_jax.training import precision
from perceiver_jax.training.optimizer import make_optimizer, make_schedule
from perceiver_jax.training.step import init_state, make_train_step
from perceiver_jax.types import AXIS, UserError
from tests.core.test_attention import ROUNDED_ALIKE, compiled, randomise
from tests.tasks.tiny import read_config

pytestmark = pytest.mark.usefixtures('quick_compilation')

BATCH_SIZE, PEAK_LR = 16, 0.05
SMALL_BASELINES = ('resnet20', 'vit', 'transformer')


def _config(**changes):
  """The smallest Perceiver, on digits; mixed, unless changes say otherwise."""
  config = read_config('digits:debug')
  config.data.mixing = 'half_and_half'
  config.update({'batch_size': BATCH_SIZE, 'ema_decay': None})
  config.model.update({
    'num_latents': 2, 'latent_channels': 8, 'num_blocks': 1, 'query_channels': 8, 'dropout_prob': 0.0})
  # Adaptive optimizers would hide a wrong factor.
  config.optimizer.update({'name': 'sgd', 'schedule': 'constant_cosine', 'peak_lr': PEAK_LR, 'max_norm': 0.0})
  config.update_from_flattened_dict(changes)
  return config


def _batches(config, num=1, first_step=0, batch_size=BATCH_SIZE):
  dataset = image_classification.make(config).dataset('train', is_training=True)
  batches = pipeline.batches(
    dataset, 'train', batch_size=batch_size, is_training=True, seed=config.seed, first_step=first_step)
  return list(itertools.islice(batches, num))


@functools.cache
def _pairs():
  return _batches(_config())[0]


def _assert_same(batch, expected):
  assert batch.keys() == expected.keys()
  for name, rows in expected.items():
    np.testing.assert_array_equal(batch[name], rows, err_msg=name)


def _random_trees(config):
  """(params, state), far from their initial values."""
  model = hk.transform_with_state(functools.partial(image_classification.make(config).forward, is_training=True))
  params, state = jax.eval_shape(model.init, jax.random.key(0), {'image': _pairs()['image']})
  return randomise(params), jax.tree.map(lambda x: np.ones(x.shape, x.dtype), state)


def _run(config, batch, is_training=True, **options):
  """The outputs of a model of random parameters."""
  forward = functools.partial(image_classification.make(config).forward, is_training=is_training)
  params, state = _random_trees(config)
  return compiled(hk.transform_with_state(forward).apply, **options)(params, state, jax.random.key(0), batch)[0]


# Batches.


@pytest.mark.parametrize('permutation', ['none', 'joint', 'pixels'])
def test_a_mixed_run_reads_the_records_of_a_plain_one_of_twice_the_batch(permutation):
  changes = {'data.permutation': permutation}
  plain = _batches(_config(**{'data.mixing': 'none', **changes}), num=2, batch_size=2 * BATCH_SIZE)
  for batch, records in zip(_batches(_config(**changes), num=2), plain, strict=True):
    assert records.keys() == {'image', 'label', 'mask', 'key'}
    for start, name, label in ((0, 'image', 'label'), (1, 'partner', 'partner_label')):
      np.testing.assert_array_equal(batch[label], records['label'][start::2])
      # The same digits, shifted and turned otherwise.
      same, other = (np.abs(batch[name].astype(int) - x).mean() for x in (
        records['image'][start::2].astype(int), records['image'][1 - start::2].astype(int)))
      assert same < 0.7 * other
    assert batch['place'].tolist() == [0, 1] * (BATCH_SIZE // 2)


def test_a_resumed_run_goes_on_with_the_same_mixtures():
  whole = _batches(_config(), num=4)
  for batch, expected in zip(_batches(_config(), num=2, first_step=2), whole[2:], strict=True):
    _assert_same(batch, expected)


def test_evaluation_reads_plain_pictures_and_mixes_none():
  plain = _config(**{'data.mixing': 'none'})
  tasks = map(image_classification.make, (plain, _config()))
  datasets = (task.dataset('validation', is_training=False) for task in tasks)
  expected, batch = (
    next(pipeline.batches(dataset, 'validation', batch_size=8, is_training=False)) for dataset in datasets)
  _assert_same(batch, expected)
  outputs = _run(_config(), _pairs(), is_training=False)
  assert outputs.keys() == {'logits'}
  np.testing.assert_array_equal(outputs['logits'], _run(plain, _pairs(), is_training=False)['logits'])


# What the model sees.


@pytest.mark.parametrize('model', [
  {}, {'stem': {'kind': 'conv'}}, *({'backbone': name, 'stem': {'patch_size': 2}} for name in SMALL_BASELINES)],
  ids=['perceiver', 'conv', *SMALL_BASELINES])
def test_any_model_trains_on_the_mixture(model):
  config, batch = _config(), _pairs()
  config.model.update(model)
  outputs = _run(config, batch)
  mixed, ratio = half_and_half(batch['image'], batch['partner'], batch['key'], batch['place'])
  np.testing.assert_allclose(outputs['ratio'], ratio, rtol=1e-5)
  assert 0 <= ratio.min() < 0.3 and 0.7 < ratio.max() <= 1
  by_hand = _run(config, {'image': np.asarray(mixed) / 127.5 - 1})
  assert by_hand.keys() == {'logits'}
  scale = np.abs(by_hand['logits']).max()
  np.testing.assert_allclose(outputs['logits'], by_hand['logits'], rtol=0, atol=1e-4 * scale)
  assert np.abs(outputs['logits'] - _run(config, {'image': batch['image']})['logits']).max() > 0.01 * scale


def test_where_nothing_of_the_partner_is_left_the_model_sees_the_picture_itself():
  keys = np.random.default_rng(0).integers(0, 2**32, (400, 2), dtype=np.uint32)
  black = np.zeros((400, 1, 1, 1), np.float32)
  keys = keys[np.asarray(half_and_half(black, black, keys, np.zeros(400, np.int32))[1]) == 1][:2]
  batch = {name: rows[:2] for name, rows in _pairs().items()}
  outputs = _run(_config(), {**batch, 'key': keys, 'place': np.zeros(2, np.int32)}, **ROUNDED_ALIKE)
  itself = _run(_config(), {'image': batch['image']}, **ROUNDED_ALIKE)
  np.testing.assert_array_equal(outputs['ratio'], [1, 1])
  np.testing.assert_allclose(outputs['logits'], itself['logits'], rtol=1e-6)


def test_mixed_precision_draws_the_same_mixtures():
  config = _config()
  model = hk.transform_with_state(functools.partial(image_classification.make(config).forward, is_training=True))
  policies = ('float32', 'params=float32,compute=bfloat16,output=float32')
  full, low = (
    compiled(precision.wrap(model.apply, policy))(*_random_trees(config), None, _pairs())[0] for policy in policies)
  np.testing.assert_array_equal(low['ratio'], full['ratio'])
  assert 0 < np.abs(low['logits'] - full['logits']).max() < 0.1 * np.abs(full['logits']).max()


# What counts.


@pytest.mark.parametrize('smoothing', [0.0, 0.1])
def test_the_loss_is_the_cross_entropy_against_the_mixed_labels_and_the_accuracy_that_of_the_main_one(smoothing):
  task = image_classification.make(_config(label_smoothing=smoothing))
  random = np.random.default_rng(0)
  logits = random.normal(size=(5, 10)).astype(np.float32)
  batch = {'label': np.array([0, 1, 2, 3, 4]), 'partner_label': np.array([5, 6, 2, 8, 9]),
           'mask': np.array([1, 1, 0.5, 0, 1], np.float32)}
  ratio = np.array([0, 1, 0.3, 0.25, 0.7], np.float32)
  logits[3] = np.nan  # of pictures that could not be read
  logits[[0, 1, 2, 4], [5, 1, 2, 4]] = 9  # the first is its partner's label
  classes, parts = np.eye(10), ratio[:, None]
  target = (1 - smoothing) * (parts * classes[batch['label']] + (1 - parts) * classes[batch['partner_label']])
  log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
  each = -((target + smoothing / 10) * log_probs).sum(-1)
  outputs = {'logits': logits, 'ratio': ratio}
  found = task.measure(outputs, batch)
  total, weight = found.pop('loss')
  np.testing.assert_allclose(total, np.nansum(batch['mask'] * each), rtol=1e-5)
  assert weight == 3.5
  assert found == {'accuracy': (2.5, 3.5)}


def _update(num_devices, micro_batches, batch):
  """Parameters before and after a step on some of the devices, and its metrics."""
  config = _config(micro_batches=micro_batches)
  task = image_classification.make(config)
  optimizer, schedule = (make(config.optimizer, config.num_steps) for make in (make_optimizer, make_schedule))
  apply = precision.wrap(hk.transform_with_state(task.forward).apply, config.precision)
  step = jax.pmap(make_train_step(task, apply, optimizer, schedule, config), axis_name=AXIS,
                  devices=jax.devices()[:num_devices], in_axes=(None, 0))
  params, state = _random_trees(config)
  shards = {name: rows.reshape(num_devices, -1, *rows.shape[1:]) for name, rows in batch.items()}
  new_state, means = jax.tree.map(
    lambda x: np.asarray(x[0]), step(init_state(params, state, optimizer, None), shards))
  return params, new_state.params, means


def _distance(tree, other):
  return max(np.abs(a - b).max() for a, b in zip(*map(jax.tree.leaves, (tree, other)), strict=True))


def _by_hand(params, batch):
  """Parameters after descending the gradient of the mean loss over the whole batch, on one device."""
  config = _config()
  task = image_classification.make(config)
  model = hk.without_apply_rng(hk.transform(functools.partial(task.forward, is_training=True)))
  mixed, ratio = half_and_half(batch['image'], batch['partner'], batch['key'], batch['place'])
  part = np.asarray(ratio)[:, None]
  target = part * np.eye(10)[batch['label']] + (1 - part) * np.eye(10)[batch['partner_label']]
  target = (1 - config.label_smoothing) * target + config.label_smoothing / 10

  def mean_loss(params):
    log_probs = jax.nn.log_softmax(model.apply(params, {'image': mixed / 127.5 - 1})['logits'])
    return -(batch['mask'][:, None] * target * log_probs).sum() / batch['mask'].sum()

  gradient = compiled(jax.grad(mean_loss))(params)
  return jax.tree.map(lambda p, g: p - np.float32(PEAK_LR) * g, params, gradient)


@pytest.mark.parametrize(('num_devices', 'micro_batches'), [
  (8, 2), *(pytest.param(*few, marks=pytest.mark.slow) for few in ((1, 1), (2, 1), (8, 1), (1, 2)))])
def test_any_number_of_devices_and_micro_batches_takes_the_step_that_the_arithmetic_says(num_devices, micro_batches):
  batch = {**_pairs(), 'mask': np.random.default_rng(0).choice([0.0, 1.0], BATCH_SIZE).astype(np.float32)}
  start, end, means = _update(num_devices, micro_batches, batch)
  expected = _by_hand(start, batch)
  change, error = _distance(expected, start), _distance(expected, end)
  assert change > 1e-2 and error < 1e-5 * change, (error, change)
  assert means['loss'][1] == batch['mask'].sum() and np.isfinite(means['loss'][0])
  assert means['unreadable_examples'][0] == (batch['mask'] == 0).sum()


def test_a_way_of_mixing_that_there_is_not_is_the_users_mistake():
  with pytest.raises(UserError, match=r"data.mixing is 'mixup'.* It is one of none, half_and_half"):
    check(_config(**{'data.mixing': 'mixup'}))
