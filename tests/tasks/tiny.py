"""Tiny models with random parameters, and what holds for the model of any task."""

from __future__ import annotations

import functools
import pathlib
import re

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perceiver_jax.config import overrides
from perceiver_jax.inference.model import build, template
from perceiver_jax.tasks import make_task
from perceiver_jax.types import UserError
from tests.core.test_attention import compiled, randomise

ROOT = pathlib.Path(__file__).resolve().parents[2]


def read_config(experiment, **changes):
  """The config of 'masked_lm:debug', unlocked, with changes by dotted key."""
  config = overrides.load(f'{ROOT}/configs/{experiment.replace(":", ".py:")}').unlock()
  config.update_from_flattened_dict(changes)
  return config


def num_parameters(config):
  """Of the whole model; nothing is computed."""
  params, _ = template(config)
  return sum(leaf.size for leaf in jax.tree.leaves(params))


def random_trees(config):
  """(params, state), a function of their names and shapes alone."""
  params, state = template(config)
  rng = np.random.default_rng(0)
  # Variances are not negative.
  return randomise(params), jax.tree.map(lambda x: np.abs(rng.normal(size=x.shape)).astype(x.dtype), state)


def random_params(config):
  """The same, of a model without state."""
  params, state = random_trees(config)
  assert not state
  return params


def random_model(config):
  """What `perceiver_jax.inference` predicts with."""
  return build(config, *random_trees(config))


def model_of(config, params=None, **arguments):
  """(batch) -> outputs on the host."""
  forward = functools.partial(make_task(config).forward, is_training=False, **arguments)
  apply, params = compiled(hk.transform_with_state(forward).apply), params or random_params(config)
  return lambda batch: apply(params, {}, None, batch)[0]


def assert_close(outputs, others, tolerance=1e-5):
  """Of trees; relative to the largest value of each array."""
  assert jax.tree.structure(outputs) == jax.tree.structure(others)
  for found, expected in zip(jax.tree.leaves(outputs), jax.tree.leaves(others), strict=True):
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * np.abs(expected).max())


def differ(outputs, others):
  """The largest difference of two arrays, relative to the largest value."""
  return np.abs(outputs - others).max() / np.abs(others).max()


def assert_company_does_not_matter(config, batch):
  """The outputs of an example are its own."""
  model = model_of(config)
  outputs = model(batch)
  backwards = {name: x[::-1] for name, x in batch.items()}
  assert_close({name: x[::-1] for name, x in model(backwards).items()}, outputs)
  alone = {name: x[:1] for name, x in batch.items()}
  assert_close(model(alone), {name: x[:1] for name, x in outputs.items()})
  for x in outputs.values():
    assert differ(x[0], x[1]) > 1e-3  # or nothing has been shown


def idle_parameters(config, batch):
  """'module/leaf' of the parameters on which no output depends, by the gradient of a random sum of all outputs.

  What they are is told by gradients that vanish next to the others of their kind.
  """
  apply = hk.transform_with_state(functools.partial(make_task(config).forward, is_training=False)).apply

  def total(params):
    outputs = apply(params, {}, None, batch)[0]
    rng = np.random.default_rng(0)
    return sum(jnp.sum(rng.normal(size=outputs[name].shape) * outputs[name]) for name in sorted(outputs))

  gradients = compiled(jax.grad(total))(random_params(config))
  largest = {
    f'{module}/{leaf}': np.abs(x).max() for module, leaves in gradients.items() for leaf, x in leaves.items()}
  middle = np.median(list(largest.values()))
  return {name for name, size in largest.items() if size < 1e-5 * middle}


def assert_paths_agree(experiment, batch):
  """Outputs, and gradients by all parameters, with attention_impl=factored are those of the dense path."""
  params = random_params(read_config(experiment))

  def run(attention_impl):
    task = make_task(read_config(experiment, attention_impl=attention_impl))
    forward = functools.partial(task.forward, is_training=True)

    def loss(params):
      outputs = hk.transform_with_state(forward).apply(params, {}, None, batch)[0]
      rng = np.random.default_rng(0)
      return sum(jnp.sum(rng.normal(size=outputs[name].shape) * outputs[name]) for name in sorted(outputs)), outputs

    return compiled(jax.grad(loss, has_aux=True))(params)

  (expected_gradient, expected), (gradient, outputs) = run('dense'), run('factored')
  assert_close(outputs, expected)
  flat = [np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)]) for tree in (gradient, expected_gradient)]
  assert np.linalg.norm(flat[0] - flat[1]) < 1e-5 * np.linalg.norm(flat[1])


def key_biases(config):
  """Which move all logits of a query alike, so that no softmax sees them."""
  params, _ = template(config)
  return {f'{module}/b' for module in params if re.search('attention/key$', module)}


def assert_captured(config, batch, **expected):
  """Shapes of what is captured; weights of a query sum to one; and outputs that do not know of it."""
  outputs = model_of(config, capture=True)(batch)
  captured = outputs.pop('captured')
  assert {name: x.shape for name, x in captured.items()} == expected
  for name in expected.keys() - {'latents'}:
    np.testing.assert_allclose(captured[name].sum(-1), 1.0, rtol=1e-5, err_msg=name)
  assert_close(outputs, model_of(config)(batch))


def assert_refused(config, batch, message):
  """Checks that the model refuses a batch with the message: UserError, or chex's AssertionError for a shape."""
  task = make_task(config)
  apply = hk.transform_with_state(functools.partial(task.forward, is_training=False)).apply
  with pytest.raises((UserError, AssertionError), match=message):
    jax.eval_shape(lambda params, batch: apply(params, {}, None, batch)[0], template(config)[0], batch)
