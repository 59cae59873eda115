"""Devices working together: what crosses between them, and that their number changes nothing.

Run as a script it is one such number, that which XLA_FLAGS says: `test_parallel.py OUT MICRO_BATCHES ...`.
"""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perceiver_jax.config import overrides
from perceiver_jax.data import pipeline
from perceiver_jax.processes import parallel
from perceiver_jax.tasks import image_classification
from perceiver_jax.training.experiment import build
from perceiver_jax.types import UserError

pytestmark = pytest.mark.usefixtures('quick_compilation')

ROOT = pathlib.Path(__file__).resolve().parents[2]
BATCH_SIZE, NUM_STEPS, PEAK_LR = 32, 3, 0.05


def _config(micro_batches: int):
  """The smallest Perceiver, on digits, by gradient descent: adaptive optimizers would hide a wrong factor."""
  config = overrides.load(str(ROOT / 'configs' / 'digits.py') + ':debug')
  config.update({'batch_size': BATCH_SIZE, 'micro_batches': micro_batches, 'ema_decay': None})
  config.optimizer.update({'name': 'sgd', 'schedule': 'constant_cosine', 'peak_lr': PEAK_LR, 'max_norm': 0.0})
  config.model.update({
    'num_latents': 2, 'latent_channels': 8, 'num_blocks': 1, 'query_channels': 8, 'dropout_prob': 0.0})
  return config


def _start(experiment):
  """The state before the first step, with parameters that are no zeros: a head of zeros has hardly a gradient."""
  state = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), jax.eval_shape(experiment.init))
  random = np.random.default_rng(0)
  return state._replace(params=jax.tree.map(lambda x: random.normal(0, 0.5, x.shape).astype(x.dtype), state.params))


def _uneven(batch, step: int):
  """Weights whose sums differ between devices, by any number of them; some devices have none."""
  mask = np.random.default_rng(step).choice([0.0, 0.25, 1.0, 3.0], BATCH_SIZE).astype(np.float32)
  mask[8 * step:8 * step + 6] = 0.0
  mask[-3:] = 3.0
  return {**batch, 'mask': mask}


def _batches(task):
  dataset = task.dataset('train', is_training=True)
  batches = pipeline.batches(dataset, 'train', batch_size=BATCH_SIZE, is_training=True)
  return [_uneven(next(batches), step) for step in range(NUM_STEPS)]


def _three_steps(micro_batches: int) -> dict[str, np.ndarray]:
  """{name: array} of the parameters before and after, and the batches as the devices had them."""
  config = _config(micro_batches)
  task = image_classification.make(config)
  experiment = build(config, task)
  start = _start(experiment)
  state, seen = parallel.replicate(start), []
  for batch in _batches(task):
    shards = parallel.shard(batch)
    seen.append({name: np.asarray(rows).reshape(BATCH_SIZE, *rows.shape[2:]) for name, rows in shards.items()})
    state, _ = experiment.train_step(state, shards)
  named = {f'{i}/{name}': rows for i, batch in enumerate(seen) for name, rows in batch.items()}
  return {**named, **_named('start', start.params), **_named('end', parallel.unreplicate(state).params)}


def _directly() -> dict[str, np.ndarray]:
  """The end of the same three steps by `jax.grad` of the mean loss over the whole batch, on one device."""
  config = _config(micro_batches=1)
  task = image_classification.make(config)
  model = hk.without_apply_rng(hk.transform(task.forward))

  def mean_loss(params, batch):
    total, weight = task.measure(model.apply(params, batch, is_training=True), batch)['loss']
    return total / weight

  gradient = jax.jit(jax.grad(mean_loss))
  params = _start(build(config, task)).params
  for batch in _batches(task):
    params = jax.tree.map(lambda p, g: p - np.float32(PEAK_LR) * np.asarray(g), params, gradient(params, batch))
  return _named('end', params)


def _named(prefix: str, tree) -> dict[str, np.ndarray]:
  leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
  return {f'{prefix}/{jax.tree_util.keystr(path, simple=True, separator="/")}': np.asarray(x) for path, x in leaves}


def _on(num_devices: int, out: pathlib.Path, *micro_batches: int) -> dict[int, dict[str, np.ndarray]]:
  names = [str(number) for number in micro_batches]
  flags = f'--xla_force_host_platform_device_count={num_devices}'
  done = subprocess.run(
    [sys.executable, __file__, str(out), *names], capture_output=True, text=True, check=False,
    env={**os.environ, 'XLA_FLAGS': flags, 'PYTHONPATH': str(ROOT), 'JAX_DISABLE_MOST_OPTIMIZATIONS': '1'})
  assert done.returncode == 0, done.stderr
  assert done.stdout.split() == [str(num_devices)]
  return {number: dict(np.load(f'{out}.{number}.npz')) for number in micro_batches}


