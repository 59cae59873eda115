"""One fixed permutation of the pixels of every image: permuted ImageNet (Jaegle et al. 2021, arXiv 2103.03206, 4.1)."""

import numpy as np

from perceiver_jax.data import order


def permutation(num_pixels: int, seed: int = 0) -> np.ndarray:
  """Returns a permutation of the pixels, int64 [M], shared by all images; the same in every NumPy release."""
  return order.shuffled(num_pixels, 'permutation', seed)


def permute_pixels(image: np.ndarray, pixels: np.ndarray) -> np.ndarray:
  """Returns the image with its pixels moved: output pixel m is input pixel pixels[m], both counted row by row.

  Args:
    image: [..., H, W, C], any dtype.
    pixels: int64 [H * W], from `permutation`.
  """
  *leading, height, width, channels = image.shape
  flat = image.reshape(*leading, height * width, channels)
  return flat[..., pixels, :].reshape(image.shape)
