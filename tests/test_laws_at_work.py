"""The laws that running code can break; test_laws.py reads the others in the code.

Names of parameters are a file format: tests/golden/parameters.json holds all of them, with shapes, for every variant.
A change of it breaks saved checkpoints; where that is meant, `python -m tests.test_laws_at_work` writes the file anew.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import pathlib
import pkgutil
import re
import subprocess
import sys
import tempfile
from typing import Any

import haiku as hk
import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

import perceiver_jax.inference
import perceiver_jax.tasks
from perceiver_jax import losses, metrics
from perceiver_jax.config import overrides
from perceiver_jax.runs import weights
from perceiver_jax.tasks import make_task
from perceiver_jax.types import Batch, Field, Task, blank_batch
from tests.test_laws import DATA_LIBRARIES, NUMERICS

# Law 3 is tried in a process that imports this file, so whatever may load a data library is imported inside functions.

ROOT = pathlib.Path(__file__).resolve().parent.parent
GOLDEN = ROOT / 'tests' / 'golden' / 'parameters.json'
CONFIGS = [path.stem for path in sorted(ROOT.glob('configs/*.py')) if path.stem != '__init__']
EXPERIMENTS = [
  f'configs/{name}.py:{word}' for name in CONFIGS for word in importlib.import_module(f'configs.{name}').VARIANTS
]
SMALL_EXPERIMENTS = [f'configs/{name}.py:debug' for name in CONFIGS]
TRAINED_EXPERIMENTS = [
  f'configs/{name}.py:debug' for name in ('cifar10', 'digits', 'imagenet', 'images', 'placed_digits')]
MEASURED_EXPERIMENTS = [*TRAINED_EXPERIMENTS, 'configs/masked_lm.py:debug', 'configs/optical_flow.py:debug']
LEAVES = {'b', 'w', 'scale', 'offset', 'latents', 'table'}


def _task(experiment: str) -> tuple[ConfigDict, Task]:
  config = overrides.load(str(ROOT / experiment))
  if config.data.get('num_classes', 0) is None:
    config.data.num_classes = 5  # what only the user of a config knows
  return config, make_task(config)


@functools.cache
def _built(experiment: str) -> tuple[hk.TransformedWithState, Batch, Any]:
  """The model, 8 examples, and the shapes of its parameters and state; nothing is computed."""
  _, task = _task(experiment)
  model = hk.transform_with_state(task.forward)
  batch = blank_batch(task.inputs, 8)
  return model, batch, jax.eval_shape(functools.partial(model.init, is_training=True), jax.random.key(0), batch)


@functools.cache
def _outputs(experiment: str) -> Any:
  """Their shapes."""
  model, batch, trees = _built(experiment)
  return jax.eval_shape(functools.partial(model.apply, is_training=False), *trees, None, batch)[0]


def _parameters(experiment: str) -> dict[str, str]:
  """{'module/path/leaf': 'rows x columns'}"""
  _, _, (params, _) = _built(experiment)
  return {
    f'{module}/{leaf}': ' x '.join(map(str, array.shape))
    for module, leaves in sorted(params.items()) for leaf, array in sorted(leaves.items())
  }


def _small_task() -> Task:
  """Three classes by a dropout and a linear layer, which compile at once; every split is the same 22 examples."""
  from perceiver_jax.data import synthetic

  inputs, targets = {'x': Field((4,), 'float32')}, {'label': Field((), 'int32', bound=3)}

  def forward(batch: Batch, *, is_training: bool, capture: bool = False) -> dict[str, Any]:
    x = hk.dropout(hk.next_rng_key(), 0.5, batch['x']) if is_training else batch['x']
    return {'logits': hk.Linear(3, name='output')(x)}

  def measure(outputs: Any, batch: Batch) -> Any:
    of = outputs['logits'], batch['label'], batch['mask']
    return {'loss': losses.softmax_cross_entropy(*of), 'accuracy': metrics.top_k_accuracy(*of, k=1)}

  def dataset(split: str, *, is_training: bool) -> Any:
    return synthetic.dataset({**inputs, **targets}, 22)

  return Task(
    inputs, targets, forward, measure, dataset, per_example=lambda outputs, batch: {'label': batch['label']},
    scores=lambda rows: {'labels': float(sum(3**i * int(label) for i, label in enumerate(rows['label'])))})


def _python(script: str, num_devices: int = 1) -> Any:
  """What a fresh process that runs `script` prints last, as JSON."""
  device_flag = f'--xla_force_host_platform_device_count={num_devices}'
  environment = {**os.environ, 'PYTHONPATH': str(ROOT), 'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': device_flag}
  process = subprocess.run([sys.executable, '-c', script], env=environment, capture_output=True, text=True, check=False)
  assert process.returncode == 0, process.stderr
  return json.loads(process.stdout.splitlines()[-1])


# Law 1: the package loads nothing by itself.


def test_importing_the_package_loads_nothing_else():
  loaded = _python('import json, sys, perceiver_jax; print(json.dumps(list(sys.modules)))')
  assert 'perceiver_jax' in loaded
  assert {name.partition('.')[0] for name in loaded} & (NUMERICS | DATA_LIBRARIES | {'matplotlib', 'numpy'}) == set()


# Law 3: inference loads no data library.


def data_libraries_of_inference() -> tuple[list[str], list[str]]:
  """Returns those loaded once inference and tasks are imported and a model has run; and once it has predicted."""
  def loaded() -> list[str]:
    return sorted((DATA_LIBRARIES | {'orbax'}) & {name.partition('.')[0] for name in sys.modules})

  for package in (perceiver_jax.tasks, perceiver_jax.inference):
    for module in pkgutil.iter_modules(package.__path__):
      importlib.import_module(f'{package.__name__}.{module.name}')
  for experiment in SMALL_EXPERIMENTS:
    _outputs(experiment)
  config, _ = _task('configs/imagenet.py:debug')
  params, state = importlib.import_module('perceiver_jax.inference.model').template(config)
  with tempfile.TemporaryDirectory() as root:
    weights.save(f'{root}/model', config, jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), params), state)
    predictor = perceiver_jax.load(f'{root}/model')
  ready = np.zeros((1, 16, 16, 3), np.uint8)
  assert predictor.run({'image': ready})['logits'].shape == predictor.logits(image=ready).shape == (1, 5)
  of_a_batch = loaded()
  assert len(predictor.predict(np.zeros((20, 30, 3), np.uint8)).names) == 5
  return of_a_batch, loaded()


@pytest.mark.slow
def test_inference_loads_no_data_library_and_predict_only_those_of_its_view():
  script = 'import json; from tests import test_laws_at_work as t; print(json.dumps(t.data_libraries_of_inference()))'
  assert _python(script) == [[], ['PIL', 'cv2']]


# Law 4: every parameter is named by a person.


def _haikus_names() -> set[str]:
  """The names that Haiku gives to its own modules where nobody else does."""
  classes = [value for value in vars(hk).values() if isinstance(value, type) and issubclass(value, hk.Module)]
  boundary = '(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])'
  return {re.sub(boundary, '_', each.__name__).lower() for each in classes}


@pytest.mark.parametrize('experiment', EXPERIMENTS)
def test_every_parameter_is_named_by_a_person(experiment):
  # Baselines are made of Haiku's own networks, whose paths have a ~.
  paths = [tuple(part for part in path.split('/') if part != '~') for path in _parameters(experiment)]
  modules = {path[:length] for path in paths for length in range(1, len(path))}
  assert {path[-1] for path in paths} <= LEAVES
  wrong = []
  for *parents, name in modules:
    stem = re.sub(r'_\d+$', '', name)
    # A list starts at 0; Haiku leaves the first module of a name without a number, and then counts from 1.
    is_numbered_by_haiku = stem != name and (*parents, stem) in modules
    if not re.fullmatch('[a-z][a-z0-9_]*', name) or stem in _haikus_names() or is_numbered_by_haiku:
      wrong.append('/'.join([*parents, name]))
  assert wrong == []


def test_parameters_keep_their_names_and_shapes():
  golden = json.loads(GOLDEN.read_text())
  assert list(golden) == EXPERIMENTS
  for experiment in EXPERIMENTS:
    assert _parameters(experiment) == golden[experiment], f'{experiment}: if this is meant, see the docstring above'


# Law 6: metrics are (weighted sum, weight) pairs.


def test_every_task_that_can_be_trained_is_put_to_the_test():
  trained = [experiment for experiment in SMALL_EXPERIMENTS if _task(experiment)[1].dataset is not None]
  assert trained == TRAINED_EXPERIMENTS


@functools.cache
def _noise(experiment: str) -> tuple[Task, Any, Batch]:
  """The task, outputs for 8 examples, and the examples."""
  from perceiver_jax.data.synthetic import SyntheticSource

  _, task = _task(experiment)
  generator = np.random.default_rng(0)
  outputs = jax.tree.map(lambda x: generator.normal(size=x.shape).astype(x.dtype), _outputs(experiment))
  source = SyntheticSource({**task.inputs, **task.targets}, 8)
  return task, outputs, {name: np.stack([source[i][name] for i in range(8)]) for name in source[0]}


def _means(task: Task, outputs: Any, batch: Batch, rows: Any = ...) -> dict[str, Any]:
  """The loss and the metrics of some of the examples."""
  outputs, batch = jax.tree.map(lambda x: x[rows], (outputs, batch))
  return metrics.add(task.measure(outputs, batch), {})


def _assert_same_means(a: dict[str, Any], b: dict[str, Any]) -> None:
  assert a.keys() == b.keys()
  for name in a:
    np.testing.assert_allclose(a[name], b[name], rtol=1e-5, err_msg=name)


@pytest.mark.parametrize('experiment', MEASURED_EXPERIMENTS)
def test_a_masked_example_counts_for_nothing(experiment):
  task, outputs, batch = _noise(experiment)
  mask = np.array([1, 0, 0, 1, 1, 0, 1, 0], np.float32)
  masked = _means(task, outputs, {**batch, 'mask': mask})
  without = _means(task, outputs, {**batch, 'mask': np.ones_like(mask)}, mask == 1)
  _assert_same_means(masked, without)


@pytest.mark.parametrize('experiment', MEASURED_EXPERIMENTS)
def test_metrics_of_the_parts_of_a_batch_add_up(experiment):
  task, outputs, batch = _noise(experiment)
  batch = {**batch, 'mask': np.array([1, 0.5, 1, 1, 0, 0, 2, 1], np.float32)}
  parts = [_means(task, outputs, batch, rows) for rows in (slice(0, 4), slice(4, 8))]
  _assert_same_means(metrics.add(*parts), _means(task, outputs, batch))


def evaluate_22() -> dict[str, Any]:
  """Evaluates 22 examples in batches of 8 on all devices: the values, and NumPy's values."""
  from perceiver_jax.processes import parallel
  from perceiver_jax.training import evaluate, experiment

  task = _small_task()
  built = experiment.build(_task('configs/digits.py:debug')[0], task)
  train_state = built.init()
  params, state = parallel.replicate((train_state.params, train_state.state))
  dataset = task.dataset('test', is_training=False)
  found = evaluate.evaluate(task, built, params, state, 'test', dataset, batch_size=8)
  records = [dataset.source[index] for index in range(22)]
  x, label = (np.stack([record[name] for record in records]) for name in ('x', 'label'))
  output = train_state.params['output']
  logits = x @ np.asarray(output['w'], np.float64) + output['b']
  log_probs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
  expected = {
    'test/loss': -float(np.mean(log_probs[np.arange(22), label])),
    'test/accuracy': float(np.mean(logits.argmax(1) == label)),
    'test/labels': float(sum(3**i * int(each) for i, each in enumerate(label))),
  }
  return {
    'num_devices': parallel.num_devices(), 'count': found.num_examples, 'values': found.values, 'expected': expected}


