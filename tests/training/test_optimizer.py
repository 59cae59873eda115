"""Optimizers against plain NumPy, the decay mask by name, and the schedules at their breakpoints."""

import functools

import haiku as hk
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import pytest

from perceiver_jax.training import optimizer
from perceiver_jax.types import UserError

NUM_STEPS = 10


def _config(**changes):
  config = ml_collections.ConfigDict({
      'name': 'lamb', 'peak_lr': 0.02, 'schedule': 'constant_cosine', 'constant_share': 0.5, 'warmup_steps': 0,
      'weight_decay': 0.1, 'max_norm': 10.0})
  config.update(changes)
  return config


def _params():
  """A Haiku-shaped tree: weights, zero biases, norms, latents, a table, a zero head."""
  generator = np.random.default_rng(0)

  def normal(*shape):
    return generator.normal(size=shape).astype(np.float32)

  return {
      'encoder': {'latents': 0.02 * normal(4, 6)},
      'encoder/cross_attend_0/query_norm': {'scale': np.ones(6, np.float32), 'offset': np.zeros(6, np.float32)},
      'encoder/cross_attend_0/attention/query': {'w': normal(6, 5), 'b': np.zeros(5, np.float32)},
      'input/learned_position': {'embeddings': normal(7, 3)},
      'decoder/output': {'w': np.zeros((6, 3), np.float32), 'b': np.zeros(3, np.float32)},
  }


def _gradients(num_steps, scale=1.0):
  """A tree per step. The table's are as small as the epsilons, the head's bias has none at all."""
  generator = np.random.default_rng(1)
  trees = []
  for _ in range(num_steps):
    tree = jax.tree.map(lambda x: (scale * generator.normal(size=x.shape)).astype(np.float32), _params())
    tree['input/learned_position']['embeddings'] *= np.float32(1e-6)
    tree['decoder/output']['b'][:] = 0.0
    trees.append(tree)
  return trees


@functools.cache
def _compiled(name, max_norm):
  return _compile(optimizer.make_optimizer(_config(name=name, max_norm=max_norm), NUM_STEPS))


def _compile(chain):
  def step(params, state, gradient):
    updates, state = chain.update(gradient, state, params)
    return optax.apply_updates(params, updates), state

  return jax.jit(chain.init), jax.jit(step)


def _run(compiled, gradients, params=None):
  """The parameters after one update per tree of gradients."""
  init, step = compiled
  params = _params() if params is None else params
  state = init(params)
  for gradient in gradients:
    params, state = step(params, state, gradient)
  return params


def _learning_rate(step):
  """constant_cosine over 10 steps with a peak of 0.02."""
  return 0.02 if step < 5 else 0.01 * (1 + np.cos(np.pi * (step - 5) / 5))


def _reference(gradients, *, epsilon, trust, max_norm, weight_decay=0.1):
  """The authors' chain in float64 and no library: clip, Adam, decoupled decay, trust ratio, learning rate."""
  params = {(path, name): np.float64(x) for path, leaves in _params().items() for name, x in leaves.items()}
  mean = {key: 0.0 for key in params}
  square = {key: 0.0 for key in params}
  for step, tree in enumerate(gradients):
    norm = np.sqrt(sum(np.sum(np.float64(tree[path][name]) ** 2) for path, name in params))
    factor = max_norm / norm if 0 < max_norm <= norm else 1.0
    for (path, name), param in params.items():
      key = path, name
      gradient = factor * np.float64(tree[path][name])
      mean[key] = 0.9 * mean[key] + 0.1 * gradient
      square[key] = 0.999 * square[key] + 0.001 * gradient**2
      corrected_mean, corrected_square = mean[key] / (1 - 0.9 ** (step + 1)), square[key] / (1 - 0.999 ** (step + 1))
      update = corrected_mean / (np.sqrt(corrected_square) + epsilon)
      if name in ('w', 'latents', 'embeddings'):
        update = update + weight_decay * param
      param_norm, update_norm = np.linalg.norm(param), np.linalg.norm(update)
      if trust and param_norm > 0 and update_norm > 0:
        update = update * param_norm / update_norm
      params[key] = param - _learning_rate(step) * update
  return params


