"""ImageNet pictures cut, flipped and resized, against JAX's cubic kernel and the distribution TensorFlow's crop has."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from perceiver_jax.data.augmentation import augment_training, central_crop, random_crop, resize
from perceiver_jax.data.order import generator
from perceiver_jax.data.randaugment import rand_augment
from perceiver_jax.types import UserError


def _noise(height, width, channels=3):
  return np.random.default_rng(height * 1000 + width).integers(0, 256, (height, width, channels), dtype=np.uint8)


def _ramp(height, width):
  """Level 2 y in the first channel and 3 x in the second."""
  y, x = np.mgrid[:height, :width]
  return np.stack([2 * y, 3 * x, 0 * x], axis=-1).astype(np.uint8)


# Resizing.


def _cubic(before, after):
  """[after, before]: Keys' kernel at every distance, weights of a new pixel adding to 1; in float64."""
  x = np.abs(((np.arange(after) + 0.5) * before / after - 0.5)[:, None] - np.arange(before))
  near, far = 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
  weights = np.where(x <= 1, near, np.where(x < 2, far, 0))
  return weights / weights.sum(1, keepdims=True)


@pytest.mark.parametrize('height, width, size', [
  (30, 40, 16), (40, 30, 64), (7, 5, 9), (64, 64, 32), (16, 16, 16), (1, 1, 4), (2, 3, 8), (3, 300, 24),
  (375, 500, 224),
])
@pytest.mark.parametrize('channels', [1, 3])
def test_resizing_is_bicubic_of_minus_a_half_without_antialiasing_at_the_border_too(height, width, size, channels):
  image = _noise(height, width, channels)
  resized = resize(image, size)
  assert (resized.shape, resized.dtype, resized.flags.c_contiguous) == ((size, size, channels), np.uint8, True)
  exact = np.einsum('yh,xw,hwc->yxc', _cubic(height, size), _cubic(width, size), image, optimize=True)
  of_jax = jax.image.resize(np.float32(image), exact.shape, 'cubic', antialias=False)
  np.testing.assert_allclose(of_jax, exact, atol=0.02)  # it computes places in float32
  exact = exact.clip(0, 255)
  assert np.abs(resized - exact).max() < 0.5 + 1e-3  # that is: rounded, but for float32's own rounding
  is_certain = np.abs(exact % 1 - 0.5) > 1e-3
  np.testing.assert_array_equal(resized[is_certain], np.rint(exact)[is_certain])


def test_four_pixels_between_which_one_lies_are_weighted_by_hand():
  """Half way between two pixels Keys' kernel is -1, 9, 9, -1 sixteenths; of a = -0.75, -1.5, 9.5, 9.5, -1.5."""
  row = np.array([0, 40, 200, 100, 60, 20], np.uint8)
  image = np.repeat(np.repeat(row[None, :, None], 6, axis=0), 3, axis=2)
  between = [(9 * 0 + 9 * 40 - 200) / 17, (-40 + 9 * 200 + 9 * 100 - 60) / 16, (-100 + 9 * 60 + 9 * 20) / 17]
  for line in resize(image, 3)[..., 1]:
    assert line.tolist() == [round(value) for value in between]


def test_overshoot_is_cut_off_and_flat_pictures_stay_flat():
  edge = np.zeros((8, 8, 3), np.uint8)
  edge[:, 4:] = 255
  line = resize(edge, 32)[16, :, 0].astype(int)
  assert np.all(np.diff(line[12:20]) >= 0)  # nothing wraps round: 256 would be 0
  assert (line.min(), line.max(), line[:12].max(), line[20:].min()) == (0, 255, 0, 255)
  for level in (0, 1, 128, 254, 255):
    np.testing.assert_array_equal(resize(np.full((13, 29, 3), level, np.uint8), 17), level)


@pytest.mark.parametrize('height, width, side, top, left', [
  (256, 256, 224, 16, 16), (375, 500, 328, 24, 86), (500, 333, 291, 105, 21), (9, 8, 7, 1, 1), (1, 5, 1, 0, 2),
])
def test_the_central_crop_is_that_of_the_authors(height, width, side, top, left):
  """Side int(224 / 256 of the shorter one), offset (difference + 1) // 2, worked out by hand."""
  image = _noise(height, width)
  np.testing.assert_array_equal(central_crop(image, 20), resize(image[top:top + side, left:left + side], 20))
  np.testing.assert_array_equal(central_crop(image, side), image[top:top + side, left:left + side])


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 255))
def test_pictures_of_every_size_have_a_crop_and_one_colour_stays_it(height, width, level):
  crop = central_crop(np.full((height, width, 3), level, np.uint8), 8)
  np.testing.assert_array_equal(crop, np.full((8, 8, 3), level))


