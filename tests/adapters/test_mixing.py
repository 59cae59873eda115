"""Two pictures in one: what is left of each, and what their labels count for."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perceiver_jax.adapters.image import IMAGENET_MEAN, IMAGENET_STD
from perceiver_jax.adapters.mixing import cutmix, half_and_half, mixup
from perceiver_jax.losses import softmax_cross_entropy

B, H, W = 8, 12, 20
RANDOM = np.random.default_rng(0)
IMAGES, PARTNERS = RANDOM.integers(0, 256, (2, B, H, W, 3), dtype=np.uint8)
KEYS = jax.random.split(jax.random.key(0), B)
PLACES = np.arange(B)
MIX = {
  'mixup': mixup,
  'cutmix': cutmix,
  'half_and_half': lambda images, partners, keys: half_and_half(images, partners, keys, np.arange(len(images))),
}


def _many(mix, num, height=H, width=W):
  """What is left of white on black, [num, H, W], and the ratios, [num]."""
  white = np.ones((num, height, width, 1), np.float32)
  mixed, ratio = jax.jit(mix)(white, 0 * white, jax.random.split(jax.random.key(7), num))
  return np.asarray(mixed[..., 0]), np.asarray(ratio)


@pytest.mark.parametrize('mix', MIX.values(), ids=MIX)
def test_a_mixed_picture_has_the_shape_of_its_parts_in_float32_and_lies_between_them(mix):
  mixed, ratio = mix(IMAGES, PARTNERS, KEYS)
  assert (mixed.shape, mixed.dtype) == (IMAGES.shape, np.float32)
  assert (ratio.shape, ratio.dtype) == ((B,), np.float32)
  assert np.all((ratio >= 0) & (ratio <= 1))
  assert np.all(mixed >= np.minimum(IMAGES, PARTNERS) - 1e-4)
  assert np.all(mixed <= np.maximum(IMAGES, PARTNERS) + 1e-4)


def test_mixup_weights_both_pictures_by_the_ratio():
  mixed, ratio = mixup(IMAGES, PARTNERS, KEYS)
  expected = [r * one + (1 - r) * other for r, one, other in zip(np.float64(ratio), IMAGES, PARTNERS, strict=True)]
  np.testing.assert_allclose(mixed, expected, atol=1e-4)
  assert len(np.unique(ratio)) == B


def test_mixup_draws_the_ratio_from_beta_of_a_fifth():
  """Its mean is 1/2, its variance 1 / (4 (2 * 0.2 + 1)), and its share below x is, to leading order, x ** 0.2 * c."""
  _, ratio = _many(mixup, 20_000, 1, 1)
  assert np.isfinite(ratio).all()
  assert abs(ratio.mean() - 0.5) < 0.01
  assert abs(ratio.var() - 1 / 5.6) < 0.004
  draws = np.random.default_rng(1).beta(0.2, 0.2, 200_000)
  for level in (0.001, 0.01, 0.1, 0.3, 0.7, 0.9, 0.99):
    assert abs((ratio < level).mean() - (draws < level).mean()) < 0.015, level


def test_cutmix_leaves_one_box_of_the_example_and_the_rest_is_its_partner():
  mixed, ratio = cutmix(IMAGES, PARTNERS, KEYS)
  for i in range(B):
    is_left = (mixed[i] == IMAGES[i]).all(-1)
    np.testing.assert_array_equal(mixed[i], np.where(is_left[..., None], IMAGES[i], PARTNERS[i]))
    rows, columns = np.flatnonzero(is_left.any(1)), np.flatnonzero(is_left.any(0))
    if len(rows):
      np.testing.assert_array_equal(np.diff(rows), 1)
      np.testing.assert_array_equal(np.diff(columns), 1)
    assert is_left.sum() == len(rows) * len(columns)
    assert ratio[i] == pytest.approx(is_left.mean())


def test_the_ratio_of_cutmix_is_the_share_of_the_box():
  left, ratio = _many(cutmix, 2000)
  np.testing.assert_allclose(ratio, left.mean((1, 2)), atol=1e-6)
  assert set(np.unique(left)) == {0, 1}


def test_boxes_of_cutmix_are_distributed_as_in_the_authors_code():
  """Against a loop in NumPy: sqrt(1 - u) of both sides, halves rounded down, about a uniform pixel, clipped."""
  num, random = 20_000, np.random.default_rng(3)
  expected = np.zeros((num, 4))
  for i in range(num):
    side = np.sqrt(1 - random.uniform())
    for axis, size in enumerate((H, W)):
      centre, reach = random.integers(size), int(side * size) // 2
      expected[i, axis] = max(0, centre - reach)
      expected[i, 2 + axis] = min(size, centre + reach)
  areas = np.prod(expected[:, 2:] - expected[:, :2], axis=1) / (H * W)
  left, ratio = _many(cutmix, num)
  for level in (0.001, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9):
    assert abs((ratio < level).mean() - (areas < level).mean()) < 0.015, level
  rows, columns = np.arange(H)[:, None, None], np.arange(W)[:, None]
  seen = np.mean((rows >= expected[:, 0]) & (rows < expected[:, 2])
                 & (columns >= expected[:, 1]) & (columns < expected[:, 3]), axis=-1)
  np.testing.assert_allclose(left.mean(0), seen, atol=0.02)


def test_every_other_place_is_faded_and_those_between_have_a_box():
  mixed, ratio = half_and_half(IMAGES, PARTNERS, KEYS, PLACES)
  for start, mix in ((0, mixup), (1, cutmix)):
    expected, expected_ratio = mix(IMAGES, PARTNERS, KEYS)
    np.testing.assert_allclose(mixed[start::2], expected[start::2], atol=1e-4)
    np.testing.assert_allclose(ratio[start::2], expected_ratio[start::2], atol=1e-6)


@pytest.mark.parametrize('num_devices', [2, 4, 8])
def test_what_becomes_of_an_example_depends_on_no_other_and_on_no_device(num_devices):
  whole = half_and_half(IMAGES, PARTNERS, KEYS, PLACES)
  parts = [
    half_and_half(*part) for part in zip(*(np.split(x, num_devices) for x in (IMAGES, PARTNERS)),
                                         jnp.split(KEYS, num_devices), np.split(PLACES, num_devices), strict=True)]
  for part, expected in zip(zip(*parts, strict=True), whole, strict=True):
    np.testing.assert_array_equal(np.concatenate(part), expected)


@pytest.mark.parametrize('mix', MIX.values(), ids=MIX)
def test_to_normalise_before_is_to_normalise_after(mix):
  normalised = lambda image: (image - 255 * IMAGENET_MEAN) / (255 * IMAGENET_STD)
  before, ratio_before = mix(normalised(IMAGES), normalised(PARTNERS), KEYS)
  after, ratio_after = mix(IMAGES, PARTNERS, KEYS)
  np.testing.assert_allclose(before, normalised(after), atol=1e-5)
  np.testing.assert_array_equal(ratio_before, ratio_after)


@pytest.mark.parametrize('smoothing', [0.0, 0.1])
def test_two_weighted_losses_are_the_loss_against_the_mixed_smoothed_label(smoothing):
  num_classes = 5
  logits = RANDOM.normal(size=(B, num_classes)).astype(np.float32) * 3
  labels, partner_labels = RANDOM.integers(num_classes, size=(2, B))
  mask = np.array([1, 1, 0, 0.5, 1, 1, 1, 0], np.float32)
  ratio = np.array([0, 1, 0.3, 0.25, 0.5, 0.9, 0.01, 0.7], np.float32)
  pairs = [
    softmax_cross_entropy(logits, labels, mask * ratio, label_smoothing=smoothing),
    softmax_cross_entropy(logits, partner_labels, mask * (1 - ratio), label_smoothing=smoothing)]
  total, weight = (sum(parts) for parts in zip(*pairs, strict=True))
  one_hot = np.eye(num_classes)
  target = ratio[:, None] * one_hot[labels] + (1 - ratio[:, None]) * one_hot[partner_labels]
  target = (1 - smoothing) * target + smoothing / num_classes
  log_probs = logits - np.log(np.exp(np.float64(logits)).sum(-1, keepdims=True))
  np.testing.assert_allclose(total, -(mask[:, None] * target * log_probs).sum(), rtol=1e-6)
  np.testing.assert_allclose(weight, mask.sum(), rtol=1e-6)


@pytest.mark.parametrize('images, partners, keys, message', [
  (IMAGES, PARTNERS[:4], KEYS, r'not \[8, 12, 20, 3\], \[4, 12, 20, 3\] and \[8\]'),
  (IMAGES, PARTNERS, KEYS[:4], r'not \[8, 12, 20, 3\], \[8, 12, 20, 3\] and \[4\]'),
  (IMAGES[0], PARTNERS[0], KEYS, r'not \[12, 20, 3\], \[12, 20, 3\] and \[8\]'),
])
@pytest.mark.parametrize('mix', [mixup, cutmix, lambda *args: half_and_half(*args, PLACES)])
def test_shapes_that_do_not_fit_are_the_users_mistake(mix, images, partners, keys, message):
  with pytest.raises(AssertionError, match='shape'):
    mix(images, partners, keys)


def test_a_place_too_many_is_the_users_mistake():
  with pytest.raises(AssertionError, match='shape'):
    half_and_half(IMAGES, PARTNERS, KEYS, np.arange(9))