@pytest.mark.slow
@pytest.mark.parametrize('num_devices', [1, 2, 3, 8])
def test_an_evaluation_counts_every_example_exactly_once(num_devices):
  script = 'import json; from tests import test_laws_at_work as t; print(json.dumps(t.evaluate_22()))'
  result = _python(script, num_devices)
  assert result['num_devices'] == num_devices
  assert result['count'] == 22
  assert result['values'] == pytest.approx(result['expected'], rel=1e-5)


# Law 8: randomness and time are functions, not streams.


def test_due_is_true_at_every_multiple_and_at_the_end():
  from perceiver_jax.training.loop import due

  assert [step for step in range(12) if due(step, 4, 11)] == [4, 8, 11]
  assert [step for step in range(9) if due(step, 4, 8)] == [4, 8]
  assert [step for step in range(4) if due(step, 1, 3)] == [1, 2, 3]
  assert [step for step in range(4) if due(step, 100, 3)] == [3]


def test_seed_and_step_alone_decide_a_batch():
  from perceiver_jax.data import pipeline

  def rows(seed: int, batch_size: int, first_step: int, num_steps: int) -> dict[str, np.ndarray]:
    config, task = _task('configs/digits.py')
    config.seed = seed
    batches = pipeline.batches(
      task.dataset('train', is_training=True), 'train', batch_size=batch_size, is_training=True, seed=seed,
      first_step=first_step)
    taken = [next(batches) for _ in range(num_steps)]
    return {name: np.concatenate([batch[name] for batch in taken]) for name in taken[0]}

  whole = rows(seed=3, batch_size=400, first_step=0, num_steps=4)  # of 1,259 examples, so into the second epoch
  resumed = rows(seed=3, batch_size=400, first_step=2, num_steps=2)
  smaller = rows(seed=3, batch_size=200, first_step=4, num_steps=4)
  for name in whole:
    np.testing.assert_array_equal(resumed[name], whole[name][800:])
    np.testing.assert_array_equal(smaller[name], whole[name][800:])
  other = rows(seed=4, batch_size=400, first_step=2, num_steps=2)
  assert np.mean(other['label'] != resumed['label']) > 0.5


