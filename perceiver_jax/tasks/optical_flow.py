"""Predicts the motion of every pixel between two frames (2107.14795, section 4.2 and appendix H).

  frames [B, 2, H, W, C] -> frame_patches [B, 2, H, W, P] -> flow_inputs [B, M, F + P'] -> latents [B, N, D]
  -> the first frame's inputs ask, H * W of F + P' -> flow [B, H, W, 2]
"""

from __future__ import annotations

import functools
from typing import Any

import jax.numpy as jnp
from ml_collections import ConfigDict

from perceiver_jax.adapters.flow import flow_inputs, flow_query, frame_patches
from perceiver_jax.adapters.image import normalised
from perceiver_jax.tasks import assembly
from perceiver_jax.types import Batch, Field, Mean, Task

FLOW_SCALE = 20.0    # pixels in one unit of flow: the authors trained on flow divided by it
OUTPUT_SCALE = 0.01  # of what the decoder says; they found it useful early on


def make(config: ConfigDict) -> Task:
  """Returns the task; it has no data of its own yet.

  `flow` is in pixels, x and y; `flow_valid` is 1 where it is known.
  """
  size, num_channels = tuple(config.data.frame_size), config.data.num_channels
  patch = config.model.patch_size**2 * num_channels
  return Task(
    inputs={
      'frames': Field((2, *size, num_channels), 'uint8'),
      'patches': Field((2, *size, patch), 'float32', is_optional=True),
      'valid': Field(('elements',), 'uint8', is_optional=True),
    },
    targets={'flow': Field((*size, 2), 'float32'), 'flow_valid': Field(size, 'uint8', bound=2)},
    forward=functools.partial(_forward, config),
    measure=_measure,
  )


def _forward(config: ConfigDict, batch: Batch, *, is_training: bool, capture: bool = False) -> dict[str, Any]:
  """Computes {'flow': [B, H, W, 2]}: the x and y motion of each pixel, in units of `FLOW_SCALE` pixels.

  `batch` holds 'frames', uint8 or float in [-1, 1], or in their place 'patches' as `frame_patches` makes them; 'valid'
  [B, M] may mask elements.
  """
  model, num_channels = config.model, config.data.num_channels
  if 'patches' in batch:
    patches = assembly.entry(batch, 'patches', 2, 'height', 'width', model.patch_size**2 * num_channels)
  else:
    frames = assembly.entry(batch, 'frames', 2, 'height', 'width', num_channels)
    patches = frame_patches(normalised(frames, 'symmetric'), model.patch_size)
  batch_size, _, height, width, _ = patches.shape
  inputs = flow_inputs(
    patches, model.stem_channels, model.num_bands, model.max_resolution, separate_frames=model.separate_frames)
  inputs = inputs._replace(valid=batch.get('valid'))
  latents, captured = assembly.read(config, inputs, is_training=is_training, capture=capture)
  query = flow_query(inputs, height * width)
  decoder = assembly.decoder(config, 2, output_init=jnp.zeros)  # at first nothing moves, as in the authors' code
  answers, weights = decoder(query, latents, is_training=is_training, capture=capture)
  flow = OUTPUT_SCALE * answers.reshape(batch_size, height, width, 2)
  return assembly.with_captured({'flow': flow}, captured, weights, capture)


def _measure(outputs: dict[str, Any], batch: Batch) -> dict[str, Mean]:
  """Computes the end-point error over pixels whose flow is known: in pixels, and as loss in units of `FLOW_SCALE`.

  The papers do not print their loss; this one is ours.
  """
  weight = batch['mask'][:, None, None] * (batch['flow_valid'] != 0)
  target = jnp.where(weight[..., None] > 0, batch['flow'], 0.0) / FLOW_SCALE
  error = jnp.where(weight[..., None] > 0, outputs['flow'] - target, 0.0)
  # The gradient of a length is not defined at 0.
  length = jnp.sqrt(jnp.sum(jnp.square(error), axis=-1) + 1e-12)
  total = jnp.sum(weight * length)
  return {'loss': (total, jnp.sum(weight)), 'epe': (FLOW_SCALE * total, jnp.sum(weight))}
