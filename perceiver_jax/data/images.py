"""Your own images: point `--config.data.path` at a folder or an `.npz` file.

  ROOT/<class>/.../<any name>.jpg                        split 70 / 10 / 20 here (see dataset.py)
  ROOT/{train,validation,test}/<class>/.../<name>.jpg    split by you; SPLIT_FOLDERS has other names that serve
  FILE.npz    images uint8 [N, H, W] or [N, H, W, C], labels integers [N], 0 .. num_classes - 1; split here

Every picture that Pillow reads is used, in folders inside a class's folder too; other files are counted and named, but
for those whose names start with a dot. Without a folder for validation, a tenth of train is set aside; without one for
test, validation is the test. Classes are numbered in the alphabetical order of their folders. A picture is turned
upright, as a camera notes, cut to its central square and resized: `view`.

One record, `load(config, 'train', is_training=False).source[0]`, of photographs with image_size 64 and num_channels 3:

  {'image': [[[201, 187, 162], [203, 188, 160], ...], ...], 'label': 2}     its name: photos/cat/0017.jpg

  key     shape            dtype    unit               range
  image   [size, size, C]  uint8    brightness (RGB)   0 .. 255; C = num_channels, 1 = gray
  label   []               int32    class              0 .. num_classes - 1
"""

import collections
import dataclasses
import os
import pathlib
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence

import cv2
import numpy as np
from absl import logging
from ml_collections import ConfigDict
from PIL import Image

from perceiver_jax import types
from perceiver_jax.data.dataset import SPLITS, ArraySource, Dataset, Example, choose, stratified_split
from perceiver_jax.data.files import read_image, with_channels
from perceiver_jax.data.labelled_images import of_images

SPLIT_FOLDERS = {
  'train': 'train', 'training': 'train', 'validation': 'validation', 'val': 'validation', 'valid': 'validation',
  'dev': 'validation', 'eval': 'validation', 'test': 'test', 'testing': 'test'}
# What Pillow knows by name, but reads only with the help of other programs, or not at all.
_UNREAD = {'BUFR', 'EPS', 'FITS', 'GRIB', 'HDF5', 'MPEG', 'WMF'}

Record = tuple[pathlib.Path, int]           # file, label


@dataclasses.dataclass(frozen=True)
class FileSource:
  """Image files, decoded when asked for."""

  records: Sequence[Record]
  image_size: int
  num_channels: int

  def __len__(self) -> int:
    return len(self.records)

  def __getitem__(self, index: int) -> Example:
    path, label = self.records[index]
    try:
      image = read_image(path, self.num_channels)
    except types.UserError as error:        # one broken file of many ends no training
      raise ValueError(str(error)) from error
    return {'image': fit(image, self.image_size), 'label': np.array(label, np.int32)}

  def name(self, index: int) -> str:
    return str(self.records[index][0])


def load(config: ConfigDict, split: str, *, is_training: bool) -> Dataset:
  """Returns 'train', 'validation' or 'test' of config.path; raises UserError where that cannot be."""
  source, class_names = _open(config, split)
  return of_images(source, config, class_names, augment if is_training else lambda image, _: image)


def _open(config: ConfigDict, split: str) -> tuple[ArraySource | FileSource, list[str]]:
  if config.num_channels not in (1, 3):
    raise types.UserError(f'config.data.num_channels is {config.num_channels}; images have 1 (gray) or 3 (RGB).')
  if config.path is None:
    raise types.UserError('The data set images needs a folder or an .npz file: set --config.data.path=...')
  path = pathlib.Path(config.path).expanduser()
  if path.is_dir():
    return _from_folder(config, path, split)
  if not path.exists():
    raise types.UserError(f'config.data.path: there is no {path}.')
  if path.suffix != '.npz':
    raise types.UserError(f'config.data.path: {path} is neither a folder nor an .npz file.')
  return _from_npz(config, path, split)


def view(image: np.ndarray, config: ConfigDict) -> np.ndarray:
  """Returns the central square of an image [H, W, C] uint8, resized to the `image_size` of the config's `data`."""
  return fit(image, config.image_size)