def test_seed_and_step_alone_decide_what_is_random_in_a_step():
  from perceiver_jax.processes import parallel
  from perceiver_jax.training import experiment

  x = np.random.default_rng(0).normal(size=[16, 4]).astype(np.float32)
  batch = {'x': x, 'label': np.arange(16, dtype=np.int32) % 3, 'mask': np.ones(16, np.float32),
           'key': np.zeros((16, 2), np.uint32)}
  params = {'output': {'w': np.eye(4, 3, dtype=np.float32), 'b': np.zeros(3, np.float32)}}

  def losses_of(seed: int, steps: list[int]) -> list[float]:
    config, _ = _task('configs/digits.py:debug')
    config.seed = seed
    built = experiment.build(config, _small_task())
    states = [parallel.replicate(built.init()._replace(params=params, step=np.int32(step))) for step in steps]
    means = [built.train_step(state, parallel.shard(batch))[1]['loss'] for state in states]
    return [float(parallel.unreplicate(total)) for total, _ in means]

  third, fourth, third_again = losses_of(seed=0, steps=[3, 4, 3])
  assert third_again == third
  assert fourth != third
  assert losses_of(seed=1, steps=[3]) != [third]


if __name__ == '__main__':
  text = json.dumps({experiment: _parameters(experiment) for experiment in EXPERIMENTS}, indent=1)
  GOLDEN.write_text(text + '\n')
