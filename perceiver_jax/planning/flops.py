"""FLOPs, counted in the trace of a function: nothing is computed, nothing compiled.

As in both papers (2103.03206, appendix B; 2107.14795, appendix D), a multiplication and an addition are two operations.
Matrix products and convolutions are counted, exactly; what is done element by element (softmax, GELU, normalisation,
and the core of the factored attention) is not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import haiku as hk
import jax
from jax.extend.core import ClosedJaxpr, Jaxpr
from ml_collections import ConfigDict

from perceiver_jax.config.values import changed
from perceiver_jax.inference.model import template_of
from perceiver_jax.planning.model import KEY, Model, batch_of
from perceiver_jax.tasks import make_task
from perceiver_jax.training.step import Apply, measured, with_typed_keys
from perceiver_jax.types import Batch, Tree


def flops(function: Callable[..., Any], *arguments: Any) -> int:
  """Counts the FLOPs of one call; `arguments` are trees of arrays or of `jax.ShapeDtypeStruct`s.

  Loops count as often as they turn, and of alternatives the most expensive counts.

  Raises:
    ValueError: matrix products in a loop of which the trace does not say how often it turns.
  """
  return _of_jaxpr(jax.make_jaxpr(function)(*arguments).jaxpr)


def forward_flops(config: ConfigDict) -> int:
  """Counts the FLOPs of one example as the papers do: every query, key, value, logit and average by matrix products.

  Outputs that are decoded in chunks, those of a video, count what each chunk computes anew: 2.5 % there.
  """
  dense = changed(config, {'attention_impl': 'dense'})
  task = make_task(dense)
  forward = _forward(hk.transform_with_state(task.forward).apply, is_training=True)
  return flops(forward, *template_of(task), KEY, batch_of(task, 1))


def computed_flops(model: Model, batch_size: int, *, is_training: bool) -> float:
  """Counts the FLOPs of one of `batch_size` examples as this config computes them; with `is_training` also backward.

  What all examples share is computed once, and what `config.remat` says is computed twice.
  """
  function = _gradients(model) if is_training else _forward(model.apply, is_training=False)
  return flops(function, model.params, model.state, KEY, batch_of(model.task, batch_size)) / batch_size


def _forward(apply: Apply, *, is_training: bool) -> Callable[..., Any]:
  return lambda params, state, key, batch: apply(
    params, state, key, with_typed_keys(batch), is_training=is_training)


def _gradients(model: Model) -> Callable[..., Any]:
  return lambda params, *others: jax.grad(loss_of(model))(params, *others)


def loss_of(model: Model) -> Callable[..., Any]:
  """Returns (params, state, key, batch) -> the loss sum that training differentiates."""
  def loss_sum(params: Tree, state: Tree, key: Any, batch: Batch) -> Any:
    batch = with_typed_keys(batch)
    outputs, _ = model.apply(params, state, key, batch, is_training=True)
    return measured(model.task, outputs, batch)['loss'][0]

  return loss_sum


def _of_jaxpr(jaxpr: Jaxpr) -> int:
  return sum(map(_of_equation, jaxpr.eqns))


def _of_equation(equation: Any) -> int:
  params = equation.params
  match equation.primitive.name:
    case 'dot_general':
      contracted = params['dimension_numbers'][0][0]
      left = equation.invars[0].aval.shape
      return 2 * equation.outvars[0].aval.size * math.prod(left[axis] for axis in contracted)
    case 'conv_general_dilated':
      kernel = equation.invars[1].aval
      num_outputs = kernel.shape[params['dimension_numbers'].rhs_spec[0]]
      inserted_zeros = math.prod(params['lhs_dilation'])  # in the gradient of a convolution with strides
      return 2 * equation.outvars[0].aval.size * (kernel.size // num_outputs) // inserted_zeros
    case 'cond':
      return max(_of_jaxpr(branch.jaxpr) for branch in params['branches'])
  inside = sum(map(_of_jaxpr, _inside(params)))
  match equation.primitive.name:
    case 'scan':
      return params['length'] * inside
    case 'pallas_call':
      return math.prod(params['grid_mapping'].grid) * inside
    case 'while' if inside:
      raise ValueError('there are matrix products in a while loop: nobody knows how often it turns')
  return inside


def _inside(params: dict[str, Any]) -> Iterator[Jaxpr]:
  """The traces that an equation holds: those of jit, checkpoint, custom derivatives, loops."""
  for value in params.values():
    if isinstance(value, ClosedJaxpr):
      yield value.jaxpr
    elif isinstance(value, Jaxpr):
      yield value