def test_another_share_may_be_cut_out():
  image = _noise(10, 16)
  np.testing.assert_array_equal(central_crop(image, 10, share=1), image[:, 3:13])
  np.testing.assert_array_equal(central_crop(image, 5, share=0.5), image[3:8, 6:11])


# Random parts.


def _reference_crops(height, width, num, random):
  """As TensorFlow's operation draws them, `num` attempts at a time; [n, 3] of height, width and their aspect."""
  aspect = random.uniform(3 / 4, 4 / 3, num)
  low = np.rint(np.sqrt(0.08 * height * width / aspect))
  high = np.minimum(np.rint(np.sqrt(height * width / aspect)), height)
  high = np.where(np.rint(high * aspect) > width, np.floor((width + 0.5 - 1e-7) / aspect), high)
  low = np.minimum(low, high)
  part_height = low + np.floor(random.uniform(size=num) * (high - low + 1))
  part_width = np.rint(part_height * aspect)
  is_taken = (part_height * part_width >= 0.1 * height * width) & (part_width <= width)
  return np.stack([part_height, part_width], axis=1)[is_taken]


def _distance(one, other):
  """The largest difference of two samples' distribution functions (Kolmogorov and Smirnov)."""
  levels = np.sort(np.concatenate([one, other]))
  share = lambda sample: np.searchsorted(np.sort(sample), levels, side='right') / len(sample)
  return np.abs(share(one) - share(other)).max()


@pytest.mark.parametrize('height, width', [(375, 500), (500, 333), (256, 256), (200, 420)])
def test_areas_and_aspects_of_random_parts_are_distributed_as_in_tensorflow(height, width):
  boxes = np.array([random_crop(height, width, generator(height, i)) for i in range(6000)])
  assert boxes.min() >= 0
  assert np.all(boxes[:, :2] + boxes[:, 2:] <= [height, width])
  parts = boxes[:, 2:]
  area = parts.prod(1) / (height * width)
  aspect = parts[:, 1] / parts[:, 0]
  assert area.min() >= 0.1
  assert area.max() > min(1, min(4 / 3 * height / width, 4 / 3 * width / height)) - 0.05
  assert 0.73 < aspect.min() < 0.77 and 1.31 < aspect.max() < 1.36
  expected = _reference_crops(height, width, 100_000, np.random.default_rng(0))
  assert _distance(area, expected.prod(1) / (height * width)) < 0.026  # 1.63 / sqrt(6000) = 0.021 is 99 %
  assert _distance(aspect, expected[:, 1] / expected[:, 0]) < 0.026


def test_small_parts_are_more_frequent_than_large_ones_as_the_side_is_uniform():
  """Of a square, at aspect 1: sides from sqrt(0.1) to 1, so half of them are below 0.658, or 43 % of the area."""
  sides = [h for h, w in (random_crop(300, 300, generator(i))[2:] for i in range(20_000)) if abs(w / h - 1) < 0.02]
  assert len(sides) > 500
  assert abs(np.median(sides) / 300 - 0.658) < 0.04
  assert abs(np.mean(np.array(sides) < 0.487 * 300) - 0.25) < 0.06


def test_a_part_may_begin_anywhere_but_at_the_last_place():
  """TensorFlow draws from the places before the last that fits, so the last row is seen only with all the others."""
  starts = {}
  for i in range(30_000):
    top, left, height, width = random_crop(10, 12, generator(i))
    starts.setdefault((height, width), set()).add((top, left))
  for (height, width), seen in starts.items():
    expected = {(top, left) for top in range(max(1, 10 - height)) for left in range(max(1, 12 - width))}
    assert seen <= expected
    if len(expected) < 30:
      assert seen == expected, (height, width)
  assert len(starts) > 30


