"""Image classification sets of TensorFlow Datasets, stored as array_record: imagenet2012, cifar10, cifar100 and others.

`--config.data.path=DIR/imagenet2012` is what `make imagenet DATA=DIR` builds, once, by TFDS's own code; docs/data.md
tells how. Nothing here needs TensorFlow, nor TFDS: that would add some 200 MB (pyarrow alone is 170) to read a few JSON
files, and records that array_record, which Grain brings, reads by itself.

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
import json
import pathlib
import re
import resource
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from array_record.python.array_record_data_source import ArrayRecordDataSource
from ml_collections import ConfigDict

from perceiver_jax.data.augmentation import CENTRAL_SHARE, augment_training, central_crop, resize
from perceiver_jax.data.build import TARS
from perceiver_jax.data.dataset import Dataset, Example, choose
from perceiver_jax.data.images import decode
from perceiver_jax.data.labelled_images import of_images
from perceiver_jax.data.tf_example import parse
from perceiver_jax.types import UserError

MAX_HELD_OUT = 10_000                       # of train, for validation, as the authors' code does
MIN_DISTORTED = 64                          # px; RandAugment moves a picture by 50, which leaves nothing of a tiny one
BORDER, GRAY = 4, 128                       # px, brightness: what a tiny picture is shifted in
MAJOR_VERSIONS = {'imagenet2012': '5'}      # as the authors ask for; of other sets any version is read
UNLABELLED = {'imagenet2012': 'test'}
BLOCK = 2**16                               # bytes; an array_record file that was written to its end is of whole ones
OTHER_FILES = 256                           # that a run has open beside the shards


class Info(NamedTuple):
  """Holds what dataset_info.json says."""

  name: str
  shards: dict[str, list[int]]              # {TFDS split: the number of records in each of its files}
  is_mixed: bool                            # whether the order of the records is that of a hash


@dataclasses.dataclass(frozen=True)
class TfdsSource:
  """A run of records of one TFDS split: `first` is where it starts there."""

  records: ArrayRecordDataSource
  split: str
  first: int
  num_records: int
  num_classes: int
  num_channels: int

  def __len__(self) -> int:
    return self.num_records

  def __getitem__(self, index: int) -> Example:
    data, label = self._features(index, {'image': bytes, 'label': int})
    if not 0 <= label < self.num_classes:
      raise UserError(f'{self.name(index)} has the label {label}, of {self.num_classes} classes: '
                      f'is {self.split} a split without labels?')
    return {
      'image': decode(data, self.num_channels),
      'label': np.array(label, np.int32),
    }

  def name(self, index: int) -> str:
    """The name of its file, where the set has kept it; else its place, as TFDS would write it: 'cifar10/train[17]'."""
    try:
      (name,) = self._features(index, {'file_name': bytes})
      return str(name, 'utf-8')
    except ValueError:                      # also of a record that cannot be read, which needs a name most of all
      return f'{self.split}[{self.first + index}]'

  def _features(self, index: int, kinds: dict[str, type]) -> list[Any]:
    """The value of each; raises ValueError where there is not just one, of its kind."""
    if not 0 <= index < self.num_records:
      raise IndexError(f'{self.split} has {self.num_records} records here, and no {index}')
    try:
      record = self.records[self.first + index]
    except RuntimeError as error:           # a shard that was cut off, a flipped bit: array_record checks its sums
      raise ValueError(str(error).splitlines()[0]) from error
    features = parse(record, kinds)
    lacking = [name for name, kind in kinds.items() if [type(value) for value in features.get(name, ())] != [kind]]
    if lacking:
      raise ValueError(f'it lacks {" and ".join(lacking)}, or has it in another form')
    return [features[name][0] for name in kinds]


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
  if config.num_channels not in (1, 3):
    raise UserError(f'config.data.num_channels is {config.num_channels}; images have 1 (gray) or 3 (RGB).')
  if config.path is None:
    raise UserError('The data set tfds_images needs the directory of a TFDS set: '
                    f'set --config.data.path=DIR/imagenet2012. {_how_to_build(pathlib.Path("DIR/imagenet2012"))}')
  directory = _directory(pathlib.Path(config.path).expanduser())
  info = _read_info(directory)
  _check_features(directory)
  class_names = _class_names(directory, config.num_classes)
  tfds_split, first, stop = choose(_splits(directory, info), split)
  source = TfdsSource(
    _open(directory, info.name, tfds_split, info.shards[tfds_split]), f'{info.name}/{tfds_split}', first, stop - first,
    len(class_names), config.num_channels)
  size = config.image_size
  change = (lambda image, random: augment(image, size, random)) if is_training else (lambda image, _: view(image, size))
  return of_images(source, config, class_names, change)


def augment(image: np.ndarray, size: int, random: np.random.Generator) -> np.ndarray:
  """Returns a random part of an image [H, W, C], perhaps mirrored, then by RandAugment: [size, size, C].

  A tiny picture, a tenth of which shows little, is shifted by up to 4 px, perhaps mirrored, and no more.
  """
  return resize(_shifted(image, random), size) if _is_tiny(image) else augment_training(image, size, random)


def view(image: np.ndarray, size: int) -> np.ndarray:
  """Returns the central part of an image [H, W, C], or all of a tiny one, as evaluation sees it: [size, size, C]."""
  return central_crop(image, size, 1.0 if _is_tiny(image) else CENTRAL_SHARE)


def _is_tiny(image: np.ndarray) -> bool:
  return min(image.shape[:2]) < MIN_DISTORTED


def _shifted(image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
  """Returns [H, W, C] out of a random place in a gray border, perhaps mirrored (1512.03385, section 4.2)."""
  height, width, _ = image.shape
  bordered = np.pad(image, ((BORDER, BORDER), (BORDER, BORDER), (0, 0)), constant_values=GRAY)
  top, left = generator.integers(2 * BORDER + 1, size=2)
  part = bordered[top:top + height, left:left + width]
  return part[:, ::-1] if generator.integers(2) else part


def _directory(path: pathlib.Path) -> pathlib.Path:
  """Returns the version below DIR/<name>; a directory of a version stays."""
  if (path / 'dataset_info.json').is_file():
    return path
  if not path.is_dir():
    raise UserError(f'config.data.path: there is no directory {path}. {_how_to_build(path)}')
  versions = sorted(each for each in path.iterdir()
                    if re.fullmatch(r'\d+\.\d+\.\d+', each.name) and (each / 'dataset_info.json').is_file())
  if len(versions) > 1:
    raise UserError(f'{path} holds {", ".join(each.name for each in versions)}: '
                    f'set --config.data.path to one of them, {versions[-1]} for example.')
  if not versions:
    inside = sorted(each.parent.parent for each in path.glob('*/*/dataset_info.json'))
    if inside:
      raise UserError(f'config.data.path: {path} is not itself a data set of TFDS, but {inside[0]} inside it is one.')
    unfinished = ', '.join(sorted(each.name for each in path.glob('incomplete.*')))
    found = f'only what an interrupted build left: {unfinished}' if unfinished else 'no data set of TFDS'
    built = path / 'imagenet2012' if any((path / tar).exists() for tar in TARS) else path
    raise UserError(f'config.data.path: in {path} there is {found}. {_how_to_build(built)}')
  return versions[0]


def _how_to_build(path: pathlib.Path) -> str:
  """Tells the command that makes DATA/NAME."""
  data = path.parent
  if path.name == 'imagenet2012':
    return f'To build it: put {" and ".join(TARS)} into {data}, then make imagenet DATA={data} (see docs/data.md)'
  return f'To build it: make imagenet NAME={path.name} DATA={data} (see docs/data.md)'


def _read_json(path: pathlib.Path) -> dict[str, Any]:
  try:
    return json.loads(path.read_text())
  except (OSError, ValueError) as error:
    raise UserError(f'{path} cannot be read: {error}. Copy the directory again, whole.') from error


def _read_info(directory: pathlib.Path) -> Info:
  """Raises UserError for another version or format than is read here."""
  info = _read_json(directory / 'dataset_info.json')
  try:
    name, version, file_format = str(info['name']), str(info['version']), info.get('fileFormat', 'tfrecord')
    shards = {split['name']: [int(length) for length in split['shardLengths']] for split in info['splits']}
  except (KeyError, TypeError, ValueError, AttributeError) as error:
    raise UserError(f'{directory / "dataset_info.json"} is not one of TFDS: {error!r}.') from error
  major = MAJOR_VERSIONS.get(name)
  if major and version.partition('.')[0] != major:
    raise UserError(f'{directory} is version {version} of {name}; {major}.*.* is needed. '
                    f'{_how_to_build(directory.parent.parent / name)}')
  if file_format != 'array_record':
    raise UserError(f'{directory} is stored as {file_format}, which TensorFlow alone reads; array_record is needed. '
                    f'{_how_to_build(pathlib.Path("ANOTHER_DIR") / name)}')
  return Info(name, shards, not info.get('disableShuffling'))


def _check_features(directory: pathlib.Path) -> None:
  """Raises UserError for what is no image classification."""
  path = directory / 'features.json'
  try:
    features = _read_json(path).get('featuresDict', {}).get('features', {})
    kinds = {key: feature['pythonClassName'].rpartition('.')[2] for key, feature in features.items()}
  except (KeyError, AttributeError) as error:
    raise UserError(f'{path} is not one of TFDS: {error!r}.') from error
  if (kinds.get('image'), kinds.get('label')) != ('Image', 'ClassLabel'):
    shown = ', '.join(f'{key} ({kind})' for key, kind in sorted(kinds.items()))
    raise UserError(f'{directory} is no image classification: it has {shown or "no features"}; '
                    'it needs image (Image) and label (ClassLabel).')


def _class_names(directory: pathlib.Path, num_classes: int) -> list[str]:
  path = directory / 'label.labels.txt'
  try:
    names = path.read_text().splitlines()
  except (OSError, ValueError) as error:
    raise UserError(f'{path} cannot be read: {error}. Copy the directory again, whole.') from error
  if len(names) != num_classes:
    raise UserError(f'config.data.num_classes is {num_classes}, but {directory} has {len(names)} classes: '
                    f'set --config.data.num_classes={len(names)}.')
  return names


def _splits(directory: pathlib.Path, info: Info) -> dict[str, tuple[str, int, int]]:
  """Returns {split: (the TFDS split it comes from, where it starts there, where it stops)}."""
  sizes = {split: sum(lengths) for split, lengths in info.shards.items()
           if any(lengths) and split != UNLABELLED.get(info.name)}
  if 'train' not in sizes or not {'validation', 'test'} & set(sizes):
    raise UserError(f'{directory} has the splits {", ".join(sizes) or "none"}; '
                    'it needs train, and validation or test.')
  if {'validation', 'test'} <= set(sizes):
    return {split: (split, 0, sizes[split]) for split in ('train', 'validation', 'test')}
  if not info.is_mixed:
    raise UserError(f'{directory} has no third split, and its records lie in the order of their source, not mixed: '
                    'no part of train can stand for the whole.')
  test = 'test' if 'test' in sizes else 'validation'
  num_held_out = min(MAX_HELD_OUT, sizes['train'] // 10)
  if not num_held_out:
    raise UserError(f'{directory} has no third split, and {sizes["train"]} records in train: '
                    'it takes 10 to set a tenth of them aside.')
  return {'train': ('train', num_held_out, sizes['train']), 'validation': ('train', 0, num_held_out),
          'test': (test, 0, sizes[test])}


def _size(path: pathlib.Path) -> int | None:
  """Returns the size of a file [bytes], None where there is none."""
  try:
    return path.stat().st_size
  except OSError:
    return None


def _refuse(directory: pathlib.Path, what: str, files: Sequence[str], num_files: int) -> None:
  """Raises UserError where there are such files."""
  if files:
    others = f' and {len(files) - 1} more of its {num_files} files' if len(files) > 1 else ''
    raise UserError(f'{directory} {what} {files[0]}{others}. Copy the directory again, whole.')


def _open(directory: pathlib.Path, name: str, split: str, lengths: Sequence[int]) -> ArrayRecordDataSource:
  """All records of a TFDS split; no file is opened before a record of it is asked for."""
  files = [f'{name}-{split}.array_record-{shard:05}-of-{len(lengths):05}' for shard in range(len(lengths))]
  sizes = [_size(directory / file) for file in files]
  _refuse(directory, 'lacks', [file for file, size in zip(files, sizes, strict=True) if size is None], len(files))
  cut_off = [file for file, size in zip(files, sizes, strict=True) if not size or size % BLOCK]
  _refuse(directory, 'has only a part of', cut_off, len(files))
  # A reader keeps its file open, and training visits them all: imagenet2012 has as many as a process may often open.
  soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
  wanted = len(files) + OTHER_FILES
  if soft < wanted:
    if hard < wanted:
      raise UserError(f'{split} of {directory} has {len(files)} files, but a process may open {hard}: '
                      f'raise that to {wanted} (ulimit -n {wanted}, by root).')
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
  # Told how many there are, it need not open the files to count.
  return ArrayRecordDataSource([
    f'{directory / file}[0:{length}]' for file, length in zip(files, lengths, strict=True)])
