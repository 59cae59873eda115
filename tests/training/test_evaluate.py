"""Evaluation: every example exactly once, whatever the batch size and however many devices."""

from __future__ import annotations

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perceiver_jax.config import overrides
from perceiver_jax.data.dataset import ArraySource
from perceiver_jax.data.pipeline import eval_batches
from perceiver_jax.processes import parallel
from perceiver_jax.tasks import image_classification
from perceiver_jax.training import progress
from perceiver_jax.training.evaluate import evaluate, evaluate_workdir, predictor
from perceiver_jax.training.experiment import build
from perceiver_jax.types import Field, Task, UserError

NUM_EXAMPLES = 22
SPEC = {'image': Field((2, 2, 1), 'uint8'), 'label': Field((), 'int32')}
SOURCE = ArraySource(
  np.random.default_rng(0).integers(0, 256, (NUM_EXAMPLES, 2, 2, 1), np.uint8), np.arange(NUM_EXAMPLES, dtype=np.int32),
  [f'example {i}' for i in range(NUM_EXAMPLES)], ())


def _forward(batch, *, is_training: bool, capture: bool = False) -> dict:
  """The brightness of a picture, and a shift that is a parameter."""
  shift = hk.get_parameter('shift', [], init=jnp.zeros)
  brightness = jnp.mean(batch['image'].astype(jnp.float32), axis=(1, 2, 3)) + shift
  return {'brightness': brightness, **({'captured': batch['image'].shape} if capture else {})}


def _loss(outputs, batch):
  return jnp.sum(batch['mask'] * outputs['brightness']), jnp.sum(batch['mask'])


def _metrics(outputs, batch):
  """How many examples, and the sums of their labels and of their squares: no other set of labels has the same three."""
  mask, label = batch['mask'], batch['label'].astype(jnp.float32)
  return {'num_examples': (jnp.sum(mask), 1.0), 'label': (jnp.sum(mask * label), jnp.sum(mask)),
          'num_squared': (jnp.sum(mask * label**2), 1.0)}


def _batches(split, *, batch_size, is_training, rows=slice(None)):
  assert split == 'test' and not is_training
  return eval_batches(SOURCE, SPEC, batch_size=batch_size, rows=rows)


@pytest.fixture(scope='module')
def config():
  return overrides.load('configs/digits.py:debug')


@pytest.fixture(scope='module')
def twenty_two(config):
  task = Task(spec=SPEC, batches=_batches, forward=_forward, loss=_loss, metrics=_metrics)
  experiment = build(config, task)
  return task, experiment, *parallel.replicate(({'~': {'shift': np.float32(0.5)}}, {}))


@pytest.mark.parametrize('batch_size', [1, 8, 11, 16, 22, 1000])
def test_an_evaluation_counts_every_example_exactly_once_whatever_the_batch_size(twenty_two, batch_size):
  assert parallel.num_devices() == 8
  values = evaluate(*twenty_two, 'test', batch_size=batch_size)
  labels = np.arange(NUM_EXAMPLES)
  assert (values['test/num_examples'], values['test/num_squared']) == (NUM_EXAMPLES, np.sum(labels**2))
  assert values['test/label'] == labels.mean()
  np.testing.assert_allclose(values['test/loss'], SOURCE.images.mean() + 0.5, rtol=1e-6)
  assert set(values) == {'test/loss', 'test/label', 'test/num_examples', 'test/num_squared'}


@pytest.mark.parametrize('split, num_examples', [('train', 1259), ('validation', 179), ('test', 359)])
def test_an_evaluation_of_the_digits_counts_every_one_of_them(config, split, num_examples):
  task = image_classification.make(config)._replace(forward=_forward, loss=_loss, metrics=_metrics)
  params, state = parallel.replicate(({'~': {'shift': np.float32(0)}}, {}))
  values = evaluate(task, build(config, task), params, state, split, batch_size=128)
  examples = [row for row in task.batches(split, batch_size=1, is_training=False)]
  assert values[f'{split}/num_examples'] == len(examples) == num_examples
  np.testing.assert_allclose(values[f'{split}/loss'], np.mean([row['image'] for row in examples]), rtol=1e-6)
  np.testing.assert_allclose(values[f'{split}/label'], np.mean([row['label'] for row in examples]), rtol=1e-12)


@pytest.mark.parametrize('num_batches', [0, 2])
def test_an_interrupted_evaluation_has_no_figures(twenty_two, num_batches):
  answers = iter([None] * num_batches + ['SIGTERM'])
  assert evaluate(*twenty_two, 'test', batch_size=8, interrupted=lambda: next(answers)) is None
  assert next(answers, 'asked no more') == 'asked no more'


def test_a_long_evaluation_tells_how_far_it_is(twenty_two, monkeypatch, capsys):
  monkeypatch.setattr(progress, 'QUIET_SECONDS', 0.0)
  evaluate(*twenty_two, 'test', batch_size=8)
  assert capsys.readouterr().err.startswith('test: 16 examples, ')


@pytest.mark.parametrize('missing', ['batches', 'loss', 'metrics'])
def test_a_task_without_training_data_is_refused_in_a_line(twenty_two, config, tmp_path, missing):
  task = twenty_two[0]._replace(**{missing: None})
  with pytest.raises(UserError, match="task 'image_classification' has no training data yet: its model can be used"):
    evaluate_workdir(config, str(tmp_path), task, split='test', checkpoint='best')


def test_a_prediction_is_the_models_outputs_on_the_host(twenty_two):
  _, experiment, *_ = twenty_two
  predict = predictor(experiment, {'~': {'shift': np.float32(0.5)}}, {})
  batch = next(_batches('test', batch_size=5, is_training=False))
  outputs = predict(batch)
  assert set(outputs) == {'brightness'} and isinstance(outputs['brightness'], np.ndarray)
  np.testing.assert_allclose(outputs['brightness'], batch['image'].mean((1, 2, 3)) + 0.5, rtol=1e-6)
  captured = predict(batch, capture=True)['captured']
  assert jax.tree.map(int, captured) == (5, 2, 2, 1)
