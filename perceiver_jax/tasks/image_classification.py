"""Which of `num_classes` things is in the picture? (2103.03206, section 4.1; 2107.14795, appendix A.)

  image [B, H, W, C] -> image_inputs [B, M, F + P] -> latents [B, N, D] -> logits [B, E]

One trained query decodes the latents (Perceiver IO), or their mean is projected (Perceiver). What the papers compare
them with, the baselines, goes another way, with the same data, loss and loop:

  image [B, H, W, C] -> pixel_grid [B, H, W, C + P] -> logits [B, E]

Where data.mixing says so, what trains the model are mixtures of two pictures, and so of two labels:

  image, partner [B, H, W, C] -> half_and_half -> image [B, H, W, C], ratio [B]
"""

from __future__ import annotations

import functools
import importlib
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from perceiver_jax import losses, metrics
from perceiver_jax.adapters.image import image_inputs, normalised
from perceiver_jax.adapters.mixing import half_and_half
from perceiver_jax.baselines.pixels import pixel_grid
from perceiver_jax.baselines.resnet import resnet20, resnet50
from perceiver_jax.baselines.transformer import transformer
from perceiver_jax.baselines.vit import vit
from perceiver_jax.core.input_array import InputArray
from perceiver_jax.core.perceiver import learned_query, pool
from perceiver_jax.tasks import assembly
from perceiver_jax.types import Array, Batch, Field, History, Mean, Spec, Task, UserError

BASELINES = ('resnet50', 'resnet20', 'vit', 'transformer')


def make(config: ConfigDict) -> Task:
  """The task; raises UserError where the config asks for something that does not exist."""
  data, model = config.data, config.model
  if model.backbone not in ('perceiver', *BASELINES):
    raise UserError(f"model.backbone is 'perceiver' or one of {', '.join(BASELINES)}, not {model.backbone!r}")
  if model.backbone in BASELINES and model.stem.kind != 'pixels':
    raise UserError(f'model.backbone={model.backbone!r} reads pixels: it has no stem.kind={model.stem.kind!r}')
  if data.permutation not in ('none', 'joint', 'pixels'):
    raise UserError(f"data.permutation is 'none', 'joint' or 'pixels', not {data.permutation!r}")
  if data.mixing not in ('none', 'half_and_half'):
    raise UserError(f"data.mixing is 'none' or 'half_and_half', not {data.mixing!r}")
  if data.permutation == 'joint' and model.stem.kind not in ('pixels', 'conv1x1'):
    raise UserError(f'data.permutation=joint needs an element for each pixel, not stem.kind={model.stem.kind!r}')
  if data.num_classes is None:
    raise UserError('data.num_classes is not set: how many classes are there? --config.data.num_classes=10')
  names = _data_names()
  if data.name not in names:
    raise UserError(f'there is no data set {data.name!r}; perceiver_jax/data has: {", ".join(names)}')
  spec = {
    'image': Field((data.image_size, data.image_size, data.num_channels), 'uint8'),
    'label': Field((), 'int32'),
  }
  load = functools.cache(functools.partial(_load, data))
  return Task(
    spec=spec,
    batches=functools.partial(_batches, config, spec, load),
    forward=functools.partial(_forward, config),
    loss=functools.partial(_loss, config),
    metrics=_metrics,
    draw=functools.partial(_draw, config, spec, load),
  )


def _order(data: ConfigDict) -> np.ndarray | None:
  """[H * W]: which pixel of the picture stands in each place; None where none was moved."""
  from perceiver_jax.data.permutation import permutation

  return None if data.permutation == 'none' else permutation(data.image_size**2)


def _data_names() -> list[str]:
  """The modules that offer records; read, not imported, as inference needs none of them."""
  folder = Path(__file__).parents[1] / 'data'
  return sorted(path.stem for path in folder.glob('*.py') if '\ndef load(' in path.read_text())


def _data_module(data: ConfigDict) -> ModuleType:
  return importlib.import_module(f'perceiver_jax.data.{data.name}')


def _load(data: ConfigDict, split: str) -> Any:
  return _data_module(data).load(data, split)


