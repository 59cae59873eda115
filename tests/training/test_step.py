"""One step: the update that a page of arithmetic gives, on eight devices at once; and when there is none."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from perceiver_jax import losses, metrics
from perceiver_jax.config import overrides
from perceiver_jax.data import pipeline
from perceiver_jax.processes import parallel
from perceiver_jax.tasks import image_classification
from perceiver_jax.training import precision
from perceiver_jax.training.experiment import build
from perceiver_jax.training.step import averaged
from perceiver_jax.types import Batch, Field, Task, TrainState

NUM_DEVICES, NUM_ROWS = 8, 32  # four rows for each device
NUM_CHANNELS, NUM_CLASSES = 5, 4
MIXED = 'params=float32,compute=bfloat16,output=float32'
COMPILATION = '/jax/core/compile/backend_compile_duration'


def _logits(batch: Batch, **kwargs) -> dict:
  hidden = jnp.tanh(hk.Linear(8, name='hidden')(batch['x']))
  return {'logits': hk.Linear(NUM_CLASSES, name='head')(hidden)}


def _logits_with_state(batch: Batch, *, is_training: bool) -> dict:
  """Normalises over the rows of a device, and counts its steps in a whole number."""
  x = hk.BatchNorm(True, True, 0.9, name='norm')(batch['x'], is_training)
  hk.set_state('num_calls', hk.get_state('num_calls', [], jnp.int32, init=jnp.zeros) + 1)
  return {'logits': hk.Linear(NUM_CLASSES, name='head')(x)}


def _random_numbers(batch: Batch, *, is_training: bool) -> dict:
  number = jax.random.uniform(hk.next_rng_key())
  return {'logits': hk.Linear(NUM_CLASSES, name='head')(batch['x']), 'number': jax.lax.stop_gradient(number)}


def _task(forward: Callable = _logits) -> Task:
  def measured(outputs, batch):
    logits, label, mask = outputs['logits'], batch['label'], batch['mask']
    means = {
      'loss': losses.softmax_cross_entropy(logits, label, mask),
      'accuracy': metrics.top_k_accuracy(logits, label, mask, k=1)}
    if 'number' in outputs:
      means |= {'number': (outputs['number'], 1.0), 'square': (outputs['number'] ** 2, 1.0)}
    return means

  return Task(
    inputs={'x': Field((NUM_CHANNELS,), 'float32')},
    targets={'label': Field((), 'int32')},
    forward=forward,
    measure=measured,
    dataset=lambda split, *, is_training: None)


def _config(**changes) -> ConfigDict:
  config = ConfigDict({
    'seed': 0, 'num_steps': 100, 'micro_batches': 1, 'precision': 'float32', 'ema_decay': None,
    'optimizer': {
      'name': 'sgd', 'peak_lr': 0.5, 'schedule': 'constant_cosine', 'constant_share': 0.5, 'warmup_steps': 0,
      'weight_decay': 0.1,
      'max_norm': 0.0,
    },
  })
  config.update_from_flattened_dict(changes)
  return config


def _batch(seed: int = 0) -> dict[str, np.ndarray]:
  """Weights whose sums differ from device to device and from micro-batch to micro-batch; the second device has none."""
  random = np.random.default_rng(seed)
  mask = random.choice([0.0, 0.25, 0.5, 1.0, 3.0], NUM_ROWS).astype(np.float32)
  mask[4:8], mask[0] = 0.0, 3.0
  return {
    'x': random.normal(size=(NUM_ROWS, NUM_CHANNELS)).astype(np.float32),
    'label': random.integers(0, NUM_CLASSES, NUM_ROWS).astype(np.int32),
    'mask': mask,
    'key': np.zeros((NUM_ROWS, 2), np.uint32),
  }


class Trainer(NamedTuple):
  """A compiled step, between host arrays."""

  config: ConfigDict
  start: TrainState
  step: Callable

  def take(self, state: TrainState, batch: Batch) -> tuple[TrainState, dict]:
    state, means = self.step(parallel.replicate(state), parallel.shard(batch))
    return parallel.unreplicate(state), metrics.add(parallel.unreplicate(means), {})


def _trainer(forward: Callable = _logits, **changes) -> Trainer:
  config = _config(**changes)
  experiment = build(config, _task(forward))
  return Trainer(config, jax.device_get(experiment.init()), experiment.train_step)


ADAMW = {'ema_decay': 0.75, 'optimizer.name': 'adamw', 'optimizer.peak_lr': 0.01, 'optimizer.max_norm': 1.0}


@pytest.fixture(scope='module')
def descent() -> Trainer:
  return _trainer()


@pytest.fixture(scope='module')
def everything() -> Trainer:
  """AdamW, a moving average, clipping, BatchNorm, a counter: all that a step may change."""
  return _trainer(_logits_with_state, **ADAMW)


def _assert_same(actual, expected) -> None:
  jax.tree.map(np.testing.assert_array_equal, actual, expected)


def _largest(tree) -> float:
  return max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(tree))


def _norm(tree) -> float:
  return float(np.sqrt(sum(np.sum(np.square(leaf, dtype=np.float64)) for leaf in jax.tree.leaves(tree))))


def _difference(a, b):
  return jax.tree.map(lambda x, y: np.asarray(x, np.float64) - y, a, b)


def _mean_loss(params, batch: Batch) -> jax.Array:
  outputs = hk.without_apply_rng(hk.transform(_logits)).apply(params, batch)
  log_probs = jax.nn.log_softmax(outputs['logits'])
  loss = -log_probs[np.arange(NUM_ROWS), batch['label']]
  return jnp.sum(batch['mask'] * loss) / jnp.sum(batch['mask'])


@pytest.mark.parametrize('micro_batches', [1, 2, 4])
def test_a_step_descends_the_mean_loss_of_the_whole_batch_however_it_is_divided(descent, micro_batches):
  trainer = descent if micro_batches == 1 else _trainer(micro_batches=micro_batches)
  gradient = jax.jit(jax.grad(_mean_loss))
  state = trainer.start
  params = state.params
  for seed in range(3):
    state, means = trainer.take(state, _batch(seed))
    np.testing.assert_allclose(means['loss'][1], _batch(seed)['mask'].sum(), rtol=1e-6)
    params = jax.tree.map(lambda p, g: p - 0.5 * np.asarray(g, np.float64), params, gradient(params, _batch(seed)))
  change = _largest(_difference(params, trainer.start.params))
  assert change > 0.1
  assert _largest(_difference(params, state.params)) < 1e-6 * min(change, _largest(params))


def test_a_step_reports_the_loss_the_norms_and_the_learning_rate_it_had(descent):
  batch = _batch()
  state, means = descent.take(descent.start._replace(step=np.int32(75)), batch)
  values = metrics.divide(means)
  loss, gradient = jax.jit(jax.value_and_grad(_mean_loss))(descent.start.params, batch)
  np.testing.assert_allclose(values['loss'], loss, rtol=1e-5)
  np.testing.assert_allclose(
    [values['gradient_norm'], values['parameter_norm']], [_norm(gradient), _norm(state.params)], rtol=1e-5)
  np.testing.assert_allclose(values['learning_rate'], 0.25, rtol=1e-6)  # the middle of the cosine
  assert values['unreadable_examples'] == np.mean(batch['mask'] == 0) and values['skipped_steps'] == 0
  assert means['accuracy'][1] == batch['mask'].sum()


def test_clipping_bounds_the_global_norm_of_the_update():
  trainer = _trainer(**{'optimizer.max_norm': 0.01})
  state, means = trainer.take(trainer.start, _batch())
  update = _difference(state.params, trainer.start.params)
  assert metrics.divide(means)['gradient_norm'] > 0.1  # as it was before clipping
  np.testing.assert_allclose(_norm(update), 0.5 * 0.01, rtol=1e-4)


def test_the_average_of_the_parameters_follows_its_formula(everything):
  state = everything.start
  expected = state.params
  _assert_same(state.ema, state.params)
  for seed in range(3):
    state, _ = everything.take(state, _batch(seed))
    expected = jax.tree.map(lambda e, p: 0.75 * e.astype(np.float64) + 0.25 * p, expected, state.params)
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7), state.ema, expected)
  assert _largest(_difference(state.ema, state.params)) > 1e-3
  _assert_same(averaged(state), state.ema)
  assert averaged(state._replace(ema=None)) is state.params


def _poison(batch: Batch, how: str) -> dict[str, np.ndarray]:
  """Spoils one example of one device.

  A label that is no class spoils the loss and leaves the gradient finite; 3e19 spoils BatchNorm's variance and leaves
  both finite, as what is normalised by an infinite variance is 0.
  """
  row = int(np.argmax(batch['mask'] > 0))
  batch = {name: rows.copy() for name, rows in batch.items()}
  if how == 'label':
    batch['label'][row] = NUM_CLASSES
  else:
    batch['x'][row, 0] = float(how)
  return batch


@pytest.mark.parametrize('how', ['nan', 'inf', 'label', '3e19'])
def test_an_update_that_is_not_finite_changes_nothing_and_is_counted(everything, how):
  before, _ = everything.take(everything.start, _batch(0))
  state = before
  for num_skipped in (1, 2):
    state, means = everything.take(state, _poison(_batch(1), how))
    _assert_same(state, before._replace(step=before.step + num_skipped, num_skipped=np.int32(num_skipped)))
    assert means.pop('skipped_steps') == (1, 1)
    assert means.pop('unreadable_examples') == (np.sum(_batch(1)['mask'] == 0), NUM_ROWS)
    assert {name: pair for name, pair in means.items() if pair != (0, 0)} == {}
  state, means = everything.take(state, _batch(2))
  assert (state.step, state.num_skipped, means['skipped_steps'][0]) == (4, 0, 0)
  assert _largest(_difference(state.params, before.params)) > 1e-3


def test_a_finite_gradient_is_not_followed_to_parameters_that_are_not_finite():
  trainer = _trainer(**{'optimizer.peak_lr': 1e38})
  state, means = trainer.take(trainer.start, _batch())
  _assert_same(state, trainer.start._replace(step=np.int32(1), num_skipped=np.int32(1)))
  assert means['skipped_steps'] == (1, 1) and means['loss'] == (0, 0)


def test_one_micro_batch_that_is_not_finite_spoils_the_whole_update_and_nothing_else():
  trainer = _trainer(_logits_with_state, micro_batches=2, **ADAMW)
  before, _ = trainer.take(trainer.start, _batch(0))
  state, means = trainer.take(before, _poison(_batch(1), 'nan'))
  _assert_same(state, before._replace(step=before.step + 1, num_skipped=np.int32(1)))
  assert means['skipped_steps'] == (1, 1) and means['loss'] == means['accuracy'] == (0, 0)


def test_a_gradient_that_is_infinite_in_one_leaf_alone_spoils_the_update():
  def forward(batch, *, is_training):
    root = jnp.sqrt(hk.get_parameter('root', [], init=jnp.zeros))  # 0, and its slope is infinite
    logits = hk.Linear(NUM_CLASSES, name='head')(batch['x'])
    return {'logits': logits.at[:, 0].add(root)}

  trainer = _trainer(forward)
  state, means = trainer.take(trainer.start, _batch())
  _assert_same(state, trainer.start._replace(step=np.int32(1), num_skipped=np.int32(1)))
  assert means['skipped_steps'] == (1, 1) and means['gradient_norm'] == (0, 0)


@pytest.mark.parametrize('name', ['descent', 'everything'])
def test_what_is_not_finite_counts_for_nothing_where_the_mask_is_zero(request, name):
  trainer, batch = request.getfixturevalue(name), _batch()
  is_masked = batch['mask'] == 0
  poisoned = {name: rows.copy() for name, rows in batch.items()}
  poisoned['label'][is_masked], poisoned['x'][is_masked] = NUM_CLASSES, np.nan
  state, means = trainer.take(trainer.start, poisoned)
  expected, expected_means = trainer.take(trainer.start, batch)
  _assert_same((state, means), (expected, expected_means))
  assert means['skipped_steps'][0] == 0


def test_an_evaluation_leaves_out_what_the_mask_leaves_out_even_where_a_loss_multiplies_by_it():
  def weighted_mean(outputs, batch):
    return {'loss': (jnp.sum(batch['mask'] * outputs['logits'][:, 0]), jnp.sum(batch['mask']))}

  experiment = build(_config(), _task()._replace(measure=weighted_mean))
  start, batch = jax.device_get(experiment.init()), _batch()
  poisoned = batch | {'x': np.where(batch['mask'][:, None] == 0, np.nan, batch['x'])}
  means, expected = (
    experiment.eval_step(*parallel.replicate((start.params, start.state)), parallel.shard(rows))[0]
    for rows in (poisoned, batch))
  assert np.isfinite(parallel.unreplicate(means['loss'])).all()
  _assert_same(parallel.unreplicate(means), parallel.unreplicate(expected))


def test_a_batch_without_any_example_only_decays(everything, descent):
  batch = _batch() | {'mask': np.zeros(NUM_ROWS, np.float32)}
  state, means = descent.take(descent.start, batch)
  _assert_same(state.params, descent.start.params)
  assert (means['loss'], means['unreadable_examples'][0]) == ((0, 0), NUM_ROWS)
  assert (state.step, state.num_skipped) == (1, 0)
  start = everything.start
  state, _ = everything.take(start, batch)
  head, old = state.params['head'], start.params['head']
  np.testing.assert_allclose(head['w'], old['w'] * (1 - 0.01 * 0.1), rtol=1e-6)
  _assert_same([head['b'], state.params['norm']], [old['b'], start.params['norm']])


def _as_seen(batch: Batch) -> np.ndarray:
  """x as the model sees it: zeros where the mask is 0, and BatchNorm counts those."""
  return np.where(batch['mask'][:, None] == 0, 0, batch['x'])


def test_statistics_are_averaged_over_devices_and_counters_are_left_alone(everything):
  batch = _batch()
  state, _ = everything.take(everything.start, batch)
  rows = _as_seen(batch).reshape(NUM_DEVICES, -1, NUM_CHANNELS)
  for name, expected in {'mean_ema': rows.mean(1).mean(0), 'var_ema': rows.var(1).mean(0)}.items():
    average = state.state[f'norm/~/{name}']
    np.testing.assert_allclose(average['average'][0], expected, rtol=1e-4, atol=1e-6)
    assert (average['counter'], average['counter'].dtype) == (1, np.int32)
  assert (state.state['~']['num_calls'], state.state['~']['num_calls'].dtype) == (1, np.int32)


def test_statistics_pass_from_one_micro_batch_to_the_next():
  trainer = _trainer(_logits_with_state, micro_batches=2)
  state, _ = trainer.take(trainer.start, _batch())
  assert state.state['norm/~/mean_ema']['counter'] == 2
  rows = _as_seen(_batch()).reshape(NUM_DEVICES, 2, -1, NUM_CHANNELS).mean(2).mean(0)
  expected = (0.9 * 0.1 * rows[0] + 0.1 * rows[1]) / (1 - 0.9**2)  # Haiku's average is rid of its zero start
  np.testing.assert_allclose(state.state['norm/~/mean_ema']['average'][0], expected, rtol=1e-4, atol=1e-6)


def test_randomness_depends_on_the_step_and_the_device_and_on_nothing_else():
  trainer = _trainer(_random_numbers)
  first, again, next_step, other_seed = (
    trainer.take(trainer.start._replace(step=np.int32(step)), _batch(seed))[1]['number'] for step, seed in
    ((3, 0), (3, 0), (4, 0), (3, 1)))
  assert first == again == other_seed != next_step
  means = trainer.take(trainer.start, _batch())[1]
  total, square = means['number'][0], means['square'][0]
  assert means['number'][1] == NUM_DEVICES
  assert square / NUM_DEVICES - (total / NUM_DEVICES) ** 2 > 1e-3  # equal numbers would have no variance


@pytest.fixture
def compilations():
  """The names of the functions compiled while the test runs; those read from the persistent cache count as well."""
  names: list[str] = []

  def note(event: str, seconds: float, **kwargs) -> None:
    if event == COMPILATION:
      names.append(str(kwargs.get('fun_name')))

  jax.monitoring.register_event_duration_secs_listener(note)
  yield names
  jax.monitoring.unregister_event_duration_listener(note)


def test_the_step_compiles_once_and_not_again_after_a_restore(compilations):
  trainer = _trainer(_logits_with_state, ema_decay=0.5)
  state = parallel.replicate(trainer.start)
  batches = [parallel.shard(_batch(seed)) for seed in range(4)]
  compilations.clear()
  state, _ = trainer.step(state, batches[0])
  assert len(compilations) == 1, compilations
  state, _ = trainer.step(state, batches[1])
  state, _ = trainer.step(parallel.replicate(parallel.unreplicate(state)), batches[2])
  state, _ = trainer.step(state, batches[3])
  assert len(compilations) == 1, compilations
  assert parallel.unreplicate(state.step) == 4


def test_a_step_reuses_the_memory_of_the_state_before_it(descent):
  state = parallel.replicate(descent.start)
  new_state, _ = descent.step(state, parallel.shard(_batch()))
  assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))
  assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(new_state))


def test_mixed_precision_trains_float32_parameters(everything):
  trainer = _trainer(_logits_with_state, precision=MIXED, **ADAMW)
  state, means = trainer.take(trainer.start, _batch())
  full, full_means = everything.take(everything.start, _batch())
  dtypes = [leaf.dtype for leaf in jax.tree.leaves(state)]
  assert dtypes == [leaf.dtype for leaf in jax.tree.leaves(trainer.start)]
  assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {np.dtype('float32')}
  low_norm, norm = metrics.divide(means)['gradient_norm'], metrics.divide(full_means)['gradient_norm']
  assert np.isfinite(low_norm) and low_norm != norm and abs(low_norm - norm) < 0.05 * norm
  assert _largest(_difference(state.params, trainer.start.params)) > 1e-3
  # The first step of Adam is the sign of the gradient, which rounding turns round only where there is next to none.
  assert max(np.abs(x).mean() for x in jax.tree.leaves(_difference(state.params, full.params))) < 5e-3


@pytest.fixture(scope='module')
def digits() -> ConfigDict:
  config = overrides.load('configs/digits.py:debug')
  config.model.update({'num_latents': 2, 'latent_channels': 8, 'num_blocks': 1, 'query_channels': 8})
  return config


def test_logits_in_mixed_precision_are_near_those_in_float32(digits):
  task = image_classification.make(digits)
  model = hk.transform_with_state(task.forward)
  batch = next(pipeline.batches(task.dataset('test', is_training=False), 'test', batch_size=4, is_training=False))
  shapes, _ = jax.eval_shape(functools.partial(model.init, is_training=False), jax.random.key(0), batch)
  random = np.random.default_rng(0)
  params = jax.tree.map(lambda x: random.normal(0.0, 0.3, x.shape).astype(x.dtype), shapes)
  applies = [jax.jit(functools.partial(precision.wrap(model.apply, policy), is_training=False))
             for policy in ('float32', MIXED)]
  full, low = (apply(params, {}, None, batch)[0]['logits'] for apply in applies)
  assert full.dtype == low.dtype == jnp.float32
  assert np.abs(full).max() > 0.05
  assert 0 < np.abs(full - low).max() < 0.1 * max(1.0, np.abs(full).max())


def test_label_smoothing_reaches_the_loss(digits):
  with digits.unlocked():
    config = digits.copy_and_resolve_references()
  config.label_smoothing = 0.25
  logits = np.random.default_rng(0).normal(size=(2, 10)).astype(np.float32)
  batch = {'label': np.array([3, 4]), 'mask': np.array([1.0, 0.5], np.float32)}
  loss, weight = image_classification.make(config).measure({'logits': logits}, batch)['loss']
  target = 0.75 * np.eye(10)[batch['label']] + 0.025
  expected = -np.sum(target * np.log(np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)), axis=-1)
  np.testing.assert_allclose([loss, weight], [batch['mask'] @ expected, 1.5], rtol=1e-6)
