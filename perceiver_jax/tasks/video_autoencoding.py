"""Video, sound and label through one bottleneck and back (2107.14795, section 4.3 and appendix I).

  video [B, T, H, W, 3], audio [B, S], label [B, E] -> pack [B, M, C] -> latents [B, N, D]
  -> a query for every pixel, every audio patch and the label -> video, audio, label again

Each answer depends on its query alone, so that outputs are decoded a few at a time, or only where asked.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from perceiver_jax.adapters.audio import audio_inputs
from perceiver_jax.adapters.image import space_to_depth
from perceiver_jax.adapters.multimodal import pack
from perceiver_jax.adapters.query import cell_coordinates, fourier_query, grid_query, padded_query
from perceiver_jax.core.chunks import in_chunks
from perceiver_jax.core.factored.decoder import LinearParameters
from perceiver_jax.core.input_array import InputArray, Pack, with_valid
from perceiver_jax.core.perceiver import learned_query
from perceiver_jax.core.position_encoding import fourier_grid
from perceiver_jax.tasks import assembly
from perceiver_jax.types import Array, Batch, Field, Task, UserError

MOST_QUERY_VALUES = 2**24  # of the queries in memory at once; 64 MiB of float32


def make(config: ConfigDict) -> Task:
  """Returns the task; it cannot be trained yet."""
  data, patch_size = config.data, config.model.audio.patch_size
  num_samples = data.num_frames * data.samples_per_frame
  inputs = {
    'video': Field((data.num_frames, data.image_size, data.image_size, 3), 'uint8'),
    'audio': Field((num_samples,), 'float32'),
    'label': Field((data.num_classes,), 'float32'),
    'valid': Field(('elements',), 'uint8', is_optional=True),
    'video_points': Field(
      ('points',), 'int32', bound=data.num_frames * data.image_size**2, is_optional=True),
    'audio_points': Field(('points',), 'int32', num_samples // patch_size, is_optional=True),
  }
  return Task(inputs=inputs, targets={}, forward=functools.partial(_forward, config))


def _forward(config: ConfigDict, batch: Batch, *, is_training: bool, capture: bool = False) -> dict[str, Any]:
  """Computes {'video': [B, T, H, W, 3] in 0..1, 'audio': [B, S] in -1..1, 'label': logits [B, E]}.

  `batch` holds video, uint8 or float in 0..1, audio in -1..1, and a one-hot label, which the model never sees: it is
  masked out. With 'video_points' [B, O] or 'audio_points', flat indices of pixels or audio patches, only these are
  decoded: [B, O, 3] and [B, O * patch_size]. 'valid' [B, M] may mask elements of the packed inputs, in the order audio,
  label, video (the authors' is audio, video, label). Clips may be of another length or size than those of the config,
  which say how much is decoded.
  """
  data, model = config.data, config.model
  inputs = with_valid(_inputs(config, batch), batch.get('valid'))
  latents, captured = assembly.read(config, inputs, is_training=is_training, capture=capture)
  decoder = functools.partial(assembly.decoder(config, model.output_channels), is_training=is_training)
  pixels = data.num_frames, data.image_size, data.image_size
  patches = (data.num_frames * data.samples_per_frame // model.audio.patch_size,)
  video = _decode(config, decoder, latents, 'video', 3, pixels, batch.get('video_points'))
  audio = _decode(config, decoder, latents, 'audio', model.audio.patch_size, patches, batch.get('audio_points'))
  query = learned_query(1, model.label_query_channels, latents.shape[0], name='label_query')
  label, _ = decoder(padded_query(query, _query_channels(model), 'label_query_padding'), latents)
  outputs: dict[str, Any] = {
    'video': video if 'video_points' in batch else video.reshape(-1, *pixels, 3),
    'audio': audio.reshape(audio.shape[0], -1),
    'label': hk.Linear(data.num_classes, name='label_output')(label)[:, 0],
  }
  return {**outputs, 'captured': captured} if capture else outputs


def _inputs(config: ConfigDict, batch: Batch) -> Pack:
  """Patches of the video, patches of the audio, and the label as one element, which is replaced by its mask token."""
  video, audio = config.model.video, config.model.audio
  frames = assembly.entry(batch, 'video', 'frames', 'height', 'width', 3)
  frames = frames / 255.0 if jnp.issubdtype(frames.dtype, jnp.integer) else frames
  sound, label = assembly.entry(batch, 'audio', 'samples'), assembly.entry(batch, 'label', config.data.num_classes)
  patches = space_to_depth(frames, video.patch_size)
  batch_size, *grid, num_channels = patches.shape
  elements = {
    'audio': audio_inputs(sound, audio.patch_size, audio.num_bands, audio.max_resolution),
    'label': InputArray(label[:, None]),
    'video': InputArray(
      patches.reshape(batch_size, -1, num_channels), fourier_grid(grid, video.num_bands, video.max_resolution)),
  }
  masked = {name: np.full(inputs.features.shape[:2], name == 'label') for name, inputs in elements.items()}
  return pack(elements, config.model.min_padding, masked)


def _query_channels(model: ConfigDict) -> int:
  """Returns the width of the widest query, and some channels more that tell the modalities apart."""
  widths = [model.label_query_channels]
  widths += [len(axis.max_resolution) * (2 * axis.num_bands + 1) for axis in (model.video, model.audio)]
  return max(widths) + model.min_query_padding


def _decode(
  config: ConfigDict, decoder: Callable[..., Any], latents: jax.Array, name: str, num_outputs: int,
  shape: tuple[int, ...], points: Array | None,
) -> jax.Array:
  """Returns [B, O, num_outputs]: the answers at `points` [B, O], flat indices, or at all cells of `shape`."""
  if points is not None and (points.ndim != 2 or not jnp.issubdtype(points.dtype, jnp.integer)):
    raise UserError(f'{name}_points are integers [batch, points], of each example its own; not {points.dtype} '
                    f'{list(points.shape)}')
  model, batch_size = config.model, latents.shape[0]
  bands, num_channels = model[name], _query_channels(model)
  linear = LinearParameters(model.output_channels, num_outputs, name=f'{name}_output')()
  if points is None and len(shape) > 1 and config.attention_impl in ('auto', 'factored'):
    query = grid_query(
      shape, bands.num_bands, bands.max_resolution, num_channels, batch_size, f'{name}_query_padding')
    return decoder(query, latents, linear=linear)[0]
  cells = jnp.arange(math.prod(shape)) if points is None else points  # of all examples, or of each its own

  def answer(rows: Any) -> jax.Array:
    query = fourier_query(cell_coordinates(cells[..., rows], shape), bands.num_bands, bands.max_resolution, batch_size)
    return decoder(padded_query(query, num_channels, f'{name}_query_padding'), latents, linear=linear)[0]

  return in_chunks(answer, cells.shape[-1], max(1, MOST_QUERY_VALUES // (batch_size * num_channels)))
