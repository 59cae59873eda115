"""RandAugment's sixteen operations, against Pillow where it has them and plain NumPy where it has not."""

from __future__ import annotations

import math

import cv2
import numpy as np
import PIL.Image
import PIL.ImageEnhance
import PIL.ImageOps
import pytest

from perceiver_jax.data import randaugment
from perceiver_jax.data.order import generator
from perceiver_jax.data.randaugment import OPS, rand_augment
from perceiver_jax.types import UserError

AT_FIVE = {  # what each operation is at magnitude 5 (the authors' code), before a random sign
  'auto_contrast': (), 'equalize': (), 'invert': (), 'rotate': (15,), 'posterize': (2,), 'solarize': (128,),
  'color': (1,), 'contrast': (1,), 'brightness': (1,), 'sharpness': (1,), 'shear_x': (0.15,), 'shear_y': (0.15,),
  'translate_x': (50,), 'translate_y': (50,), 'solarize_add': (55,),
}
SIGNED = {'rotate', 'shear_x', 'shear_y', 'translate_x', 'translate_y'}
UNCHANGED = {'color', 'contrast', 'brightness', 'sharpness'}


def _noise(height=37, width=53, low=0, high=256, seed=0):
  return np.random.default_rng(seed).integers(low, high, (height, width, 3), dtype=np.uint8)


def _photo():
  """Smooth, with other levels in each channel, not all of them."""
  y, x = np.mgrid[:90, :120]
  channels = [60 + x, 20 + 2 * y, 100 + 40 * np.sin(x / 9) + 30 * np.cos(y / 7)]
  return np.stack(channels, -1).astype(np.uint8)


PICTURES = {
  'noise': _noise(), 'pale noise': _noise(low=90, high=140, seed=1), 'photo': _photo(),
  'flat': np.full((9, 8, 3), [7, 200, 255], np.uint8), 'two levels': _noise(low=3, high=5), 'tiny': _noise(2, 1),
  'black': np.zeros((5, 5, 3), np.uint8),
}


def _pillow(function, image, *args):
  return np.asarray(function(PIL.Image.fromarray(image), *args))


@pytest.mark.parametrize('image', PICTURES.values(), ids=PICTURES)
@pytest.mark.parametrize('name, function, values', [
  ('auto_contrast', PIL.ImageOps.autocontrast, [()]),
  ('equalize', PIL.ImageOps.equalize, [()]),
  ('invert', PIL.ImageOps.invert, [()]),
  ('posterize', PIL.ImageOps.posterize, [(bits,) for bits in range(1, 9)]),
  ('solarize', PIL.ImageOps.solarize, [(level,) for level in (0, 1, 128, 200, 256)]),
])
def test_levels_are_those_of_pillow(name, function, values, image):
  for args in values:
    np.testing.assert_array_equal(getattr(randaugment, name)(image, *args), _pillow(function, image, *args))


@pytest.mark.parametrize('image', PICTURES.values(), ids=PICTURES)
@pytest.mark.parametrize('name, enhancer', [
  ('color', PIL.ImageEnhance.Color), ('contrast', PIL.ImageEnhance.Contrast),
  ('brightness', PIL.ImageEnhance.Brightness), ('sharpness', PIL.ImageEnhance.Sharpness),
])
@pytest.mark.parametrize('factor', [0.1, 0.28, 0.64, 1, 1.36, 1.9])
def test_blends_are_those_of_pillow(name, enhancer, factor, image):
  expected = np.asarray(enhancer(PIL.Image.fromarray(image)).enhance(factor))
  np.testing.assert_array_equal(getattr(randaugment, name)(image, factor), expected)


def test_gray_is_that_of_pillow_for_every_kind_of_colour():
  image = _noise(512, 512, seed=4)
  np.testing.assert_array_equal(randaugment.color(image, 0)[..., 0], _pillow(lambda x: x.convert('L'), image))


def test_all_bits_but_the_highest_can_be_dropped_and_these_too():
  assert randaugment.posterize(np.array([[[255, 129, 127]]], np.uint8), 1).tolist() == [[[128, 128, 0]]]
  assert randaugment.posterize(_noise(), 0).max() == 0  # magnitude 0


