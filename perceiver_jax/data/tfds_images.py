"""Image classification sets of TensorFlow Datasets, stored as array_record: imagenet2012, cifar10, cifar100 and others.

`--config.data.path=DIR/imagenet2012` is what `make imagenet DATA=DIR` builds, once, by TFDS's own code; docs/data.md
tells how. TFDS also reads it; neither needs TensorFlow for that.

  split        imagenet2012                     others (cifar10)
  train        train[10000:]   1,271,167        train but for what validation takes            45,000
  validation   train[:10000]      10,000        validation; else the first tenth of train,      5,000
                                                10,000 at most
  test         validation         50,000        test, or validation where there is none        10,000

The three never overlap: one trains, one chooses the checkpoint, one gives the figure. TFDS stores records in the order
of a hash, so the first are a random sample. The authors of Perceiver IO train on all of train (2107.14795, appendix
A.1), and hold out its first 10,000 where they choose; imagenet2012's own test has no labels.

One record, `load(config, 'train', is_training=False).source[0]`:

  {'image': [[[201, 187, 162], ...], ...], 'label': 2}         its name: n01484850_1234.JPEG

  key     shape       dtype    unit               range
  image   [H, W, C]   uint8    brightness (RGB)   0 .. 255; as large as it is stored; a rotation noted is not applied
  label   []          int32    class              0 .. num_classes - 1, in the order of class_names

`augment` makes of it what training sees, `view` what evaluation sees.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from ml_collections import ConfigDict

from perceiver_jax.data.augmentation import CENTRAL_SHARE, augment_training, central_crop, resize
from perceiver_jax.data.dataset import Dataset, Example, choose
from perceiver_jax.data.labelled_images import of_images
from perceiver_jax.types import UserError

if TYPE_CHECKING:                           # TFDS is not needed to look at a person's picture
  import tensorflow_datasets as tfds

MAX_HELD_OUT = 10_000                       # of train, for validation, as the authors' code does
MIN_DISTORTED = 64                          # px; RandAugment moves a picture by 50, which leaves nothing of a tiny one
BORDER, GRAY = 4, 128                       # px, brightness: what a tiny picture is shifted in
MAJOR_VERSIONS = {'imagenet2012': '5'}      # as the authors ask for; of other sets any version is read
UNLABELLED = {'imagenet2012': 'test'}


@dataclasses.dataclass(frozen=True)
class TfdsSource:
  """Reads the records of a part of a TFDS split, which starts at `first` there."""

  records: Sequence[dict[str, Any]]         # 'image' is still encoded
  split: str
  first: int
  num_classes: int
  num_channels: int

  def __len__(self) -> int:
    return len(self.records)

  def __getitem__(self, index: int) -> Example:
    record = self._record(index)
    label = record.get('label')
    if not isinstance(record.get('image'), bytes) or not isinstance(label, int):
      raise ValueError('it has no image or label')
    if not 0 <= label < self.num_classes:
      raise UserError(f'{self.name(index)} has the label {label}, of {self.num_classes} classes: '
                      f'is {self.split} a split without labels?')
    return {
      'image': decode(record['image'], self.num_channels),
      'label': np.array(label, np.int32),
    }

  def name(self, index: int) -> str:
    """Returns the name of its file, where the set has kept it; else its place: 'cifar10/train[17]'."""
    try:
      return self._record(index)['file_name'].decode()
    except (ValueError, KeyError, AttributeError):  # a record that cannot be read needs a name most of all
      return f'{self.split}[{self.first + index}]'

  def _record(self, index: int) -> dict[str, Any]:
    try:
      return self.records[index]
    except Exception as error:              # a shard that was cut off, a flipped bit: TFDS trips in many ways
      raise ValueError(str(error).partition('\n')[0]) from error


def load(config: ConfigDict, split: str, *, is_training: bool) -> Dataset:
  """Returns 'train', 'validation' or 'test' of the set at config.path.

  Args:
    config: `path` is DIR/<name>, or DIR/<name>/<version> where there are several; `num_classes`, `num_channels` and
      `image_size` are those of the model.
    split: as above.

  Raises:
    UserError: there is no such set or split, it is no image classification, was stored as tfrecord, is of another
      version or number of classes, or lacks a shard.
  """
  import tensorflow_datasets as tfds

  from perceiver_jax.data import tfds_directory

  if config.num_channels not in (1, 3):
    raise UserError(f'config.data.num_channels is {config.num_channels}; images have 1 (gray) or 3 (RGB).')
  if config.path is None:
    name = {10: 'cifar10', 100: 'cifar100'}.get(config.num_classes, 'imagenet2012')
    build = tfds_directory.how_to_build(pathlib.Path('DIR', name))
    raise UserError('The data set tfds_images needs the directory of a TFDS set: '
                    f'set --config.data.path=DIR/{name}. {build}')
  directory = tfds_directory.find(pathlib.Path(config.path).expanduser())
  builder = tfds_directory.open_directory(directory)
  info = builder.info
  _check_kind(directory, info)
  class_names = _class_names(directory, info, config.num_classes)
  tfds_split, first, stop = choose(_splits(directory, info), split)
  tfds_directory.check_files(directory, info, tfds_split)
  records = builder.as_data_source(
    f'{tfds_split}[{first}:{stop}]', decoders={'image': tfds.decode.SkipDecoding()})
  source = TfdsSource(records, f'{info.name}/{tfds_split}', first, len(class_names), config.num_channels)
  size = config.image_size
  change = (lambda image, random: augment(image, size, random)) if is_training else lambda image, _: view(image, config)
  return of_images(source, config, class_names, change)


def augment(image: np.ndarray, size: int, random: np.random.Generator) -> np.ndarray:
  """Returns a random part of an image [H, W, C], perhaps mirrored, then by RandAugment: [size, size, C].

  A tiny picture, a tenth of which shows little, is shifted by up to 4 px, perhaps mirrored, and no more.
  """
  return resize(_shifted(image, random), size) if _is_tiny(image) else augment_training(image, size, random)


def view(image: np.ndarray, config: ConfigDict) -> np.ndarray:
  """Returns the central part of an image [H, W, C], or all of a tiny one, at the size of the config's `data`."""
  return central_crop(image, config.image_size, 1.0 if _is_tiny(image) else CENTRAL_SHARE)


