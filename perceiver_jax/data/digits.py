"""scikit-learn's handwritten digits: 1,797 images of 8 x 8 pixels in ten classes. They come in its wheel: no download.

One record, `load(config, 'train')[0]`, its pixels in hexadecimal (.. is 00):

  .. .. .. 20 ff ff 20 ..
  .. .. .. 40 ff ff 20 ..
  .. 10 40 bf ff bf .. ..
  .. 70 ff ff ff bf .. ..     label 1
  .. .. 30 9f ff df .. ..     name  digits/21
  .. .. .. 80 ff bf .. ..
  .. .. .. 60 ff ff 20 ..
  .. .. .. 20 bf ef 40 ..

  key     shape       dtype    unit         range
  image   [8, 8, 1]   uint8    brightness   0 (paper) .. 255 (ink); the set's 0 .. 16, stretched
  label   []          int32    class        0 .. 9, the digit

The split is 1,259 / 179 / 359 into train, validation and test: stratified, and always the same.
"""

import cv2
import numpy as np
from ml_collections import ConfigDict

from perceiver_jax import types
from perceiver_jax.data.dataset import ArraySource, Dataset, choose, stratified_split
from perceiver_jax.data.images import view
from perceiver_jax.data.labelled_images import of_images

CLASS_NAMES = [str(digit) for digit in range(10)]


def load(config: ConfigDict, split: str, *, is_training: bool) -> Dataset:
  """Returns 'train', 'validation' or 'test'; raises UserError for another split, or another number of classes."""
  change = augment if is_training else lambda image, _: view(image, config)
  return of_images(records(config, split), config, CLASS_NAMES, change)


def records(config: ConfigDict, split: str) -> ArraySource:
  """Returns the digits of a split. Raises UserError as `load` does."""
  if config.num_classes != len(CLASS_NAMES):
    raise types.UserError(f'digits has 10 classes, not {config.num_classes}: set --config.data.num_classes=10.')
  from sklearn import datasets  # not needed to look at a person's digits

  digits = datasets.load_digits()
  images = np.round(digits.images[..., None] * (255 / 16)).astype(np.uint8)
  labels = digits.target.astype(np.int32)
  names = [f'digits/{index}' for index in range(len(images))]
  indices = choose(stratified_split(labels, names, CLASS_NAMES), split)
  return ArraySource(images[indices], labels[indices], [names[index] for index in indices])


def augment(image: np.ndarray, random: np.random.Generator) -> np.ndarray:
  """Returns the digit a little shifted (at most 0.7 px), turned (10 degrees) and scaled (10 %); never flipped.

  Interpolation is bicubic: strokes are one or two pixels wide, and bilinear leaves them blurred as no real digit is.

  Args:
    image: [H, W, 1] uint8.
    random: decides how.
  """
  right, down, turn, growth = random.uniform(-1, 1, 4)
  height, width, _ = image.shape
  affine = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), 10 * turn, 1 + 0.1 * growth)
  affine[:, 2] += 0.7 * right, 0.7 * down
  warped = cv2.warpAffine(image, affine, (width, height), flags=cv2.INTER_CUBIC)
  return warped.reshape(image.shape)
