"""Metrics: pairs of (weighted sum, weight), which add up over batches and devices and are divided once."""

from __future__ import annotations

from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np

from perceiver_jax.types import Array, Mean


def top_k_accuracy(logits: Array, labels: Array, mask: Array, k: int) -> Mean:
  """Whether the label is among the k highest logits.

  Equal logits rank by class index, the lowest first, as in `argmax`: k = 1 is exactly `argmax(logits) == label`, and an
  untrained head of zeros scores chance. Counting ties as hits would give it 1. A row that holds a NaN is never correct.

  Args:
    logits: [B, E], any floating dtype.
    labels: [B] integers. One outside [0, E) is never correct.
    mask: [B] float32, the weight of an example; 0 = padding.
    k: at least 1; from E on, every label is correct.

  Returns:
    ([], []): the summed weight of the correct examples, and of all; float32 or wider.
  """
  classes = jnp.arange(logits.shape[-1])
  is_label = classes == jnp.asarray(labels)[..., None]
  score = jnp.max(logits, axis=-1, keepdims=True, where=is_label, initial=-jnp.inf)
  is_ahead = (logits > score) | ((logits == score) & (classes < jnp.asarray(labels)[..., None]))
  is_correct = is_label.any(-1) & (jnp.sum(is_ahead, axis=-1) < k) & ~jnp.isnan(logits).any(-1)
  weight = jnp.asarray(mask, jnp.promote_types(mask.dtype, jnp.float32))
  return jnp.sum(weight * is_correct), jnp.sum(weight)


def add(a: Mapping[str, Mean], b: Mapping[str, Mean]) -> dict[str, Mean]:
  """Adds two totals by name, on the host and in float64: float32 cannot count past 2^24 examples.

  A name that only one of them has is kept, so `{}` is the total of nothing. Waits for what is still on a device.
  """
  return {name: _sum([total[name] for total in (a, b) if name in total]) for name in {**a, **b}}


def _sum(means: list[Mean]) -> Mean:
  total, weight = np.sum(np.asarray(means, np.float64), axis=0)
  return total, weight


def divide(totals: Mapping[str, Mean]) -> dict[str, float]:
  """Divides the sums by their weights, on the host in float64; NaN where the weight is 0."""
  return {name: float(total) / float(weight) if weight else float('nan') for name, (total, weight) in totals.items()}