def _assert_close(params, reference, tolerance):
  """To `tolerance` of each tensor's largest entry."""
  for (path, name), expected in reference.items():
    np.testing.assert_allclose(
        params[path][name], expected, rtol=0, atol=tolerance * np.abs(expected).max(), err_msg=f'{path}/{name}')


def _float64(tree):
  return jax.tree.map(np.float64, tree)


@pytest.mark.parametrize('name, epsilon, trust, max_norm', [
    ('lamb', 1e-6, True, 0.0), ('lamb', 1e-6, True, 1.0), ('lamb', 1e-6, True, 1e4), ('adamw', 1e-8, False, 1.0)])
def test_lamb_is_the_authors_chain_and_adamw_the_same_without_the_trust_ratio(name, epsilon, trust, max_norm):
  gradients = _gradients(8)
  with jax.enable_x64(True):
    params = _run(_compiled(name, max_norm), [_float64(tree) for tree in gradients], _float64(_params()))
  reference = _reference(gradients, epsilon=epsilon, trust=trust, max_norm=max_norm)
  _assert_close(params, reference, tolerance=1e-9)


def test_in_float32_lamb_keeps_four_digits():
  # optax computes Adam's bias correction 1 - 0.999^t in float32, which on the first steps leaves no more.
  gradients = _gradients(8)
  params = _run(_compiled('lamb', 1.0), gradients)
  assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype('float32')}
  _assert_close(params, _reference(gradients, epsilon=1e-6, trust=True, max_norm=1.0), tolerance=3e-5)


def test_lamb_without_clipping_is_the_lamb_of_optax():
  gradients = _gradients(6)
  schedule = optax.join_schedules([optax.constant_schedule(0.02), optax.cosine_decay_schedule(0.02, 5)], [5])
  theirs = optax.lamb(schedule, eps=1e-6, weight_decay=0.1, mask=optimizer.decay_mask)
  expected = _run(_compile(theirs), gradients)
  params = _run(_compiled('lamb', 0.0), gradients)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7), params, expected)


def test_a_parameter_at_zero_moves_at_the_bare_learning_rate_on_the_first_step():
  head = _run(_compiled('lamb', 0.0), _gradients(1))['decoder/output']
  np.testing.assert_allclose(np.abs(head['w']), 0.02, rtol=1e-3)  # Adam's first update is the sign; ratio 1
  np.testing.assert_array_equal(head['b'], 0.0)                   # no gradient, nothing to decay


def test_lamb_moves_a_tensor_by_its_own_norm_times_the_learning_rate():
  before, after = (tree['encoder']['latents'] for tree in (_params(), _run(_compiled('lamb', 0.0), _gradients(1))))
  np.testing.assert_allclose(np.linalg.norm(after - before), 0.02 * np.linalg.norm(before), rtol=1e-4)


@pytest.mark.parametrize('max_norm', [0.0, 1.0, 1e4])
def test_sgd_is_the_clipped_gradient_times_the_learning_rate(max_norm):
  (gradient,) = _gradients(1)
  norm = np.sqrt(sum(np.sum(np.square(x)) for x in jax.tree.leaves(gradient)))
  factor = max_norm / norm if max_norm == 1.0 else 1.0
  params = _run(_compiled('sgd', max_norm), [gradient])
  expected = jax.tree.map(lambda p, g: p - 0.02 * factor * g, _params(), gradient)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7), params, expected)


