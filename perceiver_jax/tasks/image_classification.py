"""Classifies images (2103.03206, section 4.1; 2107.14795, appendix A).

  image [B, H, W, C] -> image_inputs [B, M, F + P] -> latents [B, N, D] -> logits [B, E]

One trained query decodes the latents (Perceiver IO), or their mean is projected (Perceiver). The papers' baselines go
another way, with the same data, loss and loop:

  image [B, H, W, C] -> pixel_grid [B, H, W, C + P] -> logits [B, E]

With data.mixing, training sees mixtures of two pictures, and so of two labels:

  image, partner [B, H, W, C] -> half_and_half -> image [B, H, W, C], ratio [B]
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from perceiver_jax import losses, metrics
from perceiver_jax.adapters.image import image_inputs, normalised
from perceiver_jax.adapters.mixing import half_and_half
from perceiver_jax.baselines import BACKBONES
from perceiver_jax.baselines.pixels import pixel_grid
from perceiver_jax.core.input_array import InputArray
from perceiver_jax.core.perceiver import learned_query, pool
from perceiver_jax.tasks import assembly
from perceiver_jax.types import Batch, Field, History, Mean, Task, UserError


def make(config: ConfigDict) -> Task:
  """Returns the task; raises UserError where keys of the config do not go together."""
  data, model = config.data, config.model
  if model.backbone in BACKBONES and model.stem.kind != 'pixels':
    raise UserError(f'model.backbone={model.backbone!r} reads pixels: it has no stem.kind={model.stem.kind!r}')
  if data.permutation == 'joint' and model.stem.kind not in ('pixels', 'conv1x1'):
    raise UserError(f'data.permutation=joint needs an element for each pixel, not stem.kind={model.stem.kind!r}')
  if data.num_classes is None:
    raise UserError('data.num_classes is not set: how many classes are there? --config.data.num_classes=10')
  return Task(
    inputs={
      'image': Field((data.image_size, data.image_size, data.num_channels), 'uint8'),
      'valid': Field(('elements',), 'uint8', is_optional=True),
    },
    targets={'label': Field((), 'int32', bound=data.num_classes)},
    forward=functools.partial(_forward, config),
    measure=functools.partial(_measure, config),
    dataset=functools.partial(_dataset, config),
    draw=functools.partial(_draw, config),
  )


def _dataset(config: ConfigDict, split: str, *, is_training: bool) -> Any:
  from perceiver_jax.data.labelled_images import load

  return load(config.data, split, is_training=is_training)


def _forward(config: ConfigDict, batch: Batch, *, is_training: bool, capture: bool = False) -> dict[str, Any]:
  """Computes {'logits': [B, E]}, and 'captured' if asked for; {} there for a baseline.

  `batch['valid']` [B, M] may mask the elements of a Perceiver. Training on pairs (data/labelled_images.py), the logits
  are those of mixtures, and 'ratio' [B], from 0 to 1, is how much of `batch['image']` is left in each.
  """
  data, model = config.data, config.model
  order = assembly.pixel_order(config)
  # To the size that it was trained on.
  is_bound = order is not None or model.position.kind == 'learned' or model.backbone == 'vit'
  sides = (data.image_size, data.image_size) if is_bound else ('height', 'width')
  image = assembly.entry(batch, 'image', *sides, data.num_channels)
  outputs: dict[str, Any] = {}
  captured: dict[str, Any] = {}
  if is_training and 'partner' in batch:
    image, partner = (normalised(x, model.stem.normalisation) for x in (image, batch['partner']))
    image, outputs['ratio'] = half_and_half(image, partner, batch['key'], batch['place'])
  if model.backbone in BACKBONES:
    if 'valid' in batch:
      raise UserError(f'model.backbone={model.backbone!r} reads whole images: it can leave out no element by `valid`')
    pixels = pixel_grid(image, model, order=order)
    outputs['logits'] = BACKBONES[model.backbone](pixels, data.num_classes, model, is_training=is_training)
  else:
    inputs = image_inputs(
      image, model.stem, model.position, is_training=is_training, order=order, valid=batch.get('valid'))
    outputs['logits'], captured = _perceiver(config, inputs, is_training, capture)
  return {**outputs, 'captured': captured} if capture else outputs


def _perceiver(
  config: ConfigDict, inputs: InputArray, is_training: bool, capture: bool,
) -> tuple[jax.Array, dict[str, Any]]:
  """Returns logits [B, E], and what was captured."""
  model, num_classes = config.model, config.data.num_classes
  latents, captured = assembly.read(config, inputs, is_training=is_training, capture=capture)
  if model.head == 'pool':
    return pool(latents, num_classes), captured
  query = learned_query(1, model.query_channels, latents.shape[0])
  answers, weights = assembly.decoder(config, num_classes)(query, latents, is_training=is_training, capture=capture)
  return answers[:, 0], {**captured, 'decoder': weights}


def _measure(config: ConfigDict, outputs: dict[str, Any], batch: Batch) -> dict[str, Mean]:
  """Computes the cross-entropy, the accuracy and, of more than 10 classes, the top-5 accuracy.

  The loss of a mixture is that of both labels, in the ratio of its pictures: the cross-entropy is linear in the target.
  Its accuracy ignores the partner's label, as in the authors' code: training accuracy is then low.
  """
  logits, label, mask = outputs['logits'], batch['label'], batch['mask']
  entropy = functools.partial(losses.softmax_cross_entropy, logits, label_smoothing=config.label_smoothing)
  loss: Mean
  if 'ratio' in outputs:
    own = mask * outputs['ratio']
    (one, _), (other, _) = entropy(label, own), entropy(batch['partner_label'], mask - own)
    loss = one + other, jnp.sum(mask)
  else:
    loss = entropy(label, mask)
  accuracy = functools.partial(metrics.top_k_accuracy, logits, label, mask)
  found: dict[str, Mean] = {'loss': loss, 'accuracy': accuracy(k=1)}
  return found if logits.shape[-1] <= 10 else {**found, 'top_5_accuracy': accuracy(k=5)}


def _draw(config: ConfigDict, predict: Callable[..., dict[str, Any]], history: History, path: str) -> None:
  """Draws the curves, some test pictures with what the model says of them, and where a few latents look."""
  from perceiver_jax import visualize
  from perceiver_jax.data import pipeline
  from perceiver_jax.data.permutation import permute_pixels

  dataset = _dataset(config, 'test', is_training=False)
  some = list(itertools.islice(pipeline.batches(dataset, 'test', batch_size=32, is_training=False), 12))
  logits = np.concatenate([predict(batch)['logits'] for batch in some])
  pictures = {name: np.concatenate([batch[name] for batch in some]) for name in some[0]}
  # A map is as large as all latents by all pixels: four pictures are enough.
  captured = predict({name: rows[:4] for name, rows in pictures.items()}, capture=True)['captured']
  real = pictures['mask'] > 0
  # Over heads: [T, B, N, M].
  attention = captured['cross_attends'].mean(axis=2)[:, real[:4]] if 'cross_attends' in captured else None
  if (order := assembly.moved_pixels(config)) is not None:
    places = np.argsort(order)
    pictures['image'] = permute_pixels(pictures['image'], places)
    # A stem makes elements without a place in the picture of pixels that moved alone.
    attention = attention[..., places] if attention is not None and attention.shape[-1] == len(places) else None
  accuracy = history[-1].get('test/accuracy')
  visualize.classification_summary(
    path,
    history=history,
    images=pictures['image'][real],
    labels=pictures['label'][real],
    probabilities=np.asarray(jax.nn.softmax(logits[real])),
    attention=attention,
    class_names=dataset.class_names,
    title=config.data.name if accuracy is None else f'{config.data.name}, test accuracy {accuracy:.1%}',
  )
