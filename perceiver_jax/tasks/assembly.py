"""A Perceiver as a config describes it; every task starts from these functions."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from perceiver_jax.core.input_array import InputArray, Pack
from perceiver_jax.core.perceiver import Captured, Decoder, Encoder, Processor, encode
from perceiver_jax.types import ALWAYS, Array, Batch, UserError


def entry(batch: Batch, name: str, *axes: int | str) -> Array:
  """Returns `batch[name]`, [B, *axes]: a number is the size that an axis must have, a word an axis of any size.

  Raises UserError where there is none, or it has another shape.
  """
  if name not in batch:
    raise UserError(f'{name} is missing: the batch has {", ".join(sorted(set(batch) - set(ALWAYS))) or "nothing"}')
  array, expected = batch[name], ('batch', *axes)
  if array.ndim != len(expected) or any(
      isinstance(wanted, int) and size != wanted for size, wanted in zip(array.shape, expected, strict=True)):
    raise UserError(f'{name} is [{", ".join(map(str, expected))}], not {list(array.shape)}')
  return array


def read(
  config: ConfigDict, inputs: InputArray | Pack, *, is_training: bool, capture: bool = False,
) -> tuple[jax.Array, Captured]:
  """Encodes the inputs as the config says: returns the latents [B, N, D], and what was captured."""
  model = config.model
  shared = dict(
    qk_channels=model.qk_channels,
    v_channels=model.v_channels,
    dropout_prob=model.dropout_prob,
    attention_dropout_prob=model.attention_dropout_prob,
    gelu=model.gelu,
  )
  encoder = Encoder(
    model.num_latents, model.latent_channels, model.num_cross_attends, model.share_cross_attends,
    num_heads=model.num_cross_heads, widening=model.cross_widening, query_residual=model.encoder_residual,
    masked_rows=model.masked_rows, attention_impl=config.attention_impl, **shared)
  processor = Processor(
    model.num_blocks, model.num_self_attends_per_block, model.share_blocks,
    num_heads=model.num_self_heads, widening=model.self_widening, **shared)
  return encode(
    encoder, processor, inputs, is_training=is_training, arrangement=model.cross_attends, remat=config.remat,
    capture=capture)


def decoder(config: ConfigDict, output_channels: int | None, **others: Any) -> Decoder:
  """The decoder; `output_channels` and `others` are its arguments."""
  model = config.model
  return Decoder(
    output_channels, model.query_residual, gelu=model.gelu, masked_rows=model.masked_rows,
    attention_impl=config.attention_impl, **others)


def with_captured(outputs: dict[str, Any], captured: Captured, decoder_weights: Any, capture: bool) -> dict[str, Any]:
  """Returns the outputs, and what the attentions looked at where it was asked for."""
  return {**outputs, 'captured': {**captured, 'decoder': decoder_weights}} if capture else outputs


def moved_pixels(config: ConfigDict) -> np.ndarray | None:
  """Returns which pixel of a picture stands in each place, [H * W]; None where none was moved."""
  from perceiver_jax.data.permutation import permutation

  return None if config.data.permutation == 'none' else permutation(config.data.image_size**2)


def pixel_order(config: ConfigDict) -> np.ndarray | None:
  """Returns the same for pixels that moved with their positions; None where positions stayed."""
  return moved_pixels(config) if config.data.permutation == 'joint' else None
