"""The authors' ImageNet pipeline in tf.data (2107.14795, appendix A.1, and their code), for data_throughput to measure.

  TF_PYTHON benchmarks/tf_data.py RECORDS BATCH_SIZE     RECORDS: an array_record file of tf.train.Examples

Runs in the environment that has TensorFlow (`make .venv-tf/.requirements`). For each line of stdin, 'training' or
'evaluation', makes one pass over the records, and answers with a line of JSON: how many pictures, in how many seconds
of the processor.

Written for speed: one switch per layer where the authors' code goes through sixteen conditions; what changes nothing at
magnitude 5 is left out; the picture is filled while it is warped, not by a fourth channel; no shuffling; nothing mixed
and nothing normalised, as ours is done on the device.
"""

from __future__ import annotations

import json
import math
import os
import pathlib
import sys
import tempfile
import time
from collections.abc import Callable

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
os.environ.setdefault('CUDA_VISIBLE_DEVICES', '')

import tensorflow as tf
from array_record.python.array_record_data_source import ArrayRecordDataSource

SIZE = 224
CENTRAL_SHARE = 224 / 256
NUM_LAYERS = 4
OUTSIDE = 128


# RandAugment at magnitude 5: uint8 [H, W, 3] -> the same.


def auto_contrast(image: tf.Tensor) -> tf.Tensor:
  # Over rows first: over both axes at once takes several times as long.
  low, high = (tf.cast(reduced(reduced(image, axis=0), axis=0), tf.float32)
               for reduced in (tf.reduce_min, tf.reduce_max))
  # A channel of one level stays as it is.
  scale = tf.where(high > low, 255 / tf.maximum(high - low, 1), 1)
  offset = tf.where(high > low, -low * scale, 0)
  return tf.cast(tf.clip_by_value(tf.cast(image, tf.float32) * scale + offset, 0, 255), tf.uint8)


def equalize(image: tf.Tensor) -> tf.Tensor:
  return tf.stack([_equalized(image[..., channel]) for channel in range(3)], axis=-1)