def test_what_is_dark_becomes_lighter_by_what_solarising_adds():
  image = np.array([[[0, 127, 128], [100, 200, 255]]], np.uint8)
  assert randaugment.solarize_add(image, 55).tolist() == [[[55, 182, 128], [155, 200, 255]]]
  assert randaugment.solarize_add(image, 110).tolist() == [[[110, 237, 128], [210, 200, 255]]]


def _nearest(image, source):
  """The reference, and which of its pixels are certain: `source` maps x and y to where a pixel comes from."""
  height, width = image.shape[:2]
  y, x = np.mgrid[:height, :width].astype(float)
  from_x, from_y = source(x, y)
  is_certain = np.minimum(*(abs(place - np.floor(place) - 0.5) for place in (from_x, from_y))) > 2 / 1024
  column, row = np.rint(from_x).astype(int), np.rint(from_y).astype(int)
  is_inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
  pixels = image[row.clip(0, height - 1), column.clip(0, width - 1)]
  return np.where(is_inside[..., None], pixels, 128), is_certain


def _turned(degrees, height, width):
  cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
  middle_x, middle_y = (width - 1) / 2, (height - 1) / 2
  return lambda x, y: (cos * (x - middle_x) - sin * (y - middle_y) + middle_x,
                       sin * (x - middle_x) + cos * (y - middle_y) + middle_y)


@pytest.mark.parametrize('image', [_noise(), _noise(200, 133, seed=2), _noise(3, 2)], ids=['small', 'large', 'tiny'])
@pytest.mark.parametrize('sign', [1, -1])
@pytest.mark.parametrize('name, size, source', [
  ('rotate', 15, None),
  ('rotate', 27, None),
  ('shear_x', 0.15, lambda s: lambda x, y: (x + s * y, y)),
  ('shear_y', 0.15, lambda s: lambda x, y: (x, y + s * x)),
  ('shear_y', 0.27, lambda s: lambda x, y: (x, y + s * x)),
  ('translate_x', 50, lambda s: lambda x, y: (x + s, y)),
  ('translate_y', 20, lambda s: lambda x, y: (x, y + s)),
])
def test_pixels_come_from_the_nearest_one_or_are_gray(name, size, source, sign, image):
  """To 1/1024 of a pixel, OpenCV's precision; just between two pixels either may be taken."""
  moved = getattr(randaugment, name)(image, sign * size)
  source = _turned(sign * size, *image.shape[:2]) if source is None else source(sign * size)
  expected, is_certain = _nearest(image, source)
  np.testing.assert_array_equal(moved[is_certain], expected[is_certain])
  assert is_certain.mean() > 0.5
  assert (moved.shape, moved.dtype) == (image.shape, np.uint8)


def test_pictures_move_the_way_that_is_promised():
  ramp = np.repeat(np.arange(1, 61, dtype=np.uint8)[None, :, None], 3, axis=2)  # [1, 60, 3]
  assert randaugment.translate_x(ramp, 50)[0, :, 0].tolist() == [*range(51, 61), *[128] * 50]
  assert randaugment.translate_x(ramp, -50)[0, :, 0].tolist() == [*[128] * 50, *range(1, 11)]
  column = ramp.swapaxes(0, 1)
  assert randaugment.translate_y(column, 50)[:, 0, 0].tolist() == [*range(51, 61), *[128] * 50]
  assert randaugment.translate_y(column, -50)[:, 0, 0].tolist() == [*[128] * 50, *range(1, 11)]
  square = np.repeat(np.arange(1, 10, dtype=np.uint8).reshape(3, 3, 1), 3, axis=2)
  assert randaugment.shear_x(square, 1)[..., 0].tolist() == [[1, 2, 3], [5, 6, 128], [9, 128, 128]]
  assert randaugment.shear_x(square, -1)[..., 0].tolist() == [[1, 2, 3], [128, 4, 5], [128, 128, 7]]
  assert randaugment.shear_y(square, 1)[..., 0].tolist() == [[1, 5, 9], [4, 8, 128], [7, 128, 128]]
  assert randaugment.rotate(square, 90)[..., 0].tolist() == [[3, 6, 9], [2, 5, 8], [1, 4, 7]]
  assert randaugment.rotate(square, -90)[..., 0].tolist() == [[7, 4, 1], [8, 5, 2], [9, 6, 3]]


