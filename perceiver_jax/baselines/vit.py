"""A Vision Transformer on patches (Dosovitskiy et al. 2021, arXiv 2010.11929), the other baseline of 2103.03206.

Shapes: B batch, D channels of a token, H height, W width, F channels of a pixel with its position, E classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import haiku as hk
import jax
import jax.numpy as jnp

from perceiver_jax.adapters.image import space_to_depth
from perceiver_jax.baselines.transformer import process
from perceiver_jax.core.attention import layer_norm
from perceiver_jax.core.perceiver import learned_query
from perceiver_jax.core.position_encoding import LearnedTable

if TYPE_CHECKING:
  from ml_collections import ConfigDict


def vit(pixels: jax.Array, num_classes: int, model: ConfigDict, *, is_training: bool) -> jax.Array:
  """pixels [B, H, W, F] -> logits [B, E], read from a class token; 86,567,656 parameters for ViT-B/16 on RGB.

  Patches through a linear, a learned position per token, pre-norm layers, LayerNorm, a linear that starts at zero.
  LayerNorm has our epsilon, 1e-5, not that paper's 1e-6.

  Args:
    pixels: of the size that the model is trained on: there is a position for each of its patches.
    num_classes: E.
    model: config.model: `stem.patch_size`, and what `process` takes; ViT-B has 12 layers of 768 channels, 12 heads and
      a widening of 4.
    is_training: turns dropout on.

  Raises:
    UserError: the patches do not divide the image.
  """
  width, patches = model.latent_channels, jnp.asarray(space_to_depth(pixels, model.stem.patch_size))
  patches = patches.reshape(patches.shape[0], -1, patches.shape[-1])
  class_token = learned_query(1, width, patches.shape[0], name='class_token')
  tokens = jnp.concatenate([class_token, hk.Linear(width, name='patches')(patches)], axis=1)
  tokens = tokens + LearnedTable(tokens.shape[1], width, name='token_positions')()
  tokens = process(tokens, model, is_training=is_training)
  return hk.Linear(num_classes, w_init=jnp.zeros, name='output')(layer_norm(tokens[:, 0], 'final_norm'))
