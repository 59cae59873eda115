"""Everything that a plan says of a config, in numbers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
from ml_collections import ConfigDict

from perceiver_jax.planning.fit import Budget, depth_key, fit, with_candidate
from perceiver_jax.planning.flops import computed_flops, forward_flops
from perceiver_jax.planning.memory import Line, compiled, estimate, state_of
from perceiver_jax.planning.model import Model, describe, num_parameters
from perceiver_jax.planning.rate import products_per_second
from perceiver_jax.training import precision
from perceiver_jax.types import UserError

GIB = 2**30


def make_plan(
  config: ConfigDict,
  *,
  num_devices: int,
  memory_gib: float | None = None,
  compiles: bool = False,
  announce: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
  """Returns what the experiment needs, as JSON can hold it.

  Args:
    config: what `configs/` describes.
    num_devices: over which its batch is spread; they need not be here.
    memory_gib: of one device; None leaves out what fits into it.
    compiles: let XLA say how much memory a step needs, not the trace: see memory.py.
    announce: is told what takes a while.

  Returns:
    'task', 'platform', 'num_devices', 'parameters'; 'computed_with': {'attention', 'remat'};
    'flops', per example: {'forward', 'forward_computed'}, and of training {'training', 'training_computed'};
    'memory', bytes of a device: {'parameters', 'gradients', 'optimizer'}, and {'source', 'per_example', 'activations',
    'total'} unless a model that can only be used is not compiled;
    'largest', with `memory_gib`: {'memory_gib', 'at_a_time', 'micro_batches'}, the last None where nothing helps;
    'batch', of training: {'size', 'per_device', 'at_a_time'};
    'gemm': {'dtype', 'flops_per_second'}, measured; and 'seconds', of a training step, or of one example where there is
    no training: what is computed, at that rate.

  Raises:
    UserError: the batch does not divide, the memory cannot hold what a step needs, or the config cannot be used.
  """
  model = describe(config)
  trains = model.train_state is not None
  at_a_time = _examples_at_a_time(config, num_devices) if trains else 1
  announce('Measuring how fast this device multiplies matrices ...')
  dtype = precision.policy(config.precision).compute_dtype if trains else jax.numpy.float32
  rate = products_per_second(dtype)
  counts = {
    'forward': forward_flops(config),
    'forward_computed': computed_flops(model, at_a_time, is_training=False),
  }
  if trains:
    counts['training'] = 3 * counts['forward']
    counts['training_computed'] = computed_flops(model, at_a_time, is_training=True)
  per_device = at_a_time * config.micro_batches if trains else 1
  plan = {
    'task': config.task,
    'platform': jax.devices()[0].device_kind,
    'num_devices': num_devices,
    'parameters': num_parameters(model),
    'computed_with': {'attention': config.attention_impl, 'remat': config.remat},
    'flops': counts,
    'gemm': {'dtype': jax.numpy.dtype(dtype).name, 'flops_per_second': rate},
    'seconds': per_device * counts['training_computed' if trains else 'forward_computed'] / rate,
  }
  if trains:
    plan['batch'] = {'size': config.batch_size, 'per_device': per_device, 'at_a_time': at_a_time}
  return plan | _memory(model, at_a_time, memory_gib, compiles, announce)


def _examples_at_a_time(config: ConfigDict, num_devices: int) -> int:
  """On one device."""
  if num_devices < 1:
    raise UserError(f'--devices={num_devices}: a run needs at least one')
  parts = num_devices * config.micro_batches
  if config.batch_size % parts:
    nearest = max(1, round(config.batch_size / parts)) * parts
    raise UserError(
      f'batch_size={config.batch_size} does not divide over --devices={num_devices} x micro_batches='
      f'{config.micro_batches}; the nearest that does is --config.batch_size={nearest}')
  return config.batch_size // parts


def _memory(
  model: Model, at_a_time: int, memory_gib: float | None, compiles: bool, announce: Callable[[str], None],
) -> dict[str, Any]:
  state, trains = state_of(model), model.train_state is not None
  memory: dict[str, Any] = state._asdict()
  if memory_gib is not None and memory_gib * GIB < sum(state):
    raise UserError(
      f'--memory_gib={memory_gib:g} does not even hold parameters ({state.parameters / GIB:.3g} GiB), gradients and '
      f'optimizer, together {sum(state) / GIB:.3g} GiB. Take devices with more memory, or a smaller model: --fit '
      'proposes one')
  if not (trains or compiles):
    return {'memory': memory}
  if compiles:
    announce('Compiling the step for two batch sizes, a minute or more for a large model ...')
  line = compiled(model) if compiles else estimate(model)
  memory |= {
    'source': 'compiled' if compiles else 'estimated', 'per_example': line.per_example, 'total': line.at(at_a_time),
    'activations': line.at(at_a_time) - sum(state),
  }
  if memory_gib is None:
    return {'memory': memory}
  return {'memory': memory, 'largest': _largest(model.config, line, at_a_time, memory_gib)}


def _largest(config: ConfigDict, line: Line, at_a_time: int, memory_gib: float) -> dict[str, Any]:
  """Returns how many examples fit, and into how many micro-batches the batch must be split; None where not one fits."""
  largest = line.largest(math.floor(memory_gib * GIB))
  total = at_a_time * config.micro_batches
  divisors = (parts for parts in range(1, total + 1) if total % parts == 0 and total // parts <= largest)
  return {'memory_gib': memory_gib, 'at_a_time': largest, 'micro_batches': next(divisors, None)}


def make_fit(
  config: ConfigDict,
  *,
  num_devices: int,
  gflops: float | None = None,
  memory_gib: float | None = None,
  announce: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
  """The models that a budget admits; one of the two bounds is needed.

  Returns:
    {'depth_key', 'candidates': [{'num_latents', 'depth', 'flops'}], 'proposed': one of them, 'config': the keys to set}

  Raises:
    UserError: as `fit`, or the batch does not divide.
  """
  budget = Budget(
    None if gflops is None else gflops * 1e9, None if memory_gib is None else math.floor(memory_gib * GIB),
    1 if memory_gib is None else _examples_at_a_time(config, num_devices))
  candidates, proposed = fit(config, budget, announce)
  described = [
    {**candidate._asdict(), 'flops': forward_flops(with_candidate(config, candidate))} for candidate in candidates]
  return {
    'depth_key': depth_key(config), 'candidates': described, 'proposed': described[candidates.index(proposed)],
    'config': {'model.num_latents': proposed.num_latents, depth_key(config): proposed.depth},
  }