@pytest.mark.parametrize('height, width', [(37, 53), (1, 1), (4, 1), (1, 4), (60, 2)])
def test_whole_pixels_are_shifted_as_opencv_warps_them(height, width):
  image = _noise(height, width)
  for pixels in (-100, -53, -52, -4, -1, 0, 1, 3, 37, 52, 60.0, 100):
    for name, dx, dy in (('translate_x', pixels, 0), ('translate_y', 0, pixels)):
      warped = cv2.warpAffine(
        image, np.float64([[1, 0, dx], [0, 1, dy]]), (width, height), flags=cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_CONSTANT, borderValue=(128, 128, 128))
      np.testing.assert_array_equal(getattr(randaugment, name)(image, pixels), warped, (name, pixels))


@pytest.mark.parametrize('height, width', [(1, 1), (4, 1), (1, 4), (2, 3), (256, 3)])
def test_bits_and_thresholds_of_pictures_of_any_shape(height, width):
  """OpenCV takes an array of four, or of one, for a number; Pillow has no solarising that adds."""
  image = _noise(height, width).astype(int)
  for level in range(0, 257, 8):
    np.testing.assert_array_equal(
      randaugment.solarize(np.uint8(image), level), np.where(image < level, image, 255 - image))
    np.testing.assert_array_equal(
      randaugment.solarize_add(np.uint8(image), level), np.where(image < 128, image + level, image).clip(0, 255))
  for bits in range(9):
    np.testing.assert_array_equal(randaugment.posterize(np.uint8(image), bits), image >> 8 - bits << 8 - bits)


def test_cutout_covers_a_square_as_far_as_it_is_inside():
  image = np.zeros((100, 120, 3), np.uint8)
  for y, x, rows, columns in ((50, 60, (30, 70), (40, 80)), (0, 119, (0, 20), (99, 120)), (95, 5, (75, 100), (0, 25))):
    expected = np.zeros_like(image)
    expected[rows[0]:rows[1], columns[0]:columns[1]] = 128
    np.testing.assert_array_equal(randaugment.cutout(image, 20, y, x), expected)


def test_at_magnitude_5_every_operation_has_the_authors_strength():
  image = _photo()
  for name, args in AT_FIVE.items():
    function = getattr(randaugment, name)
    expected = [function(image, *args), *([function(image, -args[0])] if name in SIGNED else [])]
    seen = {OPS[name](image, 0.5, generator(name, i)).tobytes() for i in range(20)}
    assert seen == {picture.tobytes() for picture in expected}, name
    assert (seen == {image.tobytes()}) == (name in UNCHANGED), name
  assert set(OPS) == {*AT_FIVE, 'cutout'}


def test_at_magnitude_5_cutout_covers_40_by_40_pixels_about_any_pixel():
  image = np.zeros((60, 70, 3), np.uint8)
  starts, sizes = [], []
  for i in range(400):
    covered = OPS['cutout'](image, 0.5, generator(i))[..., 0] == 128
    rows, columns = np.flatnonzero(covered.any(1)), np.flatnonzero(covered.any(0))
    assert covered.sum() == len(rows) * len(columns)
    starts.append((rows[0], columns[0]))
    sizes.append((len(rows), len(columns)))
  assert np.max(sizes, axis=0).tolist() == [40, 40]
  assert np.min(sizes, axis=0).max() <= 22  # the centre was in a corner
  assert np.all(np.max(starts, axis=0) >= [36, 46])  # of 39 and 49


GOLDEN = np.array([[[0, 100, 200], [10, 110, 210]], [[40, 140, 240], [120, 130, 255]]], np.uint8)


@pytest.mark.parametrize('name, level, expected', [
  # 254, as 255 / 55 * 55 is a little less than 255 (in Pillow as well)
  ('auto_contrast', 0.5, [[[0, 0, 0], [21, 63, 46]], [[85, 255, 185], [255, 191, 254]]]),
  ('invert', 0.5, [[[255, 155, 55], [245, 145, 45]], [[215, 115, 15], [135, 125, 0]]]),
  ('posterize', 0.5, [[[0, 64, 192], [0, 64, 192]], [[0, 128, 192], [64, 128, 192]]]),
  ('solarize', 0.5, [[[0, 100, 55], [10, 110, 45]], [[40, 115, 15], [120, 125, 0]]]),
  ('solarize_add', 0.5, [[[55, 155, 200], [65, 165, 210]], [[95, 140, 240], [175, 130, 255]]]),
  ('brightness', 1.0, [[[0, 190, 255], [19, 209, 255]], [[76, 255, 255], [228, 247, 255]]]),  # factor 1.9
  ('brightness', 0.0, [[[0, 10, 20], [1, 11, 21]], [[4, 14, 24], [12, 13, 25]]]),  # factor 0.1
  ('color', 0.0, [[[73, 83, 93], [83, 93, 103]], [[113, 123, 133], [138, 139, 152]]]),  # grays 82, 92, 122, 141
  ('contrast', 0.0, [[[98, 108, 118], [99, 109, 119]], [[102, 112, 122], [110, 111, 123]]]),  # their mean, 109
])
def test_levels_of_four_pixels(name, level, expected):
  assert OPS[name](GOLDEN, level, generator(0)).tolist() == expected