def test_sgd_sees_a_wrong_factor_in_the_gradients_that_lamb_hides():
  def weights(name, scale):
    return _run(_compiled(name, 0.0), _gradients(3, scale))['encoder/cross_attend_0/attention/query']['w']

  np.testing.assert_allclose(weights('lamb', 2.0), weights('lamb', 1.0), rtol=1e-4, atol=1e-5)
  assert np.abs(weights('sgd', 2.0) - weights('sgd', 1.0)).max() > 0.01


@pytest.mark.parametrize('name', ['lamb', 'adamw', 'sgd'])
def test_the_optimizer_state_has_one_shape_whatever_the_bounds_and_the_decay(name):
  # A checkpoint must restore after a change of a number in the config.
  changes = [{'max_norm': max_norm, 'weight_decay': decay} for max_norm in (0.0, 10.0) for decay in (0.0, 0.1)]
  chains = [optimizer.make_optimizer(_config(name=name, **change), NUM_STEPS) for change in changes]
  structures = {jax.tree.structure(jax.eval_shape(chain.init, _params())) for chain in chains}
  assert len(structures) == 1


def test_weights_latents_and_tables_decay_and_biases_and_norms_do_not():
  assert optimizer.decay_mask(_params()) == {
      'encoder': {'latents': True},
      'encoder/cross_attend_0/query_norm': {'scale': False, 'offset': False},
      'encoder/cross_attend_0/attention/query': {'w': True, 'b': False},
      'input/learned_position': {'embeddings': True},
      'decoder/output': {'w': True, 'b': False},
  }


def test_the_mask_knows_the_leaves_that_haiku_makes():
  def forward(x):
    x = hk.BatchNorm(True, True, 0.9, name='norm')(hk.Conv2D(2, 3, name='stem')(x), is_training=True)
    x = hk.Linear(3, name='head')(hk.LayerNorm(-1, True, True, name='layer_norm')(x))
    return x + hk.Embed(5, 3, name='words')(jnp.zeros((), int))
  params, _ = jax.eval_shape(hk.transform_with_state(forward).init, jax.random.key(0), jnp.zeros((1, 4, 4, 1)))
  assert optimizer.decay_mask(params) == {
      'stem': {'w': True, 'b': False},
      'norm': {'scale': False, 'offset': False},
      'layer_norm': {'scale': False, 'offset': False},
      'head': {'w': True, 'b': False},
      'words': {'embeddings': True},
  }


def _rates(num_steps, steps, **changes):
  schedule = optimizer.make_schedule(_config(peak_lr=1.0, **changes), num_steps)
  return [float(schedule(step)) for step in steps]