def decode(data: bytes, num_channels: int) -> np.ndarray:
  """Returns an encoded image's pixels, uint8 [H, W, num_channels], gray or RGB; raises ValueError if it is broken."""
  flags = cv2.IMREAD_COLOR_RGB if num_channels == 3 else cv2.IMREAD_GRAYSCALE
  try:
    image = cv2.imdecode(np.frombuffer(data, np.uint8), flags | cv2.IMREAD_IGNORE_ORIENTATION)
  except cv2.error as error:                # an empty file, or more pixels than perceiver_jax.data allows
    raise ValueError(f'OpenCV refuses it: {error.err}') from error
  if image is None:
    raise ValueError('it is broken, or no image')
  return image.reshape(*image.shape[:2], num_channels)


def _is_tiny(image: np.ndarray) -> bool:
  return min(image.shape[:2]) < MIN_DISTORTED


def _shifted(image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
  """Returns [H, W, C] out of a random place in a gray border, perhaps mirrored (1512.03385, section 4.2)."""
  height, width, _ = image.shape
  bordered = np.pad(image, ((BORDER, BORDER), (BORDER, BORDER), (0, 0)), constant_values=GRAY)
  top, left = generator.integers(2 * BORDER + 1, size=2)
  part = bordered[top:top + height, left:left + width]
  return part[:, ::-1] if generator.integers(2) else part


def _check_kind(directory: pathlib.Path, info: tfds.core.DatasetInfo) -> None:
  """Raises UserError for what is no image classification, or has another version or format than is read here."""
  import tensorflow_datasets as tfds

  from perceiver_jax.data import tfds_directory

  major = MAJOR_VERSIONS.get(info.name)
  if major and str(info.version).partition('.')[0] != major:
    raise UserError(f'{directory} is version {info.version} of {info.name}; {major}.*.* is needed. '
                    f'{tfds_directory.how_to_build(directory.parent.parent / info.name)}')
  if info.file_format != tfds.core.FileFormat.ARRAY_RECORD:
    raise UserError(f'{directory} is stored as {info.file_format.value}; array_record is needed. To convert it: '
                    f'python -m perceiver_jax prepare_records {directory} ANOTHER_DIR/{info.name}/{info.version}')
  kinds = {key: type(feature) for key, feature in dict(info.features or {}).items()}
  if (kinds.get('image'), kinds.get('label')) != (tfds.features.Image, tfds.features.ClassLabel):
    shown = ', '.join(f'{key} ({kind.__name__})' for key, kind in sorted(kinds.items()))
    raise UserError(f'{directory} is no image classification: it has {shown or "no features"}; '
                    'it needs image (Image) and label (ClassLabel).')


def _class_names(directory: pathlib.Path, info: tfds.core.DatasetInfo, num_classes: int) -> list[str]:
  names = info.features['label'].names or []
  if len(names) != num_classes:
    raise UserError(f'config.data.num_classes is {num_classes}, but {directory} has {len(names)} classes: '
                    f'set --config.data.num_classes={len(names)}.')
  return names


def _splits(directory: pathlib.Path, info: tfds.core.DatasetInfo) -> dict[str, tuple[str, int, int]]:
  """Returns {split: (the TFDS split it comes from, where it starts there, where it stops)}."""
  sizes = {name: split.num_examples for name, split in info.splits.items()
           if split.num_examples and name != UNLABELLED.get(info.name)}
  if 'train' not in sizes or not {'validation', 'test'} & set(sizes):
    raise UserError(f'{directory} has the splits {", ".join(sizes) or "none"}; '
                    'it needs train, and validation or test.')
  if {'validation', 'test'} <= set(sizes):
    return {split: (split, 0, sizes[split]) for split in ('train', 'validation', 'test')}
  if info.disable_shuffling:
    raise UserError(f'{directory} has no third split, and its records lie in the order of their source, not mixed: '
                    'no part of train can stand for the whole.')
  test = 'test' if 'test' in sizes else 'validation'
  num_held_out = min(MAX_HELD_OUT, sizes['train'] // 10)
  if not num_held_out:
    raise UserError(f'{directory} has no third split, and {sizes["train"]} records in train: '
                    'it takes 10 to set a tenth of them aside.')
  return {'train': ('train', num_held_out, sizes['train']), 'validation': ('train', 0, num_held_out),
          'test': (test, 0, sizes[test])}