def test_four_levels_of_the_same_number_of_pixels_are_spread_evenly():
  image = np.repeat(np.repeat([10, 20, 30, 40], 256).reshape(32, 32, 1), 3, axis=2).astype(np.uint8)
  assert randaugment.equalize(image)[::8, 0].tolist() == [[0] * 3, [85] * 3, [171] * 3, [255] * 3]


def test_a_light_pixel_among_dark_ones_is_sharpened_and_the_border_is_kept():
  image = np.zeros((4, 3, 3), np.uint8)
  image[1, 1] = image[0, 0] = 100
  # smooth, 600 / 13 = 46.2 and 100 / 13 = 7.7, and 1.9 times the difference
  assert randaugment.sharpness(image, 1.9)[..., 0].tolist() == [[100, 0, 0], [0, 148, 0], [0, 0, 0], [0, 0, 0]]
  assert randaugment.sharpness(image, 0)[..., 0].tolist() == [[100, 0, 0], [0, 46, 0], [0, 8, 0], [0, 0, 0]]


def test_every_operation_is_drawn_as_often_as_any_other_and_is_always_applied():
  """Pictures of one operation each, told apart by what it does to this one."""
  image, counts = _photo(), dict.fromkeys(['unchanged', 'cutout', *(set(AT_FIVE) - UNCHANGED)], 0)
  by_bytes = {image.tobytes(): 'unchanged'}
  for name in set(AT_FIVE) - UNCHANGED:
    for sign in (1, -1)[:1 + (name in SIGNED)]:
      by_bytes[getattr(randaugment, name)(image, *(sign * arg for arg in AT_FIVE[name])).tobytes()] = name
  num = 3200
  for i in range(num):
    picture = rand_augment(image, generator('draw', i), num_layers=1, magnitude=5)
    counts[by_bytes.get(picture.tobytes(), 'cutout')] += 1
  for name, count in counts.items():
    share = 4 / 16 if name == 'unchanged' else 1 / 16
    assert abs(count / num - share) < 4.5 * math.sqrt(share * (1 - share) / num), name


def test_layers_are_applied_one_after_the_other():
  image, singles, doubles = _photo(), 0, 0
  for i in range(60):
    once = rand_augment(image, generator(i), num_layers=1, magnitude=3)
    twice = rand_augment(image, generator(i), num_layers=2, magnitude=3)
    singles += not np.array_equal(once, image)
    doubles += not np.array_equal(twice, image)
    assert (twice.shape, twice.dtype) == (image.shape, np.uint8)
  assert singles == 60  # at magnitude 3 every operation changes this picture
  assert doubles >= 55  # two of them may undo each other, as inverting twice does
  assert rand_augment(image, generator(0), num_layers=0, magnitude=5) is image


@pytest.mark.parametrize('magnitude', [0, 3, 5, 10])
def test_the_picture_itself_stays_as_it_is_and_the_generator_alone_decides(magnitude):
  image = _noise(60, 80)
  image.flags.writeable = False
  for i in range(40):
    one, again = (rand_augment(image, generator(i), num_layers=4, magnitude=magnitude) for _ in range(2))
    np.testing.assert_array_equal(one, again)
  np.testing.assert_array_equal(image, _noise(60, 80))


@pytest.mark.parametrize('num_layers, magnitude', [(-1, 5), (4, -0.1), (4, 10.5)])
def test_what_is_out_of_range_is_the_users_mistake(num_layers, magnitude):
  with pytest.raises(UserError, match=f'not {num_layers} and {magnitude}'):
    rand_augment(_noise(), generator(0), num_layers=num_layers, magnitude=magnitude)