def test_places_are_uniform():
  shares = []
  for i in range(6000):
    top, left, height, width = random_crop(375, 500, generator('place', i))
    if 375 - height > 20 and 500 - width > 20:
      shares.append(((top + 0.5) / (375 - height), (left + 0.5) / (500 - width)))
  assert len(shares) > 2000
  for share in np.transpose(shares):
    assert _distance(share, (np.arange(10_000) + 0.5) / 10_000) < 0.03
  assert abs(np.corrcoef(np.transpose(shares))[0, 1]) < 0.05


@pytest.mark.parametrize('height, width, box', [
  (100, 3000, (7, 1457, 87, 87)), (3000, 100, (1457, 7, 87, 87)), (1, 1, (0, 0, 1, 1)), (1, 40, (0, 20, 1, 1)),
])
def test_the_centre_is_taken_where_no_part_is_large_enough(height, width, box):
  for i in range(20):
    assert random_crop(height, width, generator(i)) == box


def test_a_part_that_is_the_whole_picture_becomes_the_centre():
  boxes = {random_crop(4, 4, generator(i)) for i in range(500)}
  assert (0, 0, 4, 4) not in boxes  # aspects near 1 and the largest height: about one part in ten
  assert (1, 1, 3, 3) in boxes


# All of it.


def test_a_part_is_cut_out_mirrored_or_not_distorted_and_resized_in_this_order():
  image, mirrored = _noise(40, 50), 0
  for i in range(40):
    one, again = generator(i), generator(i)
    augmented = augment_training(image, 16, one, num_layers=2, magnitude=7)
    top, left, height, width = random_crop(40, 50, again)
    part = image[top:top + height, left:left + width]
    is_mirrored = bool(again.integers(2))
    part = np.ascontiguousarray(part[:, ::-1]) if is_mirrored else part
    np.testing.assert_array_equal(augmented, resize(rand_augment(part, again, num_layers=2, magnitude=7), 16))
    assert (augmented.shape, augmented.dtype) == ((16, 16, 3), np.uint8)
    mirrored += is_mirrored
  assert 8 < mirrored < 32


def test_half_of_the_pictures_are_mirrored():
  image, num = _ramp(60, 80), 400
  steps = [np.diff(augment_training(image, 8, generator(i), num_layers=0).astype(int), axis=1)[..., 1].mean()
           for i in range(num)]
  assert min(np.abs(steps)) > 1
  assert 0.42 < np.mean(np.array(steps) > 0) < 0.58


def test_without_layers_only_geometry_changes():
  image = _ramp(60, 80)
  for i in range(50):
    augmented = augment_training(image, 24, generator(i), num_layers=0).astype(int)
    assert np.diff(augmented[..., 0], axis=0).min() >= 0  # never upside down
    assert np.all(augmented[..., 2] == 0)


def test_the_recipe_of_imagenet_is_four_layers_at_magnitude_5():
  image = _noise(70, 90)
  for i in range(20):
    np.testing.assert_array_equal(
      augment_training(image, 16, generator(i)),
      augment_training(image, 16, generator(i), num_layers=4, magnitude=5))


@pytest.mark.parametrize('height, width', [(1, 1), (1, 7), (5, 2), (3, 400), (37, 41)])
def test_pictures_of_every_size_can_be_augmented_and_stay_as_they_are(height, width):
  image = _noise(height, width)
  image.flags.writeable = False
  for i in range(60):
    assert augment_training(image, 12, generator(i)).shape == (12, 12, 3)
  np.testing.assert_array_equal(image, _noise(height, width))


def test_gray_pictures_are_cut_mirrored_and_resized_as_coloured_ones():
  image = _noise(30, 40)
  for i in range(20):
    gray = augment_training(image[..., :1].copy(), 12, generator(i), num_layers=0)
    np.testing.assert_array_equal(gray, augment_training(image, 12, generator(i), num_layers=0)[..., :1])
  with pytest.raises(UserError, match=r'RandAugment takes RGB pictures, and this one is \[30, 40, 1\]'):
    augment_training(image[..., :1], 12, generator(0))


@pytest.mark.parametrize('image', [np.zeros((8, 9), np.uint8), np.zeros((8, 9, 3), np.float32)])
def test_what_is_no_picture_is_the_users_mistake(image):
  with pytest.raises(UserError, match=r'is \[H, W, C\] uint8, not \[8, 9'):
    augment_training(image, 8, generator(0))