def test_constant_cosine_is_flat_for_half_of_imagenet_and_ends_at_zero():
  schedule = optimizer.make_schedule(_config(peak_lr=2e-3), 137_625)
  for step in (0, 1, 68_811, 68_812):
    np.testing.assert_allclose(schedule(step), 2e-3, rtol=1e-7)
  num_cosine = 137_625 - 68_812
  for step in (68_812 + 10_000, 68_812 + num_cosine // 2, 137_624):
    expected = 1e-3 * (1 + np.cos(np.pi * (step - 68_812) / num_cosine))
    np.testing.assert_allclose(schedule(step), expected, rtol=1e-5, atol=1e-10)
  assert float(schedule(137_625)) == 0.0
  assert schedule(68_813 + 1_000) < 2e-3


def test_constant_cosine_of_another_share_has_the_steps_that_fine_tuning_after_jft_had():
  rates = _rates(131_000, [0, 69_999, 70_000, 100_500, 131_000], constant_share=70 / 131)
  np.testing.assert_allclose(rates, [1, 1, 1, 0.5, 0], atol=1e-6)
  assert _rates(131_000, [70_100], constant_share=70 / 131)[0] < 1
  assert _rates(10, [0, 9], constant_share=1.0) == [1, 1]
  assert _rates(10, [0, 5], constant_share=0.0)[1] == pytest.approx(0.5)


def test_warmup_cosine_climbs_from_zero_to_the_peak_and_falls_to_zero():
  rates = _rates(110, [0, 5, 10, 60, 110], schedule='warmup_cosine', warmup_steps=10)
  np.testing.assert_allclose(rates, [0.0, 0.5, 1.0, 0.5, 0.0], atol=1e-6)


def test_no_warmup_starts_at_the_peak():
  np.testing.assert_allclose(_rates(10, [0, 5, 10], schedule='warmup_cosine'), [1.0, 0.5, 0.0], atol=1e-6)


def test_step_decay_drops_tenfold_at_epochs_84_102_and_114_of_120():
  steps = [0, 8399, 8400, 10199, 10200, 11399, 11400, 11999]
  rates = _rates(12_000, steps, schedule='step_decay')
  np.testing.assert_allclose(rates, [1, 1, 0.1, 0.1, 0.01, 0.01, 0.001, 0.001], rtol=1e-6)


def test_step_decay_drops_exactly_where_floating_point_would_be_a_step_early():
  assert int(0.70 * 90) == 62
  np.testing.assert_allclose(_rates(90, [62, 63], schedule='step_decay'), [1.0, 0.1], rtol=1e-6)


def test_step_decay_keeps_every_drop_in_a_run_of_two_steps():
  np.testing.assert_allclose(_rates(2, [0, 1], schedule='step_decay'), [1.0, 0.001], rtol=1e-6)


@pytest.mark.parametrize('schedule', ['constant_cosine', 'warmup_cosine', 'step_decay'])
def test_every_schedule_runs_under_jit_and_never_below_zero(schedule):
  function = optimizer.make_schedule(_config(schedule=schedule, warmup_steps=3), 20)
  rates = jax.jit(jax.vmap(function))(jnp.arange(40))
  np.testing.assert_allclose(rates, [function(step) for step in range(40)], atol=1e-8)
  assert (rates >= 0.0).all() and (rates <= 0.02 * (1 + 1e-6)).all() and rates[3] > 0.0


def test_a_run_of_one_step_has_a_learning_rate():
  for schedule in ('constant_cosine', 'warmup_cosine', 'step_decay'):
    assert _rates(1, [0], schedule=schedule)[0] > 0.0


def test_updates_follow_the_schedule_from_its_first_value():
  chain = optimizer.make_optimizer(_config(name='sgd', max_norm=0.0), NUM_STEPS)
  params = {'decoder/output': {'b': jnp.zeros(())}}
  state, rates = chain.init(params), []
  for _ in range(7):
    updates, state = chain.update(jax.tree.map(jnp.ones_like, params), state)
    rates.append(-float(updates['decoder/output']['b']))
  np.testing.assert_allclose(rates, [_learning_rate(step) for step in range(7)], rtol=1e-5)


@pytest.mark.parametrize('changes, num_steps, words', [
    ({'name': 'lamp'}, 10, ["optimizer.name='lamp'", "did you mean 'lamb'?", 'adamw', 'sgd']),
    ({'name': 'zzz'}, 10, ["optimizer.name='zzz'", 'did you mean']),
    ({'schedule': 'step_decline'}, 10, ["optimizer.schedule='step_decline'", "did you mean 'step_decay'?"]),
    ({'schedule': 'warmup_cosine', 'warmup_steps': 10}, 10, ['warmup_steps=10', 'num_steps=10']),
    ({'schedule': 'warmup_cosine', 'warmup_steps': -1}, 10, ['warmup_steps=-1']),
    ({}, 0, ['num_steps=0']),
])
def test_a_mistake_is_named_in_at_most_two_lines(changes, num_steps, words):
  with pytest.raises(UserError) as caught:
    optimizer.make_optimizer(_config(**changes), num_steps)
  message = str(caught.value)
  assert all(word in message for word in words), message
  assert message.count('\n') < 2


def test_a_warmup_as_long_as_the_run_is_fine_for_a_schedule_without_one():
  assert _rates(10, [0], schedule='constant_cosine', warmup_steps=10) == [1.0]
