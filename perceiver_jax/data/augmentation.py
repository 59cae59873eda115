"""ImageNet pictures as Perceiver IO sees them: cut, flipped, distorted, resized (2107.14795, appendix A.1).

  training    any picture [H, W, C] uint8 -> random part -> mirrored or not -> RandAugment -> [size, size, C] uint8
  evaluation  any picture [H, W, C] uint8 -> the central 224 / 256 of its shorter side -> [size, size, C] uint8

The recipes: Perceiver IO and the original Perceiver train with 4 layers of RandAugment at magnitude 5; 0 layers leave
random parts and mirroring. Mixing pictures needs two of them, and is done in the step: see adapters/mixing.py.

Where the authors' pipeline keeps what bicubic interpolation makes darker than black and lighter than white, pixels
travel as uint8 here, so that is cut off, and fractions are rounded: docs/data.md says by how much.
"""

from __future__ import annotations

import functools
import math

import cv2
import numpy as np
from scipy.sparse import csr_array

from perceiver_jax.data.randaugment import rand_augment
from perceiver_jax.types import UserError

Box = tuple[int, int, int, int]             # top, left, height, width [px]

MAX_ATTEMPTS = 10
MIN_DRAWN_AREA, MIN_AREA = 0.08, 0.1        # of the picture
ASPECTS = (3 / 4, 4 / 3)                    # width / height
CENTRAL_SHARE = 224 / 256                   # of the shorter side


def augment_training(
  image: np.ndarray, size: int, generator: np.random.Generator, *, num_layers: int = 4, magnitude: float = 5,
) -> np.ndarray:
  """A picture as training sees it.

  Args:
    image: [H, W, C] uint8 of any size, RGB where num_layers is not 0; it stays as it is.
    size: side of the result [px].
    generator: decides, with H and W, all that is random.
    num_layers: of RandAugment; 0 for none.
    magnitude: of RandAugment, 0 to 10.

  Returns:
    [size, size, C] uint8.

  Raises:
    UserError: the picture is no such array, or `num_layers` or `magnitude` is out of range.
  """
  if image.ndim != 3 or image.dtype != np.uint8:
    raise UserError(f'a picture to augment is [H, W, C] uint8, not {list(image.shape)} {image.dtype}')
  height, width, channels = image.shape
  if num_layers and channels != 3:
    raise UserError(f'RandAugment takes RGB pictures, and this one is {list(image.shape)}: '
                    'set config.data.num_channels=3, or leave RandAugment out')
  part = _cut(image, random_crop(height, width, generator))
  if generator.integers(2):
    part = cv2.flip(part, 1).reshape(part.shape)
  return resize(rand_augment(part, generator, num_layers=num_layers, magnitude=magnitude), size)


def random_crop(height: int, width: int, generator: np.random.Generator) -> Box:
  """A part of a picture of height x width pixels, as TensorFlow's sample_distorted_bounding_box draws it for ImageNet.

  Up to ten times: an aspect (width / height) is drawn uniformly from 3/4 to 4/3, then a whole height, uniformly from
  that of 8 % of the area to the largest that fits; then the place, uniformly. So it is the side that is uniform, not
  the area: small parts are frequent. A part of less than 10 % is refused, since the 'object' of which a tenth must be
  seen is here the whole picture. The last row, or column, is seen only by parts that span them all: an oddity of
  TensorFlow's, which is kept.

  Returns:
    The box; it lies inside the picture. The central square of 224 / 256 of the shorter side, where all attempts failed
    (such as for a strip) or the part is the whole picture, as in the authors' code.
  """
  for _ in range(MAX_ATTEMPTS):
    aspect = generator.uniform(*ASPECTS)
    # The largest whose width, rounded, is still in the picture; at 0.5 itself Python rounds to the even side.
    highest = min(height, int((width + 0.5 - 1e-7) / aspect))
    lowest = min(highest, round(math.sqrt(MIN_DRAWN_AREA * height * width / aspect)))
    part_height = int(generator.integers(lowest, highest + 1))
    part_width = round(part_height * aspect)
    if part_height * part_width >= MIN_AREA * height * width:
      if (part_height, part_width) == (height, width):
        break
      return _start(height, part_height, generator), _start(width, part_width, generator), part_height, part_width
  return _central_box(height, width, CENTRAL_SHARE)


def central_crop(image: np.ndarray, size: int, share: float = CENTRAL_SHARE) -> np.ndarray:
  """Crops the central square of `share` (0 to 1) of the shorter side of [H, W, C] uint8, resized to [size, size, C]."""
  height, width = image.shape[:2]
  return resize(_cut(image, _central_box(height, width, share)), size)


def resize(image: np.ndarray, size: int) -> np.ndarray:
  """Resizes [H, W, C] uint8 to [size, size, C], bicubic, without anti-aliasing, as TensorFlow resizes ImageNet.

  Keys' kernel of a = -0.5 (OpenCV's and PyTorch's is -0.75), between centres of pixels; four neighbours each way
  whatever the scale, fewer at the border, where the weights of those inside are made to add to 1. Rounded, and cut to
  0 .. 255.
  """
  height, width, channels = image.shape
  rows = _interpolation(height, size) @ image.astype(np.float32).reshape(height, -1)
  # Turned over, as a sparse matrix times long rows is what is fast; by OpenCV, which is much faster at it than NumPy.
  turned = _interpolation(width, size, channels) @ cv2.transpose(rows)
  cv2.threshold(turned, 0, 0, cv2.THRESH_TOZERO, turned)
  levels = cv2.convertScaleAbs(turned)      # rounds, to even at a half, and cuts off what is above 255
  return cv2.transpose(levels).reshape(size, size, channels)


@functools.lru_cache(maxsize=1024)          # of at most 22 kB for size 224: enough for pictures of ImageNet
def _interpolation(before: int, after: int, channels: int = 1) -> csr_array:
  """Returns the weights of old pixels in new ones, [after * channels, before * channels] float32, in each channel.

  Shared by all that ask for the same: not to be changed.
  """
  centre = (np.arange(after) + 0.5) * (before / after) - 0.5
  places = np.floor(centre).astype(np.int32)[:, None] + np.arange(-1, 3, dtype=np.int32)
  x = np.abs(centre[:, None] - places)
  weights = np.where(x < 1, (1.5 * x - 2.5) * x * x + 1, ((2.5 - 0.5 * x) * x - 4) * x + 2)
  weights *= (places >= 0) & (places < before)
  weights /= weights.sum(axis=1, keepdims=True)
  places = places.clip(0, before - 1)[:, None] * channels + np.arange(channels, dtype=np.int32)[:, None]
  starts = np.arange(0, places.size + 1, 4, dtype=np.int32)
  return csr_array(
    (weights.astype(np.float32).repeat(channels, axis=0).ravel(), places.ravel(), starts),
    shape=(after * channels, before * channels))


def _start(whole: int, part: int, generator: np.random.Generator) -> int:
  return int(generator.integers(whole - part)) if part < whole else 0


def _central_box(height: int, width: int, share: float) -> Box:
  side = max(1, int(share * min(height, width)))
  return (height - side + 1) // 2, (width - side + 1) // 2, side, side


def _cut(image: np.ndarray, box: Box) -> np.ndarray:
  top, left, height, width = box
  return image[top:top + height, left:left + width]
