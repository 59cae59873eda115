"""What an evaluation sees, against TensorFlow's own resizing of the same pixels."""

from __future__ import annotations

import os
import subprocess

import numpy as np
import pytest

from perceiver_jax.data.augmentation import central_crop

# The authors' crop, 2107.14795's code: float32, not cut off, of {name: uint8 [H, W, C]}.
SCRIPT = """
import sys
import numpy as np
import tensorflow as tf

def crop(image):
  side = int(224 / 256 * min(image.shape[:2]))
  top, left = ((length - side + 1) // 2 for length in image.shape[:2])
  return tf.image.resize(image[top:top + side, left:left + side], [224, 224], tf.image.ResizeMethod.BICUBIC).numpy()

with np.load(sys.argv[1]) as images:
  np.savez(sys.argv[2], **{name: crop(images[name]) for name in images})
"""


@pytest.fixture(scope='module')
def crops(tmp_path_factory):
  """[(ours, TensorFlow's)]: of noise, the hardest there is, smaller and larger than the model's pictures, and odd."""
  folder = tmp_path_factory.mktemp('crops')
  random = np.random.default_rng(0)
  sizes = {'photo': (375, 500), 'tall': (701, 333), 'small': (97, 120), 'exact': (256, 256), 'odd': (255, 301)}
  images = {name: random.integers(0, 256, (*size, 3), dtype=np.uint8) for name, size in sizes.items()}
  np.savez(folder / 'images.npz', **images)
  python = os.environ['PERCEIVER_TF_PYTHON']
  subprocess.run([python, '-c', SCRIPT, folder / 'images.npz', folder / 'crops.npz'], check=True)
  with np.load(folder / 'crops.npz') as found:
    return [(central_crop(images[name], 224).astype(np.float32), found[name]) for name in images]


def test_the_central_crop_is_within_a_level_of_tensorflows_where_that_is_a_level(crops):
  for ours, theirs in crops:
    assert np.abs(ours - theirs.clip(0, 255)).max() <= 1
    assert np.abs(ours - theirs.clip(0, 255)).mean() < 0.3  # rounding alone makes 0.25


def test_what_tensorflow_leaves_beyond_black_and_white_is_cut_off(crops):
  assert any((theirs < -10).any() and (theirs > 265).any() for _, theirs in crops)
  for ours, theirs in crops:
    assert (ours[theirs < 0] == 0).all() and (ours[theirs > 255] == 255).all()
