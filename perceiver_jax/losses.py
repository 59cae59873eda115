"""Losses: pure functions that return `Mean`, (weighted sum, weight), as metrics do."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from perceiver_jax.types import Array, Mean


def softmax_cross_entropy(logits: Array, labels: Array, mask: Array, *, label_smoothing: float = 0.0) -> Mean:
  """Cross-entropy against the smoothed target (1 - s) * onehot(label) + s / num_classes, in nats.

  Args:
    logits: [B, E], any floating dtype.
    labels: [B] integers in [0, E). Any other label of a real example gives NaN, where wrapping round
      would train a wrong class.
    mask: [B] float32, the weight of an example. Where it is 0, logits and label may hold anything, NaN included.
    label_smoothing: s in [0, 1]. Perceiver IO trains ImageNet with 0.1 (the authors' code; the paper is silent).

  Returns:
    ([], []): the sum over examples of weight * loss, and the sum of weights; float32 or wider.
  """
  is_real = mask > 0
  logits = jnp.asarray(logits, jnp.promote_types(logits.dtype, jnp.float32))
  # Both wheres are needed: this one keeps NaN out of the gradient (0 * NaN = NaN), the last one out of the sum.
  log_probs = jax.nn.log_softmax(jnp.where(is_real[..., None], logits, 0.0))
  loss = -_take(log_probs, labels)
  if label_smoothing:  # without it a class ruled out by a logit of -inf costs nothing, and must not: 0 * inf = NaN
    loss = (1.0 - label_smoothing) * loss - label_smoothing * jnp.mean(log_probs, axis=-1)
  return jnp.sum(jnp.where(is_real, mask * loss, 0.0)), jnp.sum(mask, dtype=loss.dtype)


def _take(log_probs: Array, labels: Array) -> Array:
  """The log-probability [B] of each label, NaN where the label is no class."""
  is_class = (labels >= 0) & (labels < log_probs.shape[-1])
  chosen = jnp.take_along_axis(log_probs, jnp.where(is_class, labels, 0)[..., None], axis=-1)[..., 0]
  return jnp.where(is_class, chosen, jnp.nan)
