"""Several modalities as one input array, and apart again (2103.03206, section 4.2; 2107.14795, section 4.3).

Shapes: B batch, M elements, of which M_m and C_m channels are modality m's, C channels of all, O queries.
"""

from __future__ import annotations

from collections.abc import Mapping

import chex
import jax
import jax.numpy as jnp
import numpy as np

from perceiver_jax.core.input_array import InputArray, Pack, dense, size
from perceiver_jax.core.position_encoding import LearnedTable
from perceiver_jax.types import Array, UserError


def pack(inputs: Mapping[str, InputArray], min_padding: int, masked: Mapping[str, Array] | None = None) -> Pack:
  """Elements of all modalities, one modality after the other in the order of their sorted names.

  Every element is made as wide as the widest and `min_padding`, by its modality's trained `{name}_padding`, which says
  what modality it is of.

  Args:
    inputs: {name: M_m elements}.
    min_padding: channels that even the widest modality gets.
    masked: {name: [B, M_m] bool}, True = the whole element is replaced by the modality's trained `{name}_mask_token`,
      [1, C]. A modality that is named here has this parameter whether or not anything is masked. If a mask is
      a constant all-True or all-False, the factored form is kept.

  Returns:
    A part for each modality, of M_m elements and C = max C_m + min_padding channels.

  Raises:
    UserError: a mask of a modality that is not there.
  """
  masked = masked or {}
  if unknown := sorted(masked.keys() - inputs.keys()):
    raise UserError(f'masks for {unknown}, but the modalities are {sorted(inputs)}')
  features = [each.features for each in inputs.values()]
  chex.assert_rank(features, 3)
  chex.assert_equal_shape_prefix(features, 1)
  num_channels = max(size(each)[-1] for each in inputs.values()) + min_padding
  parts = []
  for name in sorted(inputs):
    part = _padded(inputs[name], num_channels, name)
    parts.append(_masked(part, masked[name], num_channels, name) if name in masked else part)
  return Pack(tuple(parts))


def _padded(inputs: InputArray, num_channels: int, name: str) -> InputArray:
  num_missing = num_channels - size(inputs)[-1]
  return inputs._replace(padding=LearnedTable(1, num_missing, name=f'{name}_padding')()[0]) if num_missing else inputs


def _masked(inputs: InputArray, mask: Array, num_channels: int, name: str) -> InputArray:
  chex.assert_shape(mask, inputs.features.shape[:2])
  token = LearnedTable(1, num_channels, name=f'{name}_mask_token')()[0]
  if isinstance(mask, np.ndarray) and not mask.any():
    return inputs
  if isinstance(mask, np.ndarray) and mask.all():
    return InputArray(inputs.features[..., :0], valid=inputs.valid, padding=token)
  return InputArray(jnp.where(mask[..., None], token, dense(inputs)), valid=inputs.valid)


def split(outputs: Array, sizes: Mapping[str, int]) -> dict[str, Array]:
  """Splits [B, O, E] into {name: [B, sizes[name], E]}, in the order of `pack`."""
  chex.assert_shape(outputs, (None, sum(sizes.values()), None))
  parts, start = {}, 0
  for name in sorted(sizes):
    parts[name] = outputs[:, start:start + sizes[name]]
    start += sizes[name]
  return parts


def random_mask(keys: Array, prob: float, num_elements: int) -> jax.Array:
  """Draws a mask for `pack`, [B, M] bool, True with probability `prob` in [0, 1].

  `keys` [B] are random keys, one for each example, made of the seed, the step and the example and of this mask's
  purpose: what happens to an example does not depend on which others share its batch.
  """
  if not 0 <= prob <= 1:
    raise UserError(f'a probability is from 0 to 1, not {prob}')
  return jax.vmap(lambda key: jax.random.bernoulli(key, prob, (num_elements,)))(keys)


def drop_modality(keys: Array, prob: float, features: Array) -> jax.Array:
  """Zeroes all of an example's `features` [B, ...] with `prob` (2103.03206, section 4.2: video, 0.3).

  `features` are as the model takes them: 0 of a raw image would be black. `keys` as in `random_mask`.
  """
  chex.assert_equal_shape_prefix([keys, features], 1)
  is_dropped = random_mask(keys, prob, 1).reshape(-1, *(1,) * (features.ndim - 1))
  return jnp.where(is_dropped, 0, features)
