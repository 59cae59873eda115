"""RandAugment: a few operations, drawn at random from sixteen, on a uint8 picture (2107.14795, appendix A.1).

Pictures are [H, W, 3] uint8, RGB, and stay as they are: every operation returns another of the same shape. Pixels that
come in from outside are 128. What Pillow has too (ImageOps, ImageEnhance) is as there, to the bit. The authors'
TensorFlow code rounds grays and blurs otherwise, and takes another mean for contrast; at their magnitude, 5, those
operations change nothing in either.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import cv2
import numpy as np

from perceiver_jax.types import UserError

Op = Callable[[np.ndarray, float, np.random.Generator], np.ndarray]  # (image, level in 0 .. 1, generator) -> image

OUTSIDE = 128
MAX_MAGNITUDE = 10
LEVELS = np.arange(256)


def rand_augment(
  image: np.ndarray, generator: np.random.Generator, *, num_layers: int, magnitude: float,
) -> np.ndarray:
  """Applies `num_layers` of OPS, one after the other, each drawn uniformly and always applied.

  Args:
    image: [H, W, 3] uint8 of any size; what moves or covers pixels does so by a number of them, whatever the size.
    generator: decides, with the shape of the image, what is done.
    num_layers: 4 in Perceiver IO; 0 returns the image itself.
    magnitude: 0 to 10, of all operations; 5 in Perceiver IO. More is not stronger everywhere: solarising and
      posterising change most at 0, and colours, contrast, brightness and sharpness nothing at 5.

  Returns:
    [H, W, 3] uint8.

  Raises:
    UserError: `num_layers` or `magnitude` is out of range.
  """
  if num_layers < 0 or not 0 <= magnitude <= MAX_MAGNITUDE:
    raise UserError(f'RandAugment takes num_layers from 0 and a magnitude from 0 to {MAX_MAGNITUDE}, '
                    f'not {num_layers} and {magnitude}')
  ops = tuple(OPS.values())
  for index in generator.integers(len(ops), size=num_layers):
    image = ops[index](image, magnitude / MAX_MAGNITUDE, generator)
  return image


# Each level of brightness becomes another.


def auto_contrast(image: np.ndarray) -> np.ndarray:
  """Each channel stretched to 0 .. 255; one that has a single level stays as it is."""
  # Over rows first: over both axes at once takes NumPy a hundred times as long.
  low = image.min(0).min(0).astype(float)
  high = image.max(0).max(0).astype(float)
  scale = 255 / np.where(high > low, high - low, 1)
  stretched = LEVELS[:, None] * scale + -low * scale
  return _mapped(image, np.where(high > low, stretched, LEVELS[:, None]))


def equalize(image: np.ndarray) -> np.ndarray:
  """Each channel's levels spread so that all become about as frequent."""
  return _mapped(image, np.stack([_equalized(image, channel) for channel in range(3)], axis=1))


def _equalized(image: np.ndarray, channel: int) -> np.ndarray:
  counts = cv2.calcHist([image], [channel], None, [256], [0, 256]).ravel().astype(int)
  step = (counts.sum() - counts[counts.nonzero()[0][-1]]) // 255
  if step == 0:
    return LEVELS
  return (step // 2 + counts.cumsum() - counts) // step


def invert(image: np.ndarray) -> np.ndarray:
  """Light becomes dark."""
  return cv2.bitwise_not(image)


def posterize(image: np.ndarray, num_bits: int) -> np.ndarray:
  """Only the `num_bits` highest bits of eight are kept."""
  return image & np.uint8(256 - (1 << 8 - num_bits))


def solarize(image: np.ndarray, threshold: int) -> np.ndarray:
  """Inverts levels that are not below `threshold`."""
  flipped = cv2.threshold(image, threshold - 1, 255, cv2.THRESH_BINARY)[1]  # all bits of these, none of others
  return cv2.bitwise_xor(image, flipped)


def solarize_add(image: np.ndarray, addition: int) -> np.ndarray:
  """Makes levels below 128 lighter by `addition`."""
  return cv2.add(image, cv2.threshold(image, 127, addition, cv2.THRESH_BINARY_INV)[1])


def _mapped(image: np.ndarray, table: np.ndarray) -> np.ndarray:
  """Each level by `table`, [256, 3], of which only 0 .. 255 and whole numbers are left."""
  return cv2.LUT(image, table.clip(0, 255).astype(np.uint8)[None])


# Away from a poorer picture, or towards it.


def color(image: np.ndarray, factor: float) -> np.ndarray:
  """Gray at 0, as it is at 1, more colourful above."""
  return _blended(image, _gray, factor)


def contrast(image: np.ndarray, factor: float) -> np.ndarray:
  """All of the mean brightness at 0, as it is at 1, of more contrast above."""
  return _blended(image, lambda image: int(_gray(image).mean() + 0.5), factor)


def brightness(image: np.ndarray, factor: float) -> np.ndarray:
  """Black at 0, as it is at 1, brighter above."""
  return _blended(image, lambda image: 0, factor)


def sharpness(image: np.ndarray, factor: float) -> np.ndarray:
  """Blurred at 0, as it is at 1, sharper above; the outermost pixels never change."""
  return _blended(image, _smooth, factor)


def _blended(image: np.ndarray, poorer: Callable[[np.ndarray], np.ndarray | int], factor: float) -> np.ndarray:
  if factor == 1:  # as it is at magnitude 5: not worth the time
    return image
  start = np.float32(poorer(image))
  return (start + np.float32(factor) * (image - start)).clip(0, 255).astype(np.uint8)


def _gray(image: np.ndarray) -> np.ndarray:
  """Returns gray [H, W, 1]: 0.299 red, 0.587 green, 0.114 blue in Pillow's 16 bits; OpenCV's 15 differ now and then."""
  return image @ np.array([[19595], [38470], [7471]]) + 2 ** 15 >> 16


def _smooth(image: np.ndarray) -> np.ndarray:
  """The mean of 3 x 3 pixels, the middle one counted five times."""
  kernel = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], np.float32)
  smooth = image.copy()
  smooth[1:-1, 1:-1] = np.rint(cv2.filter2D(image, cv2.CV_32F, kernel)[1:-1, 1:-1] / 13)
  return smooth