def augment(image: np.ndarray, random: np.random.Generator) -> np.ndarray:
  """Returns a random square of an image [S, S, C] uint8, 80 to 100 % of its side, resized to the whole.

  It is never flipped: a mirrored letter is another letter, or none.
  """
  size = image.shape[0]
  scale, left, top = random.uniform((0.8, 0, 0), 1)
  # Maps the centre of each output pixel to where it comes from, hence the halves.
  offset = 0.5 * scale - 0.5
  room = size * (1 - scale)
  affine = np.array([[scale, 0, offset + room * left], [0, scale, offset + room * top]])
  flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
  warped = cv2.warpAffine(image, affine, (size, size), flags=flags, borderMode=cv2.BORDER_REPLICATE)
  return warped.reshape(image.shape)


def fit(image: np.ndarray, size: int) -> np.ndarray:
  """Returns the central square of an image, uint8 [H, W, C], resized to [size, size, C]."""
  height, width, channels = image.shape
  side = min(height, width)
  top, left = (height - side) // 2, (width - side) // 2
  # Cut first: a strip of 1 x 30,000 pixels, resized whole, would fill the memory.
  square = image[top:top + side, left:left + side]
  interpolation = cv2.INTER_AREA if side > size else cv2.INTER_LINEAR
  return cv2.resize(square, (size, size), interpolation=interpolation).reshape(size, size, channels)


def _from_folder(config: ConfigDict, root: pathlib.Path, split: str) -> tuple[FileSource, list[str]]:
  folders = _split_folders(root)
  class_names = _class_names(config, folders['train'] if folders else root)
  left_out: collections.Counter[str] = collections.Counter()
  if folders:
    given = {name: _records(folder, class_names, left_out) for name, folder in folders.items()}
    splits = _completed(given, root, class_names)
  else:
    splits = _parted(_records(root, class_names, left_out), root, class_names)
  if split == 'train':                      # once in a run
    _say(root, folders, left_out)
  return FileSource(choose(splits, split), config.image_size, config.num_channels), class_names


def _split_folders(root: pathlib.Path) -> dict[str, pathlib.Path]:
  """Returns {split: folder} where the folders of `root` are splits; {} where they are classes."""
  names = _folders(root)
  folders = {SPLIT_FOLDERS[name.lower()]: root / name for name in names if name.lower() in SPLIT_FOLDERS}
  # A class may be called train.
  if 'train' not in folders or len(folders) < 2 or not _folders(folders['train']):
    return {}
  if len(folders) < len(names):
    raise types.UserError(f'{root} has folders of splits, but {", ".join(names)} are not one for each: '
                          f'rename or move what is no split; there are {", ".join(SPLITS)}.')
  return folders


def _parted(records: list[Record], root: pathlib.Path, class_names: Sequence[str]) -> dict[str, list[Record]]:
  """Returns {split: its records}, 70 / 10 / 20 of each class."""
  names = [path.relative_to(root).as_posix() for path, _ in records]
  indices = stratified_split([label for _, label in records], names, class_names)
  return {name: [records[index] for index in indices[name]] for name in SPLITS}


def _completed(
  splits: Mapping[str, list[Record]], root: pathlib.Path, class_names: Sequence[str],
) -> dict[str, list[Record]]:
  """Returns train, validation and test; where one of the last two is missing, a tenth of train is validation."""
  if {'validation', 'test'} <= set(splits):
    return {name: splits[name] for name in SPLITS}
  parts = _parted(splits['train'], root, class_names)
  test = splits['test'] if 'test' in splits else splits['validation']
  train = sorted(parts['train'] + parts['test'], key=lambda record: (record[1], str(record[0])))
  return {'train': train, 'validation': parts['validation'], 'test': test}


def _say(root: pathlib.Path, folders: Mapping[str, pathlib.Path], left_out: Mapping[str, int]) -> None:
  """Tells what the folders are taken for, and what in them is no picture."""
  if folders and set(SPLITS) != {folder.name for folder in folders.values()}:
    taken = ', '.join(f'{folder.name}/ is {name}' for name, folder in folders.items())
    missing = '' if len(folders) == len(SPLITS) else (
      '; a tenth of train is set aside for validation' + ('' if 'test' in folders else ', and validation is the test'))
    logging.warning('%s: %s%s', root, taken, missing)
  if left_out:
    kinds = ', '.join(f'{count} {suffix or "without a suffix"}' for suffix, count in sorted(left_out.items()))
    logging.warning('%s: %d files are left out, as they are no pictures that can be read: %s',
                    root, sum(left_out.values()), kinds)


