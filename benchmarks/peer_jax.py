"""Our models and the authors', to be compared: the same work, compiled, on made-up arrays."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from benchmarks import peer_work
from benchmarks.peer_work import Folders, Work
from configs import imagenet
from perceiver_jax.core.cross_attend import CrossAttend
from perceiver_jax.core.input_array import InputArray
from perceiver_jax.core.perceiver import Decoder
from perceiver_jax.core.position_encoding import fourier_grid
from perceiver_jax.tasks import image_classification

Forward = Callable[..., jax.Array]  # of the arrays that `arrays` returns; to be transformed


class Built(NamedTuple):
  run: Callable[[], Any]            # returns when it is done
  parameters: int
  compile_seconds: float            # with tracing
  compile_cpu_seconds: float
  temp_bytes: int


def build(implementation: str, work: Work, folders: Folders) -> Built:
  """Of 'ours' or 'official'; compiled, not yet run. Raises UserError."""
  forward = ours(work) if implementation == 'ours' else official(work, peer_work.official(folders))
  inputs = arrays(work)
  model = hk.transform(forward)
  key = jax.random.key(1)
  params = jax.jit(model.init)(jax.random.key(0), *inputs)

  def loss(params: hk.Params, *inputs: jax.Array) -> jax.Array:
    return jnp.sum(jnp.square(model.apply(params, key, *inputs)))

  # A flow model trains the layer that makes its features; pixels need no gradient.
  argnums = tuple(range(1 + len(inputs))) if work.kind.startswith('flow') else 0
  function = jax.value_and_grad(loss, argnums) if work.is_step else lambda params, *inputs: model.apply(
    params, key, *inputs)
  cpu, start = time.process_time(), time.perf_counter()
  compiled = jax.jit(function).lower(params, *inputs).compile()
  seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu
  memory: Any = compiled.memory_analysis()
  return Built(
    lambda: jax.block_until_ready(compiled(params, *inputs)), sum(x.size for x in jax.tree.leaves(params)),
    seconds, cpu_seconds, memory.temp_size_in_bytes)


def arrays(work: Work) -> Sequence[np.ndarray]:
  """What a model is given: an image [B, H, W, 3]; of flow, features [B, H * W, C], and of its decoder latents too."""
  noise = np.random.default_rng(0)
  shapes: list[tuple[int, ...]]
  if work.kind in ('io', 'v1'):
    shapes = [(work.batch, work.size, work.size, 3)]
  else:
    shapes = [(work.batch, work.flow_size[0] * work.flow_size[1], work.flow_channels)]
  if work.kind == 'flow_decoder':
    shapes.append((work.batch, work.num_flow_latents, work.flow_latent_channels))
  return [noise.standard_normal(shape, np.float32) for shape in shapes]


# Ours.


def ours(work: Work) -> Forward:
  match work.kind:
    case 'flow_encoder':
      return lambda features: CrossAttend()(
        _latents(work), InputArray(features, fourier_grid(work.flow_size, work.num_bands)), is_training=work.is_step)[0]
    case 'flow_decoder':
      return functools.partial(_our_flow_decoder, work)
  forward = image_classification.make(config_of(work)).forward
  return lambda image: forward({'image': image}, is_training=work.is_step)['logits']


def config_of(work: Work) -> ConfigDict:
  """That of our ImageNet classifier, in the sizes of the work, of 'io' or 'v1'."""
  config = imagenet.get_config('perceiver' if work.kind == 'v1' else 'fourier')
  config.remat = work.remat
  config.data.update({'image_size': work.size, 'num_classes': work.num_classes})
  config.model.update({
    'num_latents': work.num_latents, 'latent_channels': work.latent_channels, 'query_channels': work.latent_channels,
    'num_blocks': work.num_blocks, 'num_self_attends_per_block': work.num_layers, 'num_self_heads': work.num_heads,
    'num_cross_attends': work.num_cross_attends})
  config.model.position.update({'num_bands': work.num_bands, 'max_resolution': (work.size, work.size)})
  return config


def _our_flow_decoder(work: Work, features: jax.Array, latents: jax.Array) -> jax.Array:
  query = InputArray(features, fourier_grid(work.flow_size, work.num_bands))
  return Decoder(2, query_residual=False)(query, latents, is_training=work.is_step)[0]


def _latents(work: Work) -> jax.Array:
  shape = (work.num_flow_latents, work.flow_latent_channels)
  latents = hk.get_parameter('latents', shape, init=hk.initializers.TruncatedNormal(0.02))
  return jnp.broadcast_to(latents, (work.batch, *shape))


# The authors'.


def official(work: Work, modules: peer_work.Official) -> Forward:
  forwards: dict[str, Forward] = {
    'io': _official_io, 'v1': _official_v1, 'flow_encoder': _official_flow_encoder,
    'flow_decoder': _official_flow_decoder}
  return functools.partial(forwards[work.kind], work, modules)


def _preprocessor(work: Work, modules: peer_work.Official) -> Any:
  return modules.io_processors.ImagePreprocessor(
    prep_type='pixels', spatial_downsample=1, position_encoding_type='fourier',
    fourier_position_encoding_kwargs={'num_bands': work.num_bands, 'max_resolution': (work.size, work.size)})


def _official_io(work: Work, modules: peer_work.Official, image: jax.Array) -> jax.Array:
  perceiver = modules.perceiver
  encoder = perceiver.PerceiverEncoder(
    num_self_attends_per_block=work.num_layers, num_blocks=work.num_blocks, z_index_dim=work.num_latents,
    num_z_channels=work.latent_channels, num_cross_attend_heads=1, num_self_attend_heads=work.num_heads)
  decoder = perceiver.ClassificationDecoder(
    work.num_classes, num_z_channels=work.latent_channels, use_query_residual=True, position_encoding_type='trainable',
    trainable_position_encoding_kwargs={'num_channels': work.latent_channels, 'init_scale': 0.02})
  model = perceiver.Perceiver(encoder, decoder, input_preprocessor=_preprocessor(work, modules))
  return model(image, is_training=work.is_step)


def _official_v1(work: Work, modules: peer_work.Official, image: jax.Array) -> jax.Array:
  """The authors published no model of the first paper; these are their modules, put together as it says."""
  perceiver = modules.perceiver
  inputs, *_ = _preprocessor(work, modules)(image, is_training=work.is_step)
  latents = modules.position_encoding.TrainablePositionEncoding(
    index_dim=work.num_latents, num_channels=work.latent_channels)(batch_size=work.batch)
  cross = [perceiver.CrossAttention(num_heads=1) for _ in range(min(2, work.num_blocks))]
  layers = [perceiver.SelfAttention(num_heads=work.num_heads, widening_factor=1) for _ in range(work.num_layers)]
  for block in range(work.num_blocks):
    latents = cross[min(block, 1)](latents, inputs, is_training=work.is_step)
    for layer in layers:
      latents = layer(latents, is_training=work.is_step)
  return hk.Linear(work.num_classes)(jnp.mean(latents, axis=1))


def _official_flow_encoder(work: Work, modules: peer_work.Official, features: jax.Array) -> jax.Array:
  latents = modules.position_encoding.TrainablePositionEncoding(
    index_dim=work.num_flow_latents, num_channels=work.flow_latent_channels)(batch_size=work.batch)
  attend = modules.perceiver.CrossAttention(num_heads=1)
  return attend(latents, _joined(work, modules, features), is_training=work.is_step)


def _official_flow_decoder(
  work: Work, modules: peer_work.Official, features: jax.Array, latents: jax.Array,
) -> jax.Array:
  attend = modules.perceiver.CrossAttention(num_heads=1, use_query_residual=False)
  answers = attend(_joined(work, modules, features), latents, is_training=work.is_step)
  return hk.Linear(2)(answers)


def _joined(work: Work, modules: peer_work.Official, features: jax.Array) -> jax.Array:
  encode = modules.position_encoding.FourierPositionEncoding(
    index_dims=work.flow_size, num_bands=work.num_bands, max_resolution=work.flow_size)
  return jnp.concatenate([features, encode(batch_size=work.batch)], axis=-1)
