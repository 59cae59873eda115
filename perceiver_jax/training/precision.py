"""Mixed precision as a wrapper around `apply`, so that no model asks which dtype it runs in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import jmp

from perceiver_jax.types import UserError

_EXAMPLE = 'params=float32,compute=bfloat16,output=float32'


def policy(precision: str) -> jmp.Policy:
  """Reads `'params=float32,compute=bfloat16,output=float32'`, or one dtype for all three.

  What is left out follows: params is float32, compute as params, output as compute. There is no loss scaling, so train
  in bfloat16 rather than float16, whose small gradients underflow.

  Raises:
    UserError: the text cannot be read, or asks for float64 where JAX would quietly make it float32.
  """
  try:
    parsed = jmp.get_policy(precision)
  except ValueError as error:
    raise UserError(f'config.precision={precision!r} cannot be read. Write it like {_EXAMPLE!r}; '
                    'the dtypes are float32, bfloat16, float16 and float64.') from error
  dtypes = (parsed.param_dtype, parsed.compute_dtype, parsed.output_dtype)
  if jnp.float64 in dtypes and not jax.config.read('jax_enable_x64'):
    raise UserError(f'config.precision={precision!r} asks for float64, which JAX has switched off. '
                    f'Set JAX_ENABLE_X64=1, or write it like {_EXAMPLE!r}.')
  return parsed


def wrap(apply: Callable[..., Any], precision: str) -> Callable[..., Any]:
  """An `apply(params, state, key, batch, **kwargs) -> (outputs, state)` that computes in the policy's dtypes.

  Parameters and floating entries of the batch are cast to `compute`, floating outputs to `output`. Integers (uint8
  images too), `mask` and the Haiku state (BatchNorm's averages) keep their own dtype. Gradients arrive in the dtype of
  the parameters that were passed in, because the cast is inside the function that is differentiated.

  Args:
    apply: as of `hk.transform_with_state`.
    precision: see `policy`, whose UserError it raises.
  """
  casts = policy(precision)

  def cast_apply(params, state, key, batch, **kwargs):
    batch = {name: entry if name == 'mask' else casts.cast_to_compute(entry) for name, entry in batch.items()}
    outputs, new_state = apply(casts.cast_to_compute(params), state, key, batch, **kwargs)
    # A module may store what it just computed, in bfloat16: the next step would see a new dtype and compile again.
    new_state = jax.tree.map(lambda old, new: jnp.asarray(new, old.dtype), state, new_state)
    return casts.cast_to_output(outputs), new_state

  return cast_apply
