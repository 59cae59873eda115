"""The figures of a plan, and their lines for people."""

from __future__ import annotations

import json
import math

import jax.numpy as jnp
import pytest

from configs import digits, optical_flow
from perceiver_jax.config.values import changed
from perceiver_jax.planning.flops import forward_flops
from perceiver_jax.planning.plan import GIB, make_fit, make_plan
from perceiver_jax.planning.rate import products_per_second
from perceiver_jax.planning.table import show_fit, show_plan
from perceiver_jax.types import UserError


@pytest.fixture(scope='module', autouse=True)
def quick_rate():
  """The rate of a product so small that it takes no time; that of a large one is the same code."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr('perceiver_jax.planning.rate.LARGEST', 256)
    yield


CONFIG = changed(digits.get_config(), {'batch_size': 96, 'micro_batches': 2})


def test_a_plan_adds_up():
  plan = make_plan(CONFIG, num_devices=4, memory_gib=1)
  assert json.loads(json.dumps(plan)) == plan
  assert plan['batch'] == {'size': 96, 'per_device': 24, 'at_a_time': 12}
  assert plan['flops']['forward'] == forward_flops(CONFIG)
  assert plan['flops']['training'] == 3 * plan['flops']['forward']
  assert plan['flops']['forward_computed'] < plan['flops']['training_computed']
  memory = plan['memory']
  assert memory['total'] == sum(memory[name] for name in ('parameters', 'gradients', 'optimizer', 'activations'))
  rate = plan['gemm']['flops_per_second']
  assert plan['seconds'] == pytest.approx(24 * plan['flops']['training_computed'] / rate)
  assert plan['largest']['at_a_time'] > 12 and plan['largest']['micro_batches'] == 1


def test_the_micro_batches_advised_are_the_fewest_that_fit():
  roomy = make_plan(CONFIG, num_devices=1)
  memory = roomy['memory']
  gib = (memory['total'] - 20 * memory['per_example']) / GIB  # 28 of 48 at a time
  largest = make_plan(CONFIG, num_devices=1, memory_gib=gib)['largest']
  assert (largest['at_a_time'], largest['micro_batches']) == (28, 4)  # 96 = 4 x 24


def test_where_not_one_example_fits_nothing_is_advised():
  config = changed(digits.get_config('debug'), {'data.image_size': 64, 'attention_impl': 'dense', 'batch_size': 1})
  memory = make_plan(config, num_devices=1)['memory']
  plan = make_plan(config, num_devices=1, memory_gib=(memory['total'] - memory['per_example'] // 2) / GIB)
  assert (plan['largest']['at_a_time'], plan['largest']['micro_batches']) == (0, None)
  assert 'not one example' in show_plan('x', plan)


def test_a_model_that_can_only_be_used_has_no_step():
  plan = make_plan(optical_flow.get_config('debug'), num_devices=3)
  assert 'batch' not in plan and 'training' not in plan['flops'] and 'activations' not in plan['memory']
  shown = show_plan('optical_flow', plan)
  assert 'can only be used' in shown and 'gradients' not in shown and '--compile tells' in shown


def test_a_compiled_plan_says_so(quick_compilation):
  said = []
  plan = make_plan(
    optical_flow.get_config('debug'), num_devices=1, memory_gib=1, compiles=True, announce=said.append)
  assert plan['memory']['source'] == 'compiled' and plan['memory']['activations'] > 0
  assert plan['largest']['at_a_time'] > 100 and any('Compiling' in text for text in said)
  assert "by XLA's memory analysis" in show_plan('optical_flow', plan)


def test_the_table_says_what_the_plan_says():
  plan = make_plan(CONFIG, num_devices=4, memory_gib=1)
  lines = {' '.join(line.split()) for line in show_plan('configs/digits.py', plan).splitlines()}
  assert 'configs/digits.py (image_classification) on 4 devices; measured on cpu' in lines
  assert f'parameters {plan["parameters"]:,}' in lines
  millions = f'{plan["flops"]["forward"] / 1e6:.1f} M'
  assert f'FLOPs per example, forward {millions} as the papers count: attention is dense' in lines
  assert 'memory of a device 24 of the batch of 96 examples, in 2 micro-batches of 12' in lines
  assert f'parameters {plan["memory"]["parameters"] / 2**20:.1f} MiB' in lines
  assert '--config.micro_batches=1 makes the batch of the config fit' in '\n'.join(lines)


def test_a_fit_names_the_flags_that_set_it():
  config = digits.get_config('debug')
  found = make_fit(config, num_devices=4, gflops=2e-4)
  shown = show_fit(found)
  assert all(f'--config.{key}={value}' in shown for key, value in found['config'].items())
  assert shown.count('<-') == 1 and len(shown.splitlines()) == len(found['candidates']) + 3
  assert found['proposed']['flops'] == forward_flops(changed(config, found['config'])) <= 2e5


@pytest.mark.parametrize('changes, arguments, message', [
  ({}, {'num_devices': 0}, '--devices=0: a run needs at least one'),
  ({}, {'num_devices': 5}, r'--devices=5 x micro_batches=2; the nearest that does is --config.batch_size=100'),
  ({}, {'num_devices': 1, 'memory_gib': 0.001}, '--memory_gib=0.001 does not even hold parameters'),
  ({'precision': 'float8'}, {'num_devices': 1}, "precision='float8' cannot be read"),
])
def test_a_plan_that_cannot_be_is_refused(changes, arguments, message):
  with pytest.raises(UserError, match=message):
    make_plan(changed(CONFIG, changes), **arguments)


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_a_rate_is_measured(dtype):
  assert 0 < products_per_second(dtype) < math.inf