def _batches(
  config: ConfigDict,
  spec: Spec,
  load: Callable[[str], Any],
  split: str,
  *,
  batch_size: int,
  is_training: bool,
  first_step: int = 0,
  rows: slice = slice(None),
) -> Iterator[Batch]:
  """uint8 images whose pixels stand in permuted places, if the config says so; see data/pipeline.py.

  Where they are to be mixed, a training batch has twice the pictures: see data/pairs.py.
  """
  from perceiver_jax.data import pipeline
  from perceiver_jax.data.pairs import paired, rows_of_records
  from perceiver_jax.data.permutation import permute_pixels

  source, order = load(split), _order(config.data)
  is_mixed = is_training and config.data.mixing != 'none'
  if is_training:
    batches = pipeline.train_batches(
      source, spec, batch_size=2 * batch_size if is_mixed else batch_size, seed=config.seed, first_step=first_step,
      augment=_data_module(config.data).augment, rows=rows_of_records(rows, batch_size) if is_mixed else rows)
  else:
    # Data whose records are not yet as the model takes them has a view.
    view = getattr(_data_module(config.data), 'view', lambda example: example)
    batches = pipeline.eval_batches(source, spec, batch_size=batch_size, view=view, rows=rows)
  if order is not None:
    batches = ({**batch, 'image': permute_pixels(np.asarray(batch['image']), order)} for batch in batches)
  pairs = functools.partial(paired, batch_size=batch_size, seed=config.seed, first_step=first_step, rows=rows)
  yield from pairs(batches) if is_mixed else batches


def _forward(config: ConfigDict, batch: Batch, *, is_training: bool, capture: bool = False) -> dict[str, Any]:
  """{'logits': [B, E]} and, if captured, what the attentions looked at: {'captured': {}} of a baseline.

  `batch['valid']` [B, M] may mask the elements of a Perceiver. Training on pairs (data/pairs.py), the logits are those
  of mixtures, and 'ratio' [B], from 0 to 1, is how much of `batch['image']` is left in each.
  """
  data, model = config.data, config.model
  order = _order(data) if data.permutation == 'joint' else None
  # To the size that it was trained on.
  is_bound = order is not None or model.position.kind == 'learned' or model.backbone == 'vit'
  sides = (data.image_size, data.image_size) if is_bound else ('height', 'width')
  image = assembly.entry(batch, 'image', *sides, data.num_channels)
  outputs: dict[str, Any] = {}
  if is_training and 'partner' in batch:
    image, outputs['ratio'] = _mixed(image, batch, model.stem.normalisation)
  captured: dict[str, jax.Array] = {}
  if model.backbone in BASELINES:
    if 'valid' in batch:
      raise UserError(f'model.backbone={model.backbone!r} reads whole images: it can leave out no element by `valid`')
    logits = _baseline(config, pixel_grid(image, model, order=order), is_training)
  else:
    inputs = image_inputs(
      image, model.stem, model.position, is_training=is_training, order=order, valid=batch.get('valid'))
    logits, captured = _perceiver(config, inputs, is_training, capture)
  outputs['logits'] = logits
  return {**outputs, 'captured': captured} if capture else outputs


def _mixed(image: Array, batch: Batch, normalisation: str) -> tuple[jax.Array, jax.Array]:
  """Normalised mixtures of image and partner, [B, H, W, C], and how much of the image is left in each, [B]."""
  image, partner = normalised(image, normalisation), normalised(batch['partner'], normalisation)
  return half_and_half(image, partner, batch['mixing_key'], batch['place'])


def _baseline(config: ConfigDict, pixels: jax.Array, is_training: bool) -> jax.Array:
  """pixels [B, H, W, C + P] -> logits [B, E]"""
  model, num_classes = config.model, config.data.num_classes
  match model.backbone:
    case 'resnet50':
      return resnet50(pixels, num_classes, is_training=is_training)
    case 'resnet20':
      return resnet20(pixels, num_classes, is_training=is_training)
    case 'vit':
      return vit(pixels, num_classes, model, is_training=is_training)
    case _:
      return transformer(pixels, num_classes, model, is_training=is_training)