def _equalized(channel: tf.Tensor) -> tf.Tensor:
  counts = tf.math.bincount(tf.cast(tf.reshape(channel, [-1]), tf.int32), minlength=256)
  last = counts[tf.reduce_max(tf.where(counts > 0))]
  step = (tf.size(channel) - last) // 255
  table = tf.clip_by_value((step // 2 + tf.cumsum(counts, exclusive=True)) // tf.maximum(step, 1), 0, 255)
  return tf.cond(step == 0, lambda: channel, lambda: tf.gather(tf.cast(table, tf.uint8), tf.cast(channel, tf.int32)))


def posterize(image: tf.Tensor) -> tf.Tensor:
  return tf.bitwise.left_shift(tf.bitwise.right_shift(image, 6), 6)


def solarize(image: tf.Tensor) -> tf.Tensor:
  return tf.minimum(image, 255 - image)     # the threshold being 128


def solarize_add(image: tf.Tensor) -> tf.Tensor:
  return image + 55 * tf.cast(image < 128, tf.uint8)  # at most 182: nothing to cut off


def rotate(image: tf.Tensor) -> tf.Tensor:
  angle = _either(math.radians(15))
  cos, sin = tf.cos(angle), tf.sin(angle)
  height, width = (tf.cast(side - 1, tf.float32) / 2 for side in tf.unstack(tf.shape(image)[:2]))
  return _warped(image, [cos, -sin, width - cos * width + sin * height, sin, cos, height - sin * width - cos * height])


def shear_x(image: tf.Tensor) -> tf.Tensor:
  return _warped(image, [1, _either(0.15), 0, 0, 1, 0])


def shear_y(image: tf.Tensor) -> tf.Tensor:
  return _warped(image, [1, 0, 0, _either(0.15), 1, 0])


def translate_x(image: tf.Tensor) -> tf.Tensor:
  return _warped(image, [1, 0, _either(50), 0, 1, 0])


def translate_y(image: tf.Tensor) -> tf.Tensor:
  return _warped(image, [1, 0, 0, 0, 1, _either(50)])


def cutout(image: tf.Tensor) -> tf.Tensor:
  inside = []
  for axis in (0, 1):
    side = tf.shape(image)[axis]
    centre, place = tf.random.uniform([], 0, side, tf.int32), tf.range(side)
    inside.append((place >= centre - 20) & (place < centre + 20))
  return tf.where((inside[0][:, None] & inside[1])[..., None], tf.constant(OUTSIDE, tf.uint8), image)


def _either(size: float) -> tf.Tensor:
  return tf.where(tf.random.uniform([]) < 0.5, size, -size)


def _warped(image: tf.Tensor, source: list) -> tf.Tensor:
  transform = tf.stack([*(tf.cast(each, tf.float32) for each in source), 0.0, 0.0])[None]
  return tf.raw_ops.ImageProjectiveTransformV3(
    images=image[None], transforms=transform, output_shape=tf.shape(image)[:2], fill_value=float(OUTSIDE),
    interpolation='NEAREST', fill_mode='CONSTANT')[0]


OPS: dict[str, Callable[[tf.Tensor], tf.Tensor]] = {
  'auto_contrast': auto_contrast, 'equalize': equalize, 'invert': lambda image: 255 - image, 'rotate': rotate,
  'posterize': posterize, 'solarize': solarize, 'color': tf.identity, 'contrast': tf.identity,
  'brightness': tf.identity, 'sharpness': tf.identity, 'shear_x': shear_x, 'shear_y': shear_y,
  'translate_x': translate_x, 'translate_y': translate_y, 'cutout': cutout, 'solarize_add': solarize_add,
}


# The pipeline.


def training_example(record: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
  """A record -> float32 [SIZE, SIZE, 3], unclamped, and its label."""
  data, label = _parsed(record)
  shape = tf.image.extract_jpeg_shape(data)
  begin, size, _ = tf.image.sample_distorted_bounding_box(
    shape, tf.constant([[[0.0, 0.0, 1.0, 1.0]]]), min_object_covered=0.1, aspect_ratio_range=(3 / 4, 4 / 3),
    area_range=(0.08, 1.0), max_attempts=10, use_image_if_no_bounding_boxes=True)
  box = tf.cond(
    tf.reduce_all(size == shape), lambda: _central_box(shape), lambda: tf.concat([begin[:2], size[:2]], axis=0))
  image = tf.image.random_flip_left_right(tf.image.decode_and_crop_jpeg(data, box, channels=3))
  for _ in range(NUM_LAYERS):
    # Makes graphs of its branches at once, so that each one closes over this layer's picture.
    index = tf.random.uniform([], 0, len(OPS), tf.int32)
    image = tf.switch_case(index, [lambda image=image, op=op: op(image) for op in OPS.values()])
    image.set_shape([None, None, 3])
  return tf.image.resize(image, [SIZE, SIZE], tf.image.ResizeMethod.BICUBIC), label


def evaluation_example(record: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
  data, label = _parsed(record)
  image = tf.image.decode_and_crop_jpeg(data, _central_box(tf.image.extract_jpeg_shape(data)), channels=3)
  return tf.image.resize(image, [SIZE, SIZE], tf.image.ResizeMethod.BICUBIC), label


def _parsed(record: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
  features = {'image': tf.io.FixedLenFeature([], tf.string), 'label': tf.io.FixedLenFeature([], tf.int64)}
  example = tf.io.parse_single_example(record, features)
  return example['image'], example['label']


def _central_box(shape: tf.Tensor) -> tf.Tensor:
  """[top, left, height, width] of [height, width, channels]."""
  side = tf.cast(CENTRAL_SHARE * tf.cast(tf.minimum(shape[0], shape[1]), tf.float32), tf.int32)
  return tf.stack([(shape[0] - side + 1) // 2, (shape[1] - side + 1) // 2, side, side])


def pipeline(records: str, example: Callable, batch_size: int) -> tf.data.Dataset:
  """Batches of a file of TFRecords, made one after the other by the thread that asks for them."""
  options = tf.data.Options()
  options.autotune.enabled = False
  options.threading.private_threadpool_size = 1
  options.threading.max_intra_op_parallelism = 1
  return tf.data.TFRecordDataset(records).map(example).batch(batch_size).with_options(options)


def as_tf_records(array_record: str, directory: str) -> str:
  """The same records in the format that tf.data reads; returns its path."""
  path = str(pathlib.Path(directory) / 'photos.tfrecord')
  source = ArrayRecordDataSource([array_record])
  with tf.io.TFRecordWriter(path) as writer:
    for index in range(len(source)):
      writer.write(source[index])
  return path


def main(array_record: str, batch_size: int) -> None:
  tf.config.threading.set_intra_op_parallelism_threads(1)
  tf.config.threading.set_inter_op_parallelism_threads(1)
  with tempfile.TemporaryDirectory() as directory:
    records = as_tf_records(array_record, directory)
    passes = {kind: pipeline(records, example, batch_size)
              for kind, example in (('training', training_example), ('evaluation', evaluation_example))}
    print(json.dumps({'tensorflow': tf.__version__}), flush=True)
    for line in sys.stdin:
      start = time.process_time()
      num_images = sum(len(labels) for _, labels in passes[line.strip()])
      print(json.dumps({'images': num_images, 'seconds': time.process_time() - start}), flush=True)


if __name__ == '__main__':
  main(sys.argv[1], int(sys.argv[2]))
