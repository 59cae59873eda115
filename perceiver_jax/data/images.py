"""Your own images: point `--config.data.path` at a folder or an `.npz` file.

  ROOT/<class>/<any name>.jpg                            split 70 / 10 / 20 here (see source.py)
  ROOT/{train,validation,test}/<class>/<any name>.jpg    split by you
  FILE.npz    images uint8 [N, H, W] or [N, H, W, C], labels integers [N], 0 .. num_classes - 1; split here

Classes are numbered in the alphabetical order of their folders; names that start with a dot are left out. Every image
is cut to its central square and resized. Pixels are taken as stored: a rotation noted by a camera is not applied.

One record, `load(config, 'train', is_training=False).source[0]`, of photographs with image_size 64 and num_channels 3:

  {'image': [[[201, 187, 162], [203, 188, 160], ...], ...], 'label': 2}     its name: photos/cat/0017.jpg

  key     shape            dtype    unit               range
  image   [size, size, C]  uint8    brightness (RGB)   0 .. 255; C = num_channels, 1 = gray
  label   []               int32    class              0 .. num_classes - 1
"""

import dataclasses
import os
import pathlib
import zipfile
import zlib
from collections.abc import Sequence

import cv2
import numpy as np
from ml_collections import ConfigDict

from perceiver_jax import types
from perceiver_jax.data.dataset import SPLITS, ArraySource, Dataset, Example, choose, stratified_split
from perceiver_jax.data.labelled_images import of_images

EXTENSIONS = ('.jpg', '.jpeg', '.png', '.webp', '.bmp')

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
    image = decode(path.read_bytes(), self.num_channels)
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
  if all((root / name).is_dir() for name in SPLITS):
    class_names = _class_names(config, root / 'train')
    splits = {name: _records(root / name, class_names) for name in SPLITS}
  else:
    class_names = _class_names(config, root)
    records = _records(root, class_names)
    names = [path.relative_to(root).as_posix() for path, _ in records]
    indices = stratified_split([label for _, label in records], names, class_names)
    splits = {name: [records[index] for index in indices[name]] for name in SPLITS}
  return FileSource(choose(splits, split), config.image_size, config.num_channels), class_names


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


def _records(root: pathlib.Path, class_names: Sequence[str]) -> list[Record]:
  unknown = sorted(set(_folders(root)) - set(class_names))
  if unknown:
    raise types.UserError(f'{root} has class folders that train has not: {", ".join(unknown)}.')
  records = [(path, label) for label, name in enumerate(class_names) for path in _image_files(root / name)]
  if not records:
    raise types.UserError(f'There are no images ({", ".join(EXTENSIONS)}) in the class folders of {root}.')
  return records


def _image_files(folder: pathlib.Path) -> list[pathlib.Path]:
  if not folder.is_dir():                   # a small validation or test set may lack a class
    return []
  # Not is_file(): a link to a lost file is to be reported, not left out.
  return sorted(pathlib.Path(entry.path) for entry in os.scandir(folder)
                if entry.name.lower().endswith(EXTENSIONS) and not entry.name.startswith('.') and not entry.is_dir())


def _from_npz(config: ConfigDict, path: pathlib.Path, split: str) -> tuple[ArraySource, list[str]]:
  images, labels = _read_npz(path)
  if len(labels) and not 0 <= labels.min() <= labels.max() < config.num_classes:
    raise types.UserError(f'{path}: labels run from {labels.min()} to {labels.max()}, but config.data.num_classes is '
                          f'{config.num_classes}, so they must lie in 0 .. {config.num_classes - 1}.')
  class_names = [str(label) for label in range(config.num_classes)]
  indices = choose(stratified_split(labels, [str(index) for index in range(len(labels))], class_names), split)
  fitted = [fit(_with_channels(images[index], config.num_channels), config.image_size) for index in indices]
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


def _with_channels(image: np.ndarray, num_channels: int) -> np.ndarray:
  if image.shape[-1] == num_channels:
    return image
  code = cv2.COLOR_GRAY2RGB if num_channels == 3 else cv2.COLOR_RGB2GRAY
  return cv2.cvtColor(image, code).reshape(*image.shape[:2], num_channels)
