"""Makes a data set of any labelled images: `config.data.name` says which, and pixels may be permuted, pictures mixed.

Every module of images offers `view(image, config) -> image`, which predict calls too, and
`load(config, split, *, is_training) -> Dataset`, whose examples are

  key     shape       dtype    unit         range
  image   [H, W, C]   uint8    brightness   0 .. 255; H = W = config.image_size, C = config.num_channels
  label   []          int32    class        0 .. config.num_classes - 1

Where config.mixing is not 'none', an example of training is made of two records (adapters/mixing.py mixes them):

  partner        as `image`   the other picture
  partner_label  as `label`   its label
  place          []    int32  0 or 1, in turn: which of the two ways to mix
"""

from __future__ import annotations

import functools
import importlib
import pathlib
from collections.abc import Callable, Sequence
from types import ModuleType

import numpy as np
from ml_collections import ConfigDict

from perceiver_jax.data.dataset import Dataset, Example, Source
from perceiver_jax.data.files import with_channels
from perceiver_jax.data.labels import class_names
from perceiver_jax.data.permutation import permutation, permute_pixels
from perceiver_jax.types import Field, Spec, UserError


def load(config: ConfigDict, split: str, *, is_training: bool) -> Dataset:
  """Returns a split of the images that `config`, the `data` of a config, describes. Raises UserError."""
  dataset = _module(config).load(config, split, is_training=is_training)
  if names := class_names(config):
    dataset = dataset._replace(class_names=names)
  if config.permutation != 'none':
    dataset = permuted(dataset, permutation(config.image_size**2))
  return mixed(dataset) if is_training and config.mixing != 'none' else dataset


def view(image: np.ndarray, config: ConfigDict) -> np.ndarray:
  """Returns a person's image [H, W, 1, 3 or 4] uint8 as evaluation sees those of the data set `config.name`."""
  seen = _module(config).view(with_channels(image, config.num_channels), config)
  return seen if config.permutation == 'none' else permute_pixels(seen, permutation(config.image_size**2))


def _module(config: ConfigDict) -> ModuleType:
  if config.name not in _offered():
    raise UserError(f'there is no data set {config.name!r}; perceiver_jax/data has: {", ".join(_offered())}')
  return importlib.import_module(f'perceiver_jax.data.{config.name}')


@functools.cache                            # asked for with every picture of predict
def _offered() -> list[str]:
  """Returns the names of the modules of images."""
  return [path.stem for path in sorted(pathlib.Path(__file__).parent.glob('*.py'))
          if '\ndef load(' in path.read_text() and path.stem != 'labelled_images']


def image_spec(config: ConfigDict) -> Spec:
  """Returns the spec of one example."""
  return {
    'image': Field((config.image_size, config.image_size, config.num_channels), 'uint8'),
    'label': Field((), 'int32', bound=config.num_classes),
  }


def of_images(
  source: Source, config: ConfigDict, class_names: Sequence[str], change: Callable[..., np.ndarray],
) -> Dataset:
  """Returns the data set of a source of {'image', 'label'}.

  Args:
    source: the records.
    config: the config's `data`.
    class_names: of all classes, in order.
    change: (image, random) -> the image as the model takes it.
  """
  def prepare(record: Example, *, random: np.random.Generator, position: int, step: int) -> Example:
    return {**record, 'image': change(record['image'], random)}

  return Dataset(source, image_spec(config), prepare, class_names=class_names)


def permuted(dataset: Dataset, pixels: np.ndarray) -> Dataset:
  """Returns the data set with the pixels of each image moved; pixels [H * W] int64 is a permutation."""
  def prepare(*records: Example, **context: object) -> Example:
    example = dataset.prepare(*records, **context)
    return {**example, 'image': permute_pixels(example['image'], pixels)}

  return dataset._replace(prepare=prepare)


def mixed(dataset: Dataset) -> Dataset:
  """Returns the data set whose examples have a partner, the next record. An epoch takes half as many steps."""
  def prepare(first: Example, second: Example, *, position: int, **context: object) -> Example:
    example = dataset.prepare(first, position=position, **context)
    partner = dataset.prepare(second, position=position, **context)
    return {
      **example, 'partner': partner['image'], 'partner_label': partner['label'],
      'place': np.array(position % 2, np.int32)}

  spec = dataset.spec
  others = {'partner': spec['image'], 'partner_label': spec['label'], 'place': Field((), 'int32', bound=2)}
  return dataset._replace(spec={**spec, **others}, prepare=prepare, records_per_example=2)
