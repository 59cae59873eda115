"""Predicts hidden tokens (2107.14795, section 4.1 and appendix F; language Perceiver on bytes or word pieces).

  tokens [B, L] -> text_inputs [B, L, C] -> latents [B, N, D] -> answers [B, O, C] -> logits [B, O, V]

A trained query asks at each of the O = max_length positions; the token table that embeds the inputs also reads the
answers.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from perceiver_jax import losses, metrics
from perceiver_jax.adapters.text import text_inputs, token_logits, token_table
from perceiver_jax.core.perceiver import learned_query
from perceiver_jax.tasks import assembly
from perceiver_jax.types import Array, Batch, Field, Mean, Task


def make(config: ConfigDict) -> Task:
  """Returns the task; it has no data of its own yet.

  `targets` are the tokens that stood in the text, and `is_masked` is 1 where a token was hidden.
  """
  length, vocab_size = (config.data.max_length,), config.data.vocab_size
  return Task(
    inputs={
      'tokens': Field(length, 'int32', bound=vocab_size),
      'valid': Field(length, 'uint8', bound=2, is_optional=True),
    },
    targets={'targets': Field(length, 'int32', bound=vocab_size), 'is_masked': Field(length, 'uint8', bound=2)},
    forward=functools.partial(_forward, config),
    measure=_measure,
  )


def _forward(config: ConfigDict, batch: Batch, *, is_training: bool, capture: bool = False) -> dict[str, Any]:
  """Computes {'logits': [B, O, V]}; `batch['tokens']` [B, L] and 'valid' may be shorter than O, 'valid' absent."""
  data, model = config.data, config.model
  tokens, valid = assembly.entry(batch, 'tokens', 'tokens'), batch.get('valid')
  table = token_table(data.vocab_size, model.token_channels)
  inputs = text_inputs(tokens, table, data.max_length, valid)
  latents, captured = assembly.read(config, inputs, is_training=is_training, capture=capture)
  decoder = assembly.decoder(
    config, None, num_heads=model.num_decoder_heads, qk_channels=model.decoder_qk_channels,
    v_channels=model.token_channels)
  query = learned_query(data.max_length, model.token_channels, tokens.shape[0])
  answers, weights = decoder(
    query, latents, query_mask=_query_mask(valid, data.max_length), is_training=is_training, capture=capture)
  return assembly.with_captured({'logits': token_logits(answers, table)}, captured, weights, capture)


def _measure(outputs: dict[str, Any], batch: Batch) -> dict[str, Mean]:
  """Computes cross-entropy and accuracy over the hidden tokens: a text with few of them weighs as little."""
  num_tokens = batch['tokens'].shape[1]
  mask = (batch['mask'][:, None] * (batch['is_masked'] != 0)).reshape(-1)
  logits = outputs['logits'][:, :num_tokens].reshape(mask.size, -1)
  targets = batch['targets'].reshape(-1)
  return {
    'loss': losses.softmax_cross_entropy(logits, targets, mask),
    'accuracy': metrics.top_k_accuracy(logits, targets, mask, k=1),
  }


def _query_mask(valid: Array | None, num_queries: int) -> jax.Array | None:
  """Returns the mask of the queries, [B, O]: none asks about padding."""
  return None if valid is None else jnp.pad(valid, ((0, 0), (0, num_queries - valid.shape[1])))
