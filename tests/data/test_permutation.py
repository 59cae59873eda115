"""One permutation of pixels for all images."""

import numpy as np
import pytest

from perceiver_jax.data.permutation import permutation, permute_pixels


def test_a_permutation_moves_every_pixel_to_one_place():
  pixels = permutation(64)
  assert pixels.dtype == np.int64
  np.testing.assert_array_equal(np.sort(pixels), np.arange(64))
  assert (pixels != np.arange(64)).mean() > 0.9


def test_a_permutation_depends_on_its_seed_alone():
  np.testing.assert_array_equal(permutation(64), permutation(64, seed=0))
  assert not np.array_equal(permutation(64), permutation(64, seed=1))
  assert permutation(9).tolist() == [4, 3, 0, 2, 7, 1, 8, 5, 6]


def test_output_pixel_m_is_input_pixel_order_m_counted_row_by_row():
  image = np.arange(2 * 3 * 2).reshape(2, 3, 2)
  pixels = np.array([5, 0, 1, 2, 3, 4])
  permuted = permute_pixels(image, pixels)
  assert permuted.shape == image.shape
  assert permuted[0, 0].tolist() == image[1, 2].tolist()
  assert permuted[0, 1].tolist() == image[0, 0].tolist()
  assert permuted[1, 0].tolist() == image[0, 2].tolist()


def test_a_batch_is_permuted_image_by_image():
  images = np.random.default_rng(0).integers(0, 256, (5, 4, 3, 1), np.uint8)
  pixels = permutation(12)
  batch = permute_pixels(images, pixels)
  np.testing.assert_array_equal(batch, np.stack([permute_pixels(image, pixels) for image in images]))
  assert batch.dtype == np.uint8


def test_the_inverse_permutation_restores_the_image():
  image = np.random.default_rng(0).integers(0, 256, (4, 4, 3), np.uint8)
  pixels = permutation(16)
  np.testing.assert_array_equal(permute_pixels(permute_pixels(image, pixels), np.argsort(pixels)), image)


def test_a_permutation_for_another_size_is_refused():
  with pytest.raises((ValueError, IndexError)):
    permute_pixels(np.zeros((4, 4, 1)), permutation(9))
  with pytest.raises((ValueError, IndexError)):
    permute_pixels(np.zeros((4, 4, 1)), permutation(25))
