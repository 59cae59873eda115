"""The input of every baseline: an image whose pixels carry their positions as further channels (2103.03206, 4.1).

Shapes: B batch, H height, W width, C colours, P channels of a position.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax

from perceiver_jax.adapters.image import as_parameters, image_inputs, normalised
from perceiver_jax.core.input_array import dense
from perceiver_jax.types import Array

if TYPE_CHECKING:
  from ml_collections import ConfigDict


def pixel_grid(image: Array, model: ConfigDict, *, order: Array | None = None) -> jax.Array:
  """The image, each pixel with its own position, in the places where the image has its pixels.

  Args:
    image: [B, H, W, C] uint8, or float, normalised already.
    model: config.model, of which `stem.normalisation` and `position`; its `kind` may also be 'none'.
    order: [H * W] int, where each pixel comes from: as in `image_inputs`. Pixels that were moved stay where they are,
      so that neighbours are no longer neighbours, but each keeps the coordinates that it had.

  Returns:
    [B, H, W, C + P], or [B, H, W, C] without positions, in the dtype of the model's parameters.
  """
  if model.position.kind == 'none':
    pixels = normalised(image, model.stem.normalisation)
  else:
    inputs = image_inputs(image, model.stem, model.position, is_training=False, order=order)
    pixels = dense(inputs).reshape(*image.shape[:3], -1)
  return as_parameters(pixels)
