"""Classifies texts (2107.14795, section 4.1 and appendix F.4, one trained query).

  tokens [B, L] -> text_inputs [B, L, C] -> latents [B, N, D] -> logits [B, E]
"""

from __future__ import annotations

import functools
from typing import Any

from ml_collections import ConfigDict

from perceiver_jax.adapters.text import text_inputs, token_table
from perceiver_jax.core.perceiver import learned_query
from perceiver_jax.tasks import assembly
from perceiver_jax.types import Batch, Field, Task


def make(config: ConfigDict) -> Task:
  """Returns the task; it cannot be trained yet."""
  length = (config.data.max_length,)
  inputs = {
    'tokens': Field(length, 'int32', bound=config.data.vocab_size),
    'valid': Field(length, 'uint8', bound=2, is_optional=True),
  }
  return Task(inputs=inputs, targets={}, forward=functools.partial(_forward, config))


def _forward(config: ConfigDict, batch: Batch, *, is_training: bool, capture: bool = False) -> dict[str, Any]:
  """Computes {'logits': [B, E]}; `batch['tokens']` [B, L] and 'valid' may be shorter, 'valid' absent."""
  data, model = config.data, config.model
  tokens = assembly.entry(batch, 'tokens', 'tokens')
  table = token_table(data.vocab_size, model.token_channels)
  inputs = text_inputs(tokens, table, data.max_length, batch.get('valid'))
  latents, captured = assembly.read(config, inputs, is_training=is_training, capture=capture)
  query = learned_query(1, model.query_channels, latents.shape[0])
  decoder = assembly.decoder(config, data.num_classes)
  answers, weights = decoder(query, latents, is_training=is_training, capture=capture)
  return assembly.with_captured({'logits': answers[:, 0]}, captured, weights, capture)
