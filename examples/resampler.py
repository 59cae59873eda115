"""Resamples any number of features to 64 latents, as models of vision and language do before a language model."""

import haiku as hk
import jax
import jax.numpy as jnp

from perceiver_jax import Encoder, InputArray, Processor, encode


def resample(features, valid=None, is_training=False):
  """Reads features [B, M, C], of which `valid` [B, M] count, into latents [B, 64, 256]."""
  encoder = Encoder(num_latents=64, latent_channels=256)
  processor = Processor(num_blocks=1, num_self_attends_per_block=2)
  latents, _ = encode(encoder, processor, InputArray(features, valid=valid), is_training=is_training)
  return latents


model = hk.without_apply_rng(hk.transform(resample))
features, valid = jnp.ones((2, 1000, 512)), jnp.arange(1000) < jnp.array([[1000], [300]])
params = model.init(jax.random.key(0), features, valid)
print(jax.jit(model.apply)(params, features, valid).shape)  # (2, 64, 256)