# Pixels elsewhere.


def rotate(image: np.ndarray, degrees: float) -> np.ndarray:
  """By `degrees` about the centre, clockwise where they are negative."""
  height, width = image.shape[:2]
  cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
  x, y = (width - 1) / 2, (height - 1) / 2
  return _warped(image, [[cos, -sin, x - cos * x + sin * y], [sin, cos, y - sin * x - cos * y]])


def shear_x(image: np.ndarray, slope: float) -> np.ndarray:
  """Row y moves `slope` * y pixels to the left."""
  return _warped(image, [[1, slope, 0], [0, 1, 0]])


def shear_y(image: np.ndarray, slope: float) -> np.ndarray:
  """Column x moves `slope` * x pixels up."""
  return _warped(image, [[1, 0, 0], [slope, 1, 0]])


def translate_x(image: np.ndarray, pixels: float) -> np.ndarray:
  """Moves the picture to the left by `pixels`."""
  return _shifted(image, int(pixels), 1) if pixels == int(pixels) else _warped(image, [[1, 0, pixels], [0, 1, 0]])


def translate_y(image: np.ndarray, pixels: float) -> np.ndarray:
  """Up by `pixels`."""
  return _shifted(image, int(pixels), 0) if pixels == int(pixels) else _warped(image, [[1, 0, 0], [0, 1, pixels]])


def _shifted(image: np.ndarray, pixels: int, axis: int) -> np.ndarray:
  """Shifts by whole pixels, towards the start of `axis`, as `_warped` does, in a tenth of its time."""
  shifted = np.full_like(image, OUTSIDE)
  source, target = np.moveaxis(image, axis, 0), np.moveaxis(shifted, axis, 0)
  if pixels < 0:
    target[-pixels:] = source[:pixels]
  else:
    target[:max(0, len(target) - pixels)] = source[pixels:]
  return shifted


def _warped(image: np.ndarray, source: list[list[float]]) -> np.ndarray:
  """Pixel (x, y) from the pixel nearest to `source` (x, y, 1)."""
  return cv2.warpAffine(
    image, np.array(source, float), image.shape[1::-1], flags=cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP,
    borderMode=cv2.BORDER_CONSTANT, borderValue=(OUTSIDE,) * 3)


def cutout(image: np.ndarray, reach: int, y: int, x: int) -> np.ndarray:
  """A square of 2 * `reach` pixels, from (y, x) up to `reach` before and after, is OUTSIDE, as far as it is inside."""
  image = image.copy()
  image[max(0, y - reach):y + reach, max(0, x - reach):x + reach] = OUTSIDE
  return image


def _cutout_somewhere(image: np.ndarray, reach: int, generator: np.random.Generator) -> np.ndarray:
  y, x = generator.integers(image.shape[:2])
  return cutout(image, reach, y, x)


def _either(size: float, generator: np.random.Generator) -> float:
  return size if generator.integers(2) else -size


def _factor(level: float) -> float:
  return level * 1.8 + 0.1


OPS: dict[str, Op] = {  # in the order of the authors' code
  'auto_contrast': lambda image, level, generator: auto_contrast(image),
  'equalize': lambda image, level, generator: equalize(image),
  'invert': lambda image, level, generator: invert(image),
  'rotate': lambda image, level, generator: rotate(image, _either(level * 30, generator)),
  'posterize': lambda image, level, generator: posterize(image, int(level * 4)),
  'solarize': lambda image, level, generator: solarize(image, int(level * 256)),
  'color': lambda image, level, generator: color(image, _factor(level)),
  'contrast': lambda image, level, generator: contrast(image, _factor(level)),
  'brightness': lambda image, level, generator: brightness(image, _factor(level)),
  'sharpness': lambda image, level, generator: sharpness(image, _factor(level)),
  'shear_x': lambda image, level, generator: shear_x(image, _either(level * 0.3, generator)),
  'shear_y': lambda image, level, generator: shear_y(image, _either(level * 0.3, generator)),
  'translate_x': lambda image, level, generator: translate_x(image, _either(level * 100, generator)),
  'translate_y': lambda image, level, generator: translate_y(image, _either(level * 100, generator)),
  'cutout': lambda image, level, generator: _cutout_somewhere(image, int(level * 40), generator),
  'solarize_add': lambda image, level, generator: solarize_add(image, int(level * 110)),
}
