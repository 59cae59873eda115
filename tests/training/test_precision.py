"""Precision: what is cast, what is not, and in which dtype gradients and state come back."""

import json
import shutil

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perceiver_jax.config import overrides
from perceiver_jax.runs.checkpoint import load_weights
from perceiver_jax.tasks import make_task
from perceiver_jax.training import loop, precision
from perceiver_jax.types import UserError

MIXED = 'params=float32,compute=bfloat16,output=float32'
BATCH = {
    'image': np.full((4, 3), 200, np.uint8),
    'audio': np.linspace(0, 1, 12, dtype=np.float32).reshape(4, 3),
    'label': np.arange(4),
    'mask': np.ones(4, np.float32),
}


def _dtypes(tree):
  return jax.tree.map(lambda x: str(x.dtype), tree)


def _forward(batch, is_training=True):
  """A linear layer, BatchNorm and a stored activation: everything that a policy may touch."""
  x = hk.Linear(2, name='head')(batch['audio'])
  hk.set_state('last', x[0])
  return {'logits': hk.BatchNorm(True, True, 0.9, name='norm')(x, is_training), 'argmax': jnp.argmax(x, -1)}


@pytest.fixture(scope='module')
def model():
  forward = hk.transform_with_state(_forward)
  return forward, *jax.jit(forward.init)(jax.random.key(0), BATCH)


def test_the_model_computes_in_the_compute_dtype_and_answers_in_the_output_dtype(model):
  _, params, state = model
  seen = {}

  def apply(params, state, key, batch, *, is_training):
    seen.update(params=_dtypes(params), state=_dtypes(state), batch=_dtypes(batch), is_training=is_training)
    return {'logits': batch['audio'], 'argmax': batch['label'], 'captured': [batch['audio']]}, state

  outputs, _ = precision.wrap(apply, MIXED)(params, state, None, BATCH, is_training=False)
  assert set(jax.tree.leaves(seen['params'])) == {'bfloat16'}
  assert seen['state'] == _dtypes(state)
  assert seen['batch'] == {'image': 'uint8', 'audio': 'bfloat16', 'label': 'int64', 'mask': 'float32'}
  assert seen['is_training'] is False
  assert _dtypes(outputs) == {'logits': 'float32', 'argmax': 'int64', 'captured': ['float32']}


def test_gradients_come_back_in_the_dtype_of_the_parameters(model):
  forward, params, state = model
  apply = precision.wrap(forward.apply, MIXED)

  def loss(params):
    outputs, _ = apply(params, state, None, BATCH)
    return jnp.sum(outputs['logits'] ** 3)

  gradient = jax.jit(jax.grad(loss))(params)
  assert _dtypes(gradient) == _dtypes(params)
  assert set(jax.tree.leaves(_dtypes(gradient))) == {'float32'}
  assert np.abs(gradient['head']['w']).max() > 0.0


def test_state_keeps_its_dtype_even_where_a_module_stores_low_precision(model):
  forward, params, state = model
  low_params, low_batch = (jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), tree) for tree in (params, BATCH))
  low_state = jax.eval_shape(forward.apply, low_params, state, None, low_batch)[1]
  assert low_state['~']['last'].dtype == jnp.bfloat16
  _, new_state = jax.jit(precision.wrap(forward.apply, MIXED))(params, state, None, BATCH)
  assert _dtypes(new_state) == _dtypes(state)
  assert int(new_state['norm/~/mean_ema']['counter']) == 1
  assert np.abs(new_state['norm/~/mean_ema']['average']).max() > 0.0


def test_a_step_in_mixed_precision_compiles_once(model):
  forward, params, state = model
  num_traces = 0

  def apply(*args):
    nonlocal num_traces
    num_traces += 1
    return forward.apply(*args)

  step = jax.jit(precision.wrap(apply, MIXED))
  for _ in range(3):
    _, state = step(params, state, None, BATCH)
  assert num_traces == 1


def test_mixed_precision_is_near_float32_and_not_equal_to_it(model):
  forward, params, state = model
  full, low = (jax.jit(precision.wrap(forward.apply, policy))(params, state, None, BATCH)[0]['logits']
               for policy in ('float32', MIXED))
  assert full.dtype == low.dtype == jnp.float32
  assert 0.0 < np.abs(full - low).max() < 0.1


def test_float32_throughout_changes_nothing(model):
  forward, params, state = model
  wrapped = jax.jit(precision.wrap(forward.apply, 'float32'))(params, state, None, BATCH)
  plain = jax.jit(forward.apply)(params, state, None, BATCH)
  jax.tree.map(np.testing.assert_array_equal, wrapped, plain)
  assert _dtypes(wrapped) == _dtypes(plain)


def test_what_a_policy_leaves_out_follows_what_it_says():
  assert precision.policy('compute=bfloat16') == precision.policy('params=float32,compute=bfloat16,output=bfloat16')
  assert precision.policy('float32') == precision.policy('params=float32,compute=float32,output=float32')
  assert precision.policy('p=f32,c=bf16,o=f32') == precision.policy(MIXED) != precision.policy('float32')


@pytest.mark.parametrize('text', ['', 'float31', 'param=float32', 'params=float32,', 'params=float32, compute=bfloat16',
                                  'params=float32;compute=bfloat16', 'compute=int8'])
def test_a_policy_that_cannot_be_read_is_answered_with_an_example(text):
  with pytest.raises(UserError) as caught:
    precision.policy(text)
  assert repr(text) in str(caught.value) and MIXED in str(caught.value)


def test_float64_is_refused_where_jax_would_quietly_use_float32():
  with pytest.raises(UserError, match='JAX_ENABLE_X64'):
    precision.policy('float64')
  with jax.enable_x64(True):
    assert precision.policy('float64').compute_dtype == jnp.float64


@pytest.mark.parametrize('precision_, optimizer', [('bf16', 'lamb'), ('bf16', 'adamw'), ('half', 'adamw'),
                                                   ('params=float16,compute=float32,output=float32', 'lamb')])
def test_a_run_with_narrow_parameters_ends_and_resumes_as_if_never_interrupted(precision_, optimizer, tmp_path):
  def run(workdir, **changes):
    config = overrides.load('configs/digits.py:debug')
    config.update_from_flattened_dict({
      'num_steps': 4, 'optimizer.warmup_steps': 1, 'precision': precision_, 'optimizer.name': optimizer,
      'eval.every_steps': 4, 'checkpoint.every_steps': 2, 'ema_decay': 0.5, 'eval.batch_size': 64, **changes})
    task = make_task(config)
    return loop.train(config, str(workdir), task._replace(draw=None))

  assert run(tmp_path / 'whole') == 0
  shutil.copytree(tmp_path / 'whole', tmp_path / 'resumed')
  shutil.rmtree(tmp_path / 'resumed' / 'checkpoints' / '4')
  log = tmp_path / 'resumed' / 'metrics.jsonl'
  log.write_text(''.join(line for line in log.open() if json.loads(line)['step'] <= 2))
  assert run(tmp_path / 'resumed') == 0
  whole, resumed = (load_weights(tmp_path / name, 'latest') for name in ('whole', 'resumed'))
  assert whole[0] == resumed[0] == 4
  jax.tree.map(np.testing.assert_array_equal, resumed[1], whole[1])
