"""scikit-learn's handwritten digits, each somewhere on a larger canvas: what is where must be found, not looked up.

A digit of 8 x 8 pixels is enlarged to 12 x 12 and drawn at any of 81 places of a canvas of 20 x 20. Of digits in one
fixed place even an MLP reads 98 % with all pixels permuted; of these, what knows neighbours has an advantage.

One record, `load(config, 'test')[0]`:

  {'digit': uint8 [8, 8, 1], 'label': 1, 'place': [3, 7], 'size': 20}          its name: digits/21 in place 0

  key     shape       dtype    unit         range
  digit   [8, 8, 1]   uint8    brightness   0 (paper) .. 255 (ink): see perceiver_jax/data/digits.py
  label   []          int32    class        0 .. 9, the digit
  place   [2]         int32    px           0 .. 8, rows above the digit and columns left of it; a function of the name
  size    []          int32    px           the side of the square that the model takes: 20, or fewer by averaging

`view` draws a digit in its place; `augment` in a random one, a little shifted, turned and scaled. Every digit is there
ten times, in as many places, so that an evaluation depends less on the places drawn: 12,590 / 1,790 / 3,590 records of
1,259 / 179 / 359 digits, split as in perceiver_jax/data/digits.py; no digit is in two splits.
"""

import dataclasses

import cv2
import numpy as np
from ml_collections import ConfigDict

from perceiver_jax import types
from perceiver_jax.data import digits
from perceiver_jax.data.dataset import ArraySource, Example
from perceiver_jax.data.order import generator

CANVAS = 20                                 # px
DIGIT = 12                                  # px
NUM_PLACES = CANVAS - DIGIT + 1             # of each axis
REPEATS = 10                                # records of one digit


@dataclasses.dataclass(frozen=True)
class PlacedSource:
  """The digits of one split, each with its place."""

  digits: ArraySource
  size: int

  @property
  def class_names(self) -> list[str]:
    return digits.CLASS_NAMES

  def __len__(self) -> int:
    return REPEATS * len(self.digits)

  def __getitem__(self, index: int) -> Example:
    record = self.digits[index % len(self.digits)]
    return {
      'digit': record['image'],
      'label': record['label'],
      'place': _place(generator('place', self.name(index))),
      'size': np.array(self.size, np.int32),
    }

  def name(self, index: int) -> str:
    repeat, digit = divmod(index, len(self.digits))
    return f'{self.digits.name(digit)} in place {repeat}'


def load(config: ConfigDict, split: str) -> PlacedSource:
  """The records of 'train', 'validation' or 'test'; raises UserError for another split, size or number of classes."""
  if not 1 <= config.image_size <= CANVAS:
    raise types.UserError(f'placed_digits are drawn on {CANVAS} x {CANVAS} pixels, or fewer by averaging, not '
                          f'{config.image_size}: set --config.data.image_size={CANVAS}.')
  return PlacedSource(digits.load(config, split), config.image_size)


def augment(example: Example, generator: np.random.Generator) -> Example:
  """The digit, changed as digits.augment does, in a random place: 'image' [size, size, 1] uint8; the rest stays."""
  moved = {**example, 'place': _place(generator)}
  digit = digits.augment({'image': example['digit']}, generator)['image']
  return view({**moved, 'digit': digit})


def view(example: Example) -> Example:
  """The digit in its place: 'image' [size, size, 1] uint8; the rest stays."""
  row, column = example['place']
  canvas = np.zeros((CANVAS, CANVAS), np.uint8)
  canvas[row:row + DIGIT, column:column + DIGIT] = cv2.resize(
    example['digit'], (DIGIT, DIGIT), interpolation=cv2.INTER_LINEAR)
  size = int(example['size'])
  return {**example, 'image': cv2.resize(canvas, (size, size), interpolation=cv2.INTER_AREA)[..., None]}


def _place(generator: np.random.Generator) -> np.ndarray:
  return generator.integers(0, NUM_PLACES, 2, dtype=np.int32)
