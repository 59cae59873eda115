"""Evaluation: every example exactly once, whatever the batch size and however many devices."""

from __future__ import annotations

import logging
import math

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perceiver_jax.config import overrides
from perceiver_jax.data import pipeline
from perceiver_jax.data.dataset import ArraySource, Dataset
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
  [f'example {i}' for i in range(NUM_EXAMPLES)])
DATASET = Dataset(SOURCE, SPEC, lambda record, **_: record)


def _forward(batch, *, is_training: bool, capture: bool = False) -> dict:
  """The brightness of a picture, and a shift that is a parameter."""
  shift = hk.get_parameter('shift', [], init=jnp.zeros)
  brightness = jnp.mean(batch['image'].astype(jnp.float32), axis=(1, 2, 3)) + shift
  return {'brightness': brightness, **({'captured': batch['image'].shape} if capture else {})}


def _measure(outputs, batch):
  mask = batch['mask']
  return {'loss': (jnp.sum(mask * outputs['brightness']), jnp.sum(mask)),
          'label': (jnp.sum(mask * batch['label']), jnp.sum(mask))}


def _scores(rows):
  return {'examples': len(rows['label']), 'are_in_order': np.array_equal(rows['label'], np.arange(len(rows['label']))),
          'squares': np.sum(rows['label']**2), 'nothing': math.nan}


def _batches(batch_size):
  return pipeline.batches(DATASET, 'test', batch_size=batch_size, is_training=False)


@pytest.fixture(scope='module')
def config():
  return overrides.load('configs/digits.py:debug')


@pytest.fixture(scope='module')
def twenty_two(config):
  task = Task(
    inputs={'image': SPEC['image']}, targets={'label': SPEC['label']}, forward=_forward, measure=_measure,
    dataset=lambda split, *, is_training: DATASET, per_example=lambda outputs, batch: {'label': batch['label']},
    scores=_scores)
  experiment = build(config, task)
  params, state = parallel.replicate(({'~': {'shift': np.float32(0.5)}}, {}))
  return task, experiment, params, state, 'test', DATASET


@pytest.mark.parametrize('batch_size', [1, 8, 11, 16, 22, 1000])
def test_an_evaluation_counts_every_example_exactly_once_whatever_the_batch_size(twenty_two, batch_size):
  assert parallel.num_devices() == 8
  values, num_examples = evaluate(*twenty_two, batch_size=batch_size)
  labels = np.arange(NUM_EXAMPLES)
  assert (num_examples, values['test/examples'], values['test/squares']) == (
    NUM_EXAMPLES, NUM_EXAMPLES, np.sum(labels**2))
  assert values['test/label'] == labels.mean()
  assert values['test/are_in_order'] == 1
  np.testing.assert_allclose(values['test/loss'], SOURCE.images.mean() + 0.5, rtol=1e-6)
  assert set(values) == {'test/loss', 'test/label', 'test/examples', 'test/squares', 'test/are_in_order'}


def test_a_score_that_cannot_be_computed_is_left_out_and_said(twenty_two, monkeypatch, caplog):
  monkeypatch.setattr(logging.getLogger('absl'), 'propagate', True)
  assert 'test/nothing' not in evaluate(*twenty_two, batch_size=8).values
  assert 'test: nothing cannot be computed from these examples, and is left out' in caplog.text


def test_rows_of_examples_that_cannot_be_read_are_left_out_of_the_scores(twenty_two):
  class Torn(ArraySource):
    def __getitem__(self, index):
      if index in (3, 21):
        raise ValueError('torn')
      return super().__getitem__(index)

  torn = DATASET._replace(source=Torn(**vars(SOURCE)))
  values, num_examples = evaluate(*twenty_two[:-1], torn, batch_size=8)
  assert num_examples == values['test/examples'] == 20
  assert values['test/squares'] == sum(label**2 for label in range(22) if label not in (3, 21))


@pytest.mark.parametrize('split, num_examples', [('train', 1259), ('validation', 179), ('test', 359)])
def test_an_evaluation_of_the_digits_counts_every_one_of_them(config, split, num_examples):
  task = image_classification.make(config)._replace(forward=_forward, measure=_measure)
  params, state = parallel.replicate(({'~': {'shift': np.float32(0)}}, {}))
  dataset = task.dataset(split, is_training=False)
  values, num_read = evaluate(task, build(config, task), params, state, split, dataset, batch_size=128)
  records = [dataset.source[index] for index in range(len(dataset.source))]
  assert num_read == len(records) == num_examples
  np.testing.assert_allclose(values[f'{split}/loss'], np.mean([row['image'] for row in records]), rtol=1e-6)
  np.testing.assert_allclose(values[f'{split}/label'], np.mean([row['label'] for row in records]), rtol=1e-6)


@pytest.mark.parametrize('num_batches', [0, 2])
def test_an_interrupted_evaluation_has_no_figures(twenty_two, num_batches):
  answers = iter([None] * num_batches + ['SIGTERM'])
  assert evaluate(*twenty_two, batch_size=8, interrupted=lambda: next(answers)) is None
  assert next(answers, 'asked no more') == 'asked no more'


def test_a_long_evaluation_tells_how_far_it_is(twenty_two, monkeypatch, capsys):
  monkeypatch.setattr(progress, 'QUIET_SECONDS', 0.0)
  evaluate(*twenty_two, batch_size=8)
  assert capsys.readouterr().err.startswith('test: 16 examples, ')


@pytest.mark.parametrize('missing', ['dataset', 'measure'])
def test_a_task_without_training_data_is_refused_in_a_line(twenty_two, config, tmp_path, missing):
  task = twenty_two[0]._replace(**{missing: None})
  with pytest.raises(UserError, match="task 'image_classification' has no training data yet: its model can be used"):
    evaluate_workdir(config, str(tmp_path), task, splits=('test',), checkpoint='best')


def test_a_prediction_is_the_models_outputs_on_the_host(twenty_two):
  _, experiment, *_ = twenty_two
  predict = predictor(experiment, {'~': {'shift': np.float32(0.5)}}, {})
  batch = next(_batches(5))
  outputs = predict(batch)
  assert set(outputs) == {'brightness'} and isinstance(outputs['brightness'], np.ndarray)
  np.testing.assert_allclose(outputs['brightness'], batch['image'].mean((1, 2, 3)) + 0.5, rtol=1e-6)
  captured = predict(batch, capture=True)['captured']
  assert jax.tree.map(int, captured) == (5, 2, 2, 1)
