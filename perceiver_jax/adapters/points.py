"""Point clouds in: points that are nothing but where they are (2103.03206, section 4.3).

Shapes: B batch, M points, d coordinates, K bands.
"""

from __future__ import annotations

from collections.abc import Sequence

import chex

from perceiver_jax.core.input_array import InputArray
from perceiver_jax.core.position_encoding import fourier_features
from perceiver_jax.types import Array


def point_inputs(
  points: Array, num_bands: int, max_resolution: Sequence[int], valid: Array | None = None,
) -> InputArray:
  """Points as input elements, in the order given.

  The encoding is the feature: it differs by example and has nothing beside it, so that keeping it apart gains nothing.

  Args:
    points: [B, M, d], in [-1, 1].
    num_bands: K; 64 for ModelNet40.
    max_resolution: twice the highest band of each axis; (2240, 2240, 2240) for ModelNet40.
    valid: [B, M], non-zero = a point that counts.

  Returns:
    M elements without positions, features [B, M, d * (2 K + 1)]: coordinates, sines, cosines.
  """
  chex.assert_rank(points, 3)
  if valid is not None:
    chex.assert_shape(valid, points.shape[:2])
  return InputArray(fourier_features(points, num_bands, max_resolution), None, valid)
