"""scikit-learn's handwritten digits, each somewhere on a larger canvas: the position varies, so it cannot be memorised.

A digit of 8 x 8 pixels is enlarged to 12 x 12 and drawn at any of 81 places of a canvas of 20 x 20. Even an MLP reads
98 % of digits in one fixed place with all pixels permuted; here a model that knows neighbours has an advantage.

One record, `load(config, 'test', is_training=False).source[0]`:

  {'digit': uint8 [8, 8, 1], 'label': 1, 'place': [3, 7]}          its name: digits/21 in place 0

  key     shape       dtype    unit         range
  digit   [8, 8, 1]   uint8    brightness   0 (paper) .. 255 (ink): see perceiver_jax/data/digits.py
  label   []          int32    class        0 .. 9, the digit
  place   [2]         int32    px           0 .. 8, rows above the digit and columns left of it; a function of the name

Evaluation draws a digit in its place; training in a random one, a little shifted, turned and scaled. Every digit is
there ten times, in as many places, so that an evaluation depends less on the places drawn: 12,590 / 1,790 / 3,590
records of 1,259 / 179 / 359 digits, split as in perceiver_jax/data/digits.py; no digit is in two splits.
"""

import dataclasses

import cv2
import numpy as np
from ml_collections import ConfigDict

from perceiver_jax import types
from perceiver_jax.data import digits
from perceiver_jax.data.dataset import ArraySource, Dataset, Example
from perceiver_jax.data.images import view as view  # of a person's canvas, for predict
from perceiver_jax.data.labelled_images import image_spec
from perceiver_jax.data.order import generator

CANVAS = 20                                 # px
DIGIT = 12                                  # px
NUM_PLACES = CANVAS - DIGIT + 1             # of each axis
REPEATS = 10                                # records of one digit


@dataclasses.dataclass(frozen=True)
class PlacedSource:
  """Holds the digits of one split, each with its place."""

  digits: ArraySource

  def __len__(self) -> int:
    return REPEATS * len(self.digits)

  def __getitem__(self, index: int) -> Example:
    record = self.digits[index % len(self.digits)]
    return {
      'digit': record['image'],
      'label': record['label'],
      'place': _place(generator('place', self.name(index))),
    }

  def name(self, index: int) -> str:
    repeat, digit = divmod(index, len(self.digits))
    return f'{self.digits.name(digit)} in place {repeat}'


def load(config: ConfigDict, split: str, *, is_training: bool) -> Dataset:
  """Returns 'train', 'validation' or 'test'; raises UserError for another split, size or number of classes."""
  size = config.image_size
  if not 1 <= size <= CANVAS:
    raise types.UserError(f'placed_digits are drawn on {CANVAS} x {CANVAS} pixels, or fewer by averaging, not '
                          f'{size}: set --config.data.image_size={CANVAS}.')

  def prepare(record: Example, *, random: np.random.Generator, position: int, step: int) -> Example:
    digit, place = record['digit'], record['place']
    if is_training:
      place = _place(random)
      digit = digits.augment(digit, random)
    return {'image': draw(digit, place, size), 'label': record['label']}

  source = PlacedSource(digits.records(config, split))
  return Dataset(source, image_spec(config), prepare, class_names=digits.CLASS_NAMES)


def draw(digit: np.ndarray, place: np.ndarray, size: int) -> np.ndarray:
  """Returns a digit [8, 8, 1] at `place` (row, column) of the canvas, at size x size pixels: uint8 [size, size, 1]."""
  row, column = place
  canvas = np.zeros((CANVAS, CANVAS), np.uint8)
  canvas[row:row + DIGIT, column:column + DIGIT] = cv2.resize(digit, (DIGIT, DIGIT), interpolation=cv2.INTER_LINEAR)
  return cv2.resize(canvas, (size, size), interpolation=cv2.INTER_AREA)[..., None]


def _place(generator: np.random.Generator) -> np.ndarray:
  return generator.integers(0, NUM_PLACES, 2, dtype=np.int32)
