"""Bytes on one device: what is exact, what is estimated from a trace, and what XLA's compiler says.

Parameters, gradients and optimizer are exact. What else a step needs grows with its examples, `Line`, and is

- estimated by `estimate` from what the backward pass keeps of the forward pass, which the trace of the gradient tells
  exactly, before XLA fuses and reorders: in a second or two, and mostly a little short of what XLA then asks for;
- compiled by `compiled`: the step is compiled twice, for the device at hand, and its memory analysis read. On another
  kind of device XLA may need more or less.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import numpy as np

from perceiver_jax.config.values import changed
from perceiver_jax.planning.flops import loss_of
from perceiver_jax.planning.model import KEY, Model, batch_of, describe, num_bytes
from perceiver_jax.processes import parallel
from perceiver_jax.training.step import with_typed_keys
from perceiver_jax.types import Tree


class Line(NamedTuple):
  """Bytes of a step of `n` examples at a time: fixed + n * per_example, and never less than `least`."""

  fixed: int
  per_example: int
  least: int

  def at(self, num_examples: int) -> int:
    return max(self.least, self.fixed + num_examples * self.per_example)

  def largest(self, budget: int) -> int:
    """Returns how many examples fit into `budget` bytes; 0 where none does."""
    return max(0, (budget - self.fixed) // self.per_example) if budget >= self.least else 0


class State(NamedTuple):
  """Bytes of what a device keeps from step to step, and of the gradients; exact."""

  parameters: int
  optimizer: int  # with the moving average of the parameters, and the statistics of BatchNorm
  gradients: int


def state_of(model: Model) -> State:
  """Returns the bytes of a state; those of parameters alone for a model that can only be used."""
  parameters, kept = num_bytes(model.params), num_bytes(model.train_state)
  if model.train_state is None:
    return State(parameters, 0, 0)
  gradients = parameters * (1 if model.config.micro_batches == 1 else 2)  # of one micro-batch, and their sum
  return State(parameters, kept - parameters, gradients)


def estimate(model: Model) -> Line:
  """Estimates the bytes of a training step from its trace.

  At the end of the forward pass there are state, gradients, and what the backward pass needs; at the end of the step
  the state twice, as an update that is not finite is undone. With `config.remat`, the backward pass computes one block
  of layers again, and XLA may hold all of it at once.
  """
  state, config = state_of(model), model.config
  kept = state.parameters + state.optimizer
  one, two = (_residual_bytes(model, size) for size in (1, 2))
  per_example = two - one + num_bytes(batch_of(model.task, 1))
  fixed = kept + state.gradients + one - (two - one)
  if config.remat != 'none':
    everything = estimate(describe(changed(config, {'remat': 'none'}))).per_example
    per_example += (everything - per_example) // max(1, config.model.num_blocks)
  return Line(fixed, per_example, 2 * kept + state.gradients)


def compiled(model: Model) -> Line:
  """Returns the bytes of a training step, or of a forward pass without training, by XLA's memory analysis.

  The step is compiled for two sizes that are large enough for the examples, and not the optimizer, to need the most.
  """
  state = state_of(model)
  kept = state.parameters + state.optimizer
  if model.train_state is None:
    size, least = 1, kept
  else:
    guess = estimate(model)
    size, least = max(1, -(-2 * guess.least // guess.per_example)), guess.least
  one, two = (compiled_bytes(model, size) for size in (size, 2 * size))
  per_example = max(1, (two - one) // size)
  return Line(one - size * per_example, per_example, least)


def compiled_bytes(model: Model, size: int) -> int:
  """Bytes of one device that XLA asks for, everything counted, for `size` examples at a time."""
  if model.experiment is None:
    function = jax.jit(lambda params, state, batch: model.apply(
      params, state, None, with_typed_keys(batch), is_training=False)[0])
    lowered = function.lower(model.params, model.state, batch_of(model.task, size))
  else:
    batch = batch_of(model.task, size * model.config.micro_batches)
    step: Any = model.experiment.train_step
    lowered = step.lower(_on_devices(model.train_state), _on_devices(batch))
  found: Any = lowered.compile().memory_analysis()
  # What is donated is both an argument and an output.
  return (found.argument_size_in_bytes + found.output_size_in_bytes - found.alias_size_in_bytes
          + found.temp_size_in_bytes)


def _on_devices(tree: Tree) -> Tree:
  count = parallel.num_devices()
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct((count, *x.shape), x.dtype), tree)


def _residual_bytes(model: Model, size: int) -> int:
  """Returns the bytes that the backward pass needs beside parameters and batch."""
  loss = loss_of(model)

  def residuals(params: Tree, *others: Any) -> Any:
    return jax.vjp(lambda params: loss(params, *others), params)[1]

  traced = jax.make_jaxpr(residuals)(model.params, model.state, KEY, batch_of(model.task, size)).jaxpr
  known = {id(variable) for variable in (*traced.invars, *traced.constvars)}
  kept = {id(variable): variable.aval for variable in traced.outvars if id(variable) not in known}
  return sum(aval.size * np.dtype(aval.dtype).itemsize for aval in kept.values())
