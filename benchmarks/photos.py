"""Made-up photographs, in the layout in which TensorFlow Datasets stores ImageNet.

Discs that hide one another, of all sizes, with textures of all sizes and a camera's noise: edges, flat parts and detail
are mixed about as in a photograph, so that decoding one costs what a photograph costs.
"""

from __future__ import annotations

import json
import pathlib
import shutil

import cv2
import numpy as np
import tensorflow_datasets as tfds
from array_record.python import array_record_module

from perceiver_jax.data.order import generator

HEIGHT, WIDTH = 375, 500                    # px; the most frequent size in ImageNet
QUALITY = 95                                # of JPEG: makes about 110 kB, the mean of ImageNet's training pictures
NUM_DISCS = 400
MAX_RADIUS = 150                            # px
TEXTURES = (2, 4, 8, 16, 32, 64)            # px, sizes of their grain
SPLITS = ('train', 'validation', 'test')


def photo(seed: int) -> np.ndarray:
  """[HEIGHT, WIDTH, 3] uint8, RGB: a function of the seed."""
  random = generator('photo', seed)
  image = np.full((HEIGHT, WIDTH, 3), 128, np.float32)
  for _ in range(NUM_DISCS):
    radius = min(MAX_RADIUS, 4 / np.sqrt(1 - random.random()))  # as many of each size, by area: there is no scale
    colour = random.normal(118, 60) + random.normal(0, 20, 3)
    centre = random.integers(0, (WIDTH, HEIGHT)).tolist()
    cv2.circle(image, centre, int(radius), colour.tolist(), cv2.FILLED)
  for grain in TEXTURES:
    texture = random.normal(0, 9, (HEIGHT // grain + 1, WIDTH // grain + 1)).astype(np.float32)
    image += cv2.resize(texture, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)[..., None]
  noisy = cv2.GaussianBlur(image, (0, 0), 0.7) + random.normal(0, 8, image.shape)
  return np.rint(noisy).clip(0, 255).astype(np.uint8)


def jpeg(image: np.ndarray) -> bytes:
  """[H, W, 3] uint8, RGB, as a file."""
  return cv2.imencode('.jpg', image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1].tobytes()


def write_set(directory: pathlib.Path, files: list[bytes]) -> None:
  """Writes a set of one class into a new directory: `train`, and `test`, which is the same; `validation` has one."""
  directory.mkdir(parents=True)
  path = {split: directory / f'photos-{split}.array_record-00000-of-00001' for split in SPLITS}
  records = [example(image=data, label=0, file_name=b'photo_%d.JPEG' % i) for i, data in enumerate(files)]
  write_records(path['train'], records)
  write_records(path['validation'], records[:1])
  shutil.copy(path['train'], path['test'])
  sizes = [{'name': split, 'shardLengths': ['1' if split == 'validation' else str(len(files))]} for split in SPLITS]
  tfds.features.FeaturesDict({
    'image': tfds.features.Image(), 'label': tfds.features.ClassLabel(names=['photo']),
    'file_name': tfds.features.Text()}).save_config(directory)
  info = {'name': 'photos', 'version': '1.0.0', 'fileFormat': 'array_record', 'splits': sizes}
  (directory / 'dataset_info.json').write_text(json.dumps(info))


def write_records(path: pathlib.Path, records: list[bytes]) -> None:
  """Writes an array_record file, one record a group, as TFDS has it: each can be read without its neighbours."""
  writer = array_record_module.ArrayRecordWriter(str(path), 'group_size:1')
  for record in records:
    writer.write(record)
  writer.close()


def example(**features: bytes | int) -> bytes:
  """A tf.train.Example, integers being 0 to 127; odd ones too, which TFDS would not write."""
  entries = b''
  for name, value in features.items():
    kind, content = (1, value) if isinstance(value, bytes) else (3, bytes([value]))
    entries += _field(1, _field(1, name.encode()) + _field(2, _field(kind, _field(1, content))))
  return _field(1, entries)


def _field(number: int, content: bytes) -> bytes:
  size, length = len(content), b''
  while size > 127:
    length += bytes([size & 127 | 128])
    size >>= 7
  return bytes([number << 3 | 2]) + length + bytes([size]) + content