def _perceiver(
  config: ConfigDict, inputs: InputArray, is_training: bool, capture: bool,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Logits [B, E], and what was captured."""
  latents, captured = assembly.read(config, inputs, is_training=is_training, capture=capture)
  logits, maps = _head(config, latents, is_training, capture)
  return logits, {**captured, **maps} if capture else {}


def _head(
  config: ConfigDict, latents: jax.Array, is_training: bool, capture: bool,
) -> tuple[jax.Array, dict[str, Any]]:
  model, num_classes = config.model, config.data.num_classes
  if model.head == 'pool':
    return pool(latents, num_classes), {}
  if model.head != 'query':
    raise UserError(f"model.head is 'query' or 'pool', not {model.head!r}")
  decoder = assembly.decoder(config, num_classes)
  query = learned_query(1, model.query_channels, latents.shape[0])
  answers, weights = decoder(query, latents, is_training=is_training, capture=capture)
  return answers[:, 0], {'decoder': weights}


def _loss(config: ConfigDict, outputs: dict[str, Any], batch: Batch) -> Mean:
  """Cross-entropy; of a mixture, against its two labels in the ratio of its pictures, and then smoothed.

  That is the mean of both labels' losses by the ratio, as the cross-entropy is linear in the target.
  """
  loss = functools.partial(losses.softmax_cross_entropy, outputs['logits'], label_smoothing=config.label_smoothing)
  if 'ratio' not in outputs:
    return loss(batch['label'], batch['mask'])
  own = batch['mask'] * outputs['ratio']
  (one, _), (other, _) = loss(batch['label'], own), loss(batch['partner_label'], batch['mask'] - own)
  return one + other, jnp.sum(batch['mask'])


def _metrics(outputs: dict[str, Any], batch: Batch) -> dict[str, Mean]:
  """How often the label is the highest logit, and, of more than 10 classes, among the 5 highest.

  Of a mixture the partner's label does not count, as in the authors' code: training accuracy is then low.
  """
  accuracy = functools.partial(metrics.top_k_accuracy, outputs['logits'], batch['label'], batch['mask'])
  if outputs['logits'].shape[-1] <= 10:
    return {'accuracy': accuracy(k=1)}
  return {'accuracy': accuracy(k=1), 'top_5_accuracy': accuracy(k=5)}


def _draw(
  config: ConfigDict,
  spec: Spec,
  load: Callable[[str], Any],
  predict: Callable[..., dict[str, Any]],
  history: History,
  path: str,
) -> None:
  """The curves, some test pictures with what the model says of them, and where a few latents look."""
  from perceiver_jax import visualize
  from perceiver_jax.data.permutation import permute_pixels

  some = list(itertools.islice(_batches(config, spec, load, 'test', batch_size=32, is_training=False), 12))
  logits = np.concatenate([predict(batch)['logits'] for batch in some])
  pictures = {name: np.concatenate([batch[name] for batch in some]) for name in some[0]}
  # A map is as large as all latents by all pixels: four pictures are enough.
  captured = predict({name: rows[:4] for name, rows in pictures.items()}, capture=True)['captured']
  real = pictures['mask'] > 0
  # Over heads: [T, B, N, M].
  attention = captured['cross_attends'].mean(axis=2)[:, real[:4]] if 'cross_attends' in captured else None
  if (order := _order(config.data)) is not None:
    home = np.argsort(order)
    pictures['image'] = permute_pixels(pictures['image'], home)
    # Of pixels that moved alone, a stem makes elements that have no place in the picture.
    attention = attention[..., home] if attention is not None and attention.shape[-1] == len(home) else None
  visualize.classification_summary(
    path,
    history=history,
    images=pictures['image'][real],
    labels=pictures['label'][real],
    probabilities=np.asarray(jax.nn.softmax(logits[real])),
    attention=attention,
    class_names=load('test').class_names,
    title=f'{config.data.name}, test accuracy {history[-1]["test/accuracy"]:.1%}',
  )
