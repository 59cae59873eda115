"""Our models compute what Hugging Face's do, from the same weights, for each of their seven classes; and back."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from perceiver_jax.interop import huggingface
from perceiver_jax.types import UserError
from tests.interop import huggingface_models
from tests.interop.huggingface_models import CASES, error, fresh, our_logits, pair, state_dict, their_logits, torch

TOLERANCE = 2e-5  # ||ours - theirs|| / ||theirs||, in float32


def test_every_class_has_models_to_compare():
  assert {case.architecture for case in CASES.values()} == set(huggingface.ARCHITECTURES)


@pytest.mark.parametrize('name', CASES)
def test_logits_are_theirs(name):
  logits = their_logits(pair(name).theirs, pair(name).inputs)
  assert jax.tree.map(np.shape, our_logits(name)) == jax.tree.map(np.shape, dict(logits) if isinstance(logits, dict) else logits)
  assert error(our_logits(name), logits) <= TOLERANCE


def _moved(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """The same, but two tokens have changed places, or everything has gone one pixel to the side."""
  if 'tokens' in batch:
    tokens = batch['tokens'].copy()
    tokens[:, [0, 2]] = tokens[:, [2, 0]]
    return {**batch, 'tokens': tokens}
  return {name: np.roll(array, 1, axis=-2) if name in ('image', 'patches', 'video') else array
          for name, array in batch.items()}


@pytest.mark.parametrize('name', CASES)
def test_logits_depend_on_where_things_are(name):
  logits, moved = our_logits(name), our_logits(name, _moved(pair(name).batch))
  assert error(moved, logits) > 50 * TOLERANCE


@pytest.mark.parametrize('name', CASES)
def test_logits_depend_on_the_form_of_gelu(name):
  config = pair(name).config.copy_and_resolve_references()
  config.model.gelu = {'exact': 'tanh', 'tanh': 'exact'}[config.model.gelu]
  assert error(our_logits(name, config=config), our_logits(name)) > 50 * TOLERANCE