@pytest.fixture(scope='module')
def eight() -> dict[str, np.ndarray]:
  return _three_steps(micro_batches=1)


@pytest.fixture(scope='module')
def one(tmp_path_factory) -> dict[int, dict[str, np.ndarray]]:
  return _on(1, tmp_path_factory.mktemp('one') / 'run', 1, 2)


def _assert_same_descent(run: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
  """Both end within 1e-6 of the largest change of a parameter, and of the largest parameter."""
  names = [name.removeprefix('end/') for name in expected if name.startswith('end/')]
  assert len(names) > 40
  parameter = max(np.abs(expected[f'end/{name}']).max() for name in names)
  change = max(np.abs(expected[f'end/{name}'] - run[f'start/{name}']).max() for name in names)
  difference = max(np.abs(expected[f'end/{name}'] - run[f'end/{name}']).max() for name in names)
  assert change > 0.1
  assert difference < 1e-6 * min(change, parameter), (difference, change, parameter)


@pytest.mark.slow
def test_eight_devices_descend_as_the_arithmetic_says(eight):
  _assert_same_descent(eight, _directly())


@pytest.mark.slow
def test_one_two_and_eight_devices_end_with_the_same_parameters(eight, one, tmp_path):
  two = _on(2, tmp_path / 'two', 1)[1]
  for run in (two, eight):
    batches = {name: rows for name, rows in run.items() if not name.startswith('end/')}
    assert {name for name, rows in batches.items() if not np.array_equal(rows, one[1][name])} == set()
    _assert_same_descent(run, one[1])


@pytest.mark.slow
def test_micro_batches_end_with_the_same_parameters(one):
  _assert_same_descent(one[2], one[1])


def test_what_is_replicated_comes_back_as_it_was():
  tree = {'a': np.arange(6, dtype=np.float32).reshape(2, 3), 'b': (np.int32(7), None)}
  on_devices = parallel.replicate(tree)
  assert on_devices['a'].shape == (8, 2, 3) and len(on_devices['a'].sharding.device_set) == 8
  back = parallel.unreplicate(on_devices)
  assert jax.tree.structure(back) == jax.tree.structure(tree)
  for x, y in zip(jax.tree.leaves(back), jax.tree.leaves(tree), strict=True):
    assert isinstance(x, np.ndarray | np.generic) and x.dtype == y.dtype
    np.testing.assert_array_equal(x, y)


def test_devices_take_the_rows_of_a_batch_in_order():
  batch = {'image': np.arange(16 * 4, dtype=np.uint8).reshape(16, 2, 2), 'mask': np.arange(16, dtype=np.float32)}
  shards = parallel.shard(batch)
  for name, rows in batch.items():
    np.testing.assert_array_equal(shards[name], rows.reshape(8, 2, *rows.shape[1:]))
    assert shards[name].dtype == rows.dtype
  assert [int(part.data[0, 0]) for part in shards['mask'].addressable_shards] == [*range(0, 16, 2)]


def test_sums_means_and_numbers_of_devices():
  def everything(x, count):
    tree = {'x': x, 'count': count}
    return parallel.sum_over_devices(tree), parallel.mean_over_devices(tree), parallel.device_index()

  xs, counts = np.arange(8, dtype=np.float32), np.full(8, 3, np.int32)
  total, mean, index = parallel.over_devices(everything)(xs, counts)
  assert parallel.num_devices() == 8
  assert (total['x'][5], total['count'][5], mean['x'][5]) == (28, 24, 3.5)
  assert (mean['count'][5], mean['count'].dtype) == (3, jnp.int32)
  np.testing.assert_array_equal(index, np.arange(8))


@pytest.mark.parametrize('batch_size, micro_batches, nearest', [
  (11, 1, 8), (13, 1, 16), (1, 1, 8), (25, 2, 32), (0, 1, 8), (-8, 1, 8), (16, 4, 32)])
def test_a_batch_that_does_not_divide_is_answered_with_the_nearest_that_does(batch_size, micro_batches, nearest):
  with pytest.raises(UserError, match=f'batch_size={batch_size} does not divide') as caught:
    parallel.check_batch_size(batch_size, micro_batches)
  assert str(caught.value).endswith(f'--config.batch_size={nearest}') and '\n' not in str(caught.value)
  assert parallel.check_batch_size(nearest, micro_batches) is None


def test_there_is_at_least_one_micro_batch():
  with pytest.raises(UserError, match='micro_batches=0'):
    parallel.check_batch_size(16, 0)


def test_an_evaluation_batch_is_rounded_up_to_the_devices():
  assert [parallel.round_up(size) for size in (1, 8, 9, 64, 359)] == [8, 8, 16, 64, 360]


if __name__ == '__main__':
  print(parallel.num_devices())
  for argument in sys.argv[2:]:
    np.savez(f'{sys.argv[1]}.{argument}.npz', **_three_steps(int(argument)))
