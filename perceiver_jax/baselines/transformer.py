"""A Transformer on every pixel (2103.03206, section 4.1): a Perceiver without a bottleneck, so for few pixels only.

Shapes: B batch, M tokens, D their channels, H height, W width, F channels of a pixel with its position, E classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import haiku as hk
import jax

from perceiver_jax.core.perceiver import Processor, pool

if TYPE_CHECKING:
  from ml_collections import ConfigDict


def transformer(pixels: jax.Array, num_classes: int, model: ConfigDict, *, is_training: bool) -> jax.Array:
  """pixels [B, H, W, F], each a token -> logits [B, E]: the mean over tokens, then a linear.

  The paper downsamples images to 64 x 64, 4,096 tokens; depth and width it does not print. The logits do not depend on
  where a pixel stands, only on the position among its channels. `model` is config.model: see `process`.
  """
  batch_size, height, width, num_channels = pixels.shape
  tokens = hk.Linear(model.latent_channels, name='tokens')(pixels.reshape(batch_size, height * width, num_channels))
  return pool(process(tokens, model, is_training=is_training), num_classes)


def process(tokens: jax.Array, model: ConfigDict, *, is_training: bool) -> jax.Array:
  """tokens [B, M, D] -> [B, M, D], by what is the latent Transformer of a Perceiver with the same `model`.

  `latent_channels`, `num_blocks`, `num_self_attends_per_block`, `share_blocks`, `num_self_heads`, `self_widening`,
  `qk_channels`, `v_channels`, `gelu` and the probabilities of dropout mean what they mean there.
  """
  processor = Processor(
    model.num_blocks, model.num_self_attends_per_block, model.share_blocks,
    num_heads=model.num_self_heads, widening=model.self_widening, qk_channels=model.qk_channels,
    v_channels=model.v_channels, dropout_prob=model.dropout_prob,
    attention_dropout_prob=model.attention_dropout_prob, gelu=model.gelu)
  for block in range(model.num_blocks):
    tokens, _ = processor(tokens, block, is_training=is_training)
  return tokens
