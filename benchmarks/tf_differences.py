"""What TensorFlow makes of given pictures, for data_differences to compare with ours.

  TF_PYTHON benchmarks/tf_differences.py INPUT.npz OUTPUT.npz     data_differences.py tells what is in them
"""

from __future__ import annotations

import sys

import numpy as np
import tensorflow as tf
import tf_data

NUM_BOXES = 20_000


def boxes(height: int, width: int) -> np.ndarray:
  """[NUM_BOXES, 2]: heights and widths of parts as the authors' code draws them."""
  whole = tf.constant([[[0.0, 0.0, 1.0, 1.0]]])

  @tf.function
  def draw(unused: tf.Tensor) -> tf.Tensor:
    _, size, _ = tf.image.sample_distorted_bounding_box(
      [height, width, 3], whole, min_object_covered=0.1, aspect_ratio_range=(3 / 4, 4 / 3), area_range=(0.08, 1.0),
      max_attempts=10, use_image_if_no_bounding_boxes=True, seed=1)
    return size[:2]

  return tf.map_fn(draw, tf.range(NUM_BOXES), fn_output_signature=tf.int32).numpy()


def main(source: str, target: str) -> None:
  tf.random.set_seed(0)
  given, found = np.load(source), {}
  for name in given.files:
    kind, _, rest = name.partition('/')
    if kind == 'file':
      for method, dct in (('', 'default'), ('INTEGER_ACCURATE', 'accurate')):
        found[f'{dct}/{rest}'] = tf.image.decode_jpeg(given[name].tobytes(), channels=3, dct_method=method).numpy()
    elif kind == 'part':
      resized = tf.image.resize(given[name], [tf_data.SIZE, tf_data.SIZE], tf.image.ResizeMethod.BICUBIC)
      found[f'resized/{rest}'] = resized.numpy()
    elif kind == 'picture':
      for op, function in tf_data.OPS.items():
        found[f'{op}/{rest}'] = function(tf.constant(given[name])).numpy()
  found['boxes'] = boxes(*given['shape'].tolist())
  np.savez(target, **found)


if __name__ == '__main__':
  main(*sys.argv[1:])