def _class_names(config: ConfigDict, root: pathlib.Path) -> list[str]:
  names = _folders(root)
  if len(names) != config.num_classes:
    shown = ', '.join(names[:10]) + (' ...' if len(names) > 10 else '')
    raise types.UserError(
        f'config.data.num_classes is {config.num_classes}, but {root} has {len(names)} class folders: '
        f'{shown or "none"}.\nImages belong in ROOT/<class>/, or in ROOT/{{{",".join(SPLITS)}}}/<class>/.')
  return names


def _folders(root: pathlib.Path) -> list[str]:
  return sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and not entry.name.startswith('.'))


def _records(root: pathlib.Path, class_names: Sequence[str], left_out: collections.Counter[str]) -> list[Record]:
  """Returns the pictures of the class folders, and counts in `left_out`, by suffix, what is none."""
  unknown = sorted(set(_folders(root)) - set(class_names))
  if unknown:
    raise types.UserError(f'{root} has class folders that train has not: {", ".join(unknown)}.')
  suffixes = _suffixes()
  left_out.update(path.suffix.lower() for path in _files(root, is_nested=False))
  records = []
  for label, name in enumerate(class_names):
    for path in sorted(_files(root / name)):
      if path.suffix.lower() in suffixes:
        records.append((path, label))
      else:
        left_out[path.suffix.lower()] += 1
  if not records:
    raise types.UserError(
      f'There are no images (.jpg, .png and others that Pillow reads) in the class folders of {root}.')
  return records


def _files(folder: pathlib.Path, *, is_nested: bool = True) -> Iterator[pathlib.Path]:
  """Yields the files of a folder, and of those inside it, but for hidden ones. A split may lack the folder."""
  for entry in os.scandir(folder) if folder.is_dir() else ():
    if entry.name.startswith('.'):
      continue
    # A link to another folder might lead back. One to a lost file is to be reported, not left out.
    if not entry.is_dir() or (is_nested and entry.is_symlink()):
      yield pathlib.Path(entry.path)
    elif is_nested:
      yield from _files(pathlib.Path(entry.path))


def _suffixes() -> set[str]:
  """Returns those of pictures that Pillow reads: '.jpg' ..."""
  kinds = Image.registered_extensions()
  return {suffix for suffix, kind in kinds.items() if kind in Image.OPEN and kind not in _UNREAD}


def _from_npz(config: ConfigDict, path: pathlib.Path, split: str) -> tuple[ArraySource, list[str]]:
  images, labels = _read_npz(path)
  if len(labels) and not 0 <= labels.min() <= labels.max() < config.num_classes:
    raise types.UserError(f'{path}: labels run from {labels.min()} to {labels.max()}, but config.data.num_classes is '
                          f'{config.num_classes}, so they must lie in 0 .. {config.num_classes - 1}.')
  class_names = [str(label) for label in range(config.num_classes)]
  indices = choose(stratified_split(labels, [str(index) for index in range(len(labels))], class_names), split)
  fitted = [fit(with_channels(images[index], config.num_channels), config.image_size) for index in indices]
  names = [f'{path}[{index}]' for index in indices]
  return ArraySource(np.stack(fitted), labels[indices].astype(np.int32), names), class_names


def _read_npz(path: pathlib.Path) -> tuple[np.ndarray, np.ndarray]:
  """Returns images, uint8 [N, H, W, 1 or 3], and labels, integers [N], as they are in the file."""
  try:
    # Pickled arrays are refused: to load one is to run whatever code it holds.
    with np.load(path, allow_pickle=False) as arrays:
      if not {'images', 'labels'} <= set(arrays):
        raise types.UserError(f'{path} holds {", ".join(arrays) or "nothing"}; it needs the arrays images and labels.')
      images, labels = arrays['images'], arrays['labels']
  except (ValueError, TypeError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
    raise types.UserError(f'{path} cannot be read: {error}') from error
  has_shape = images.ndim == 3 or (images.ndim == 4 and images.shape[-1] in (1, 3))
  if images.dtype != np.uint8 or not has_shape or 0 in images.shape:
    raise types.UserError(f'{path}: images is {images.shape} {images.dtype}; '
                          'it must be uint8, [N, H, W] or [N, H, W, 1 or 3].')
  if labels.dtype.kind not in 'iu' or labels.shape != images.shape[:1]:
    raise types.UserError(f'{path}: labels is {labels.shape} {labels.dtype}; '
                          f'it must be integers, [{len(images)}], one per image.')
  return images.reshape(*images.shape[:3], -1), labels
