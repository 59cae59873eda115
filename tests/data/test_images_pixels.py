"""Pixels of a person's own images: odd encodings, sizes, augmentation."""

import io
import subprocess
import sys

import numpy as np
import PIL.Image
import pytest

from perceiver_jax.data import images
from perceiver_jax.data.order import generator
from perceiver_jax.data.tfds_images import decode


def _picture(height=12, width=16):
  """A smooth RGB picture, redder to the right and greener downwards, which JPEG changes little."""
  red = np.linspace(20, 220, width)[None, :] + np.zeros((height, 1))
  green = np.linspace(20, 220, height)[:, None] + np.zeros((1, width))
  return np.stack([red, green, np.zeros((height, width))], -1).round().astype(np.uint8)


def _encoded(mode='RGB', picture=None, **settings):
  file = io.BytesIO()
  picture = PIL.Image.fromarray(_picture() if picture is None else picture)
  picture.convert(mode).save(file, 'JPEG', quality=95, **settings)
  return file.getvalue()


def test_colours_come_as_red_green_blue():
  red, green, blue = decode(_encoded(picture=np.full((8, 8, 3), [250, 120, 10], np.uint8)), 3)[4, 4].astype(int)
  assert red > 200 > green > 50 > blue


def test_a_gray_jpeg_becomes_rgb_and_a_coloured_one_gray():
  gray = decode(_encoded('L'), 3)
  assert gray.shape == (12, 16, 3)
  np.testing.assert_array_equal(gray[..., 0], gray[..., 2])
  luminance = _picture() @ np.array([0.299, 0.587, 0.114])
  assert np.abs(gray[..., 0] - luminance).mean() < 3
  assert np.abs(decode(_encoded(), 1)[..., 0] - luminance).mean() < 3


def test_a_cmyk_jpeg_is_read_in_its_colours():
  image = decode(_encoded('CMYK'), 3)
  assert np.abs(image.astype(int) - _picture()).mean() < 4
  assert decode(_encoded('CMYK'), 1).shape == (12, 16, 1)


@pytest.mark.parametrize('num_channels', [1, 3])
def test_a_rotation_noted_in_exif_is_not_applied(num_channels):
  exif = PIL.Image.Exif()
  exif[0x0112] = 6
  rotated, plain = (decode(data, num_channels) for data in (_encoded(exif=exif), _encoded()))
  np.testing.assert_array_equal(rotated, plain)
  assert rotated.shape == (12, 16, num_channels)


@pytest.mark.parametrize('data', [b'', b'\xff\xd8\xff', b'<html>not found</html>', _encoded()[:300]])
def test_a_broken_image_is_a_value_error(data):
  with pytest.raises(ValueError, match=r'broken|refuses'):
    decode(data, 3)


def _header_only(size):
  """Less than a kilobyte of JPEG that claims to hold size x size pixels."""
  data = _encoded(picture=np.zeros((8, 8, 3), np.uint8))
  place = data.index(b'\xff\xc0') + 5
  return data[:place] + size.to_bytes(2, 'big') * 2 + data[place + 4:]


def test_an_image_too_large_for_memory_is_a_value_error():
  with pytest.raises(ValueError, match='refuses it'):
    decode(_header_only(40_000), 3)


@pytest.mark.slow
def test_an_image_of_more_than_2_to_the_27_pixels_is_refused_before_it_is_decoded():
  """In a process of its own: OpenCV takes the limit that it finds when it is first imported."""
  program = f'from perceiver_jax.data.tfds_images import decode; decode({_header_only(12_000)!r}, 3)'
  result = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True, timeout=300)
  assert 'ValueError: OpenCV refuses it: pixels <= CV_IO_MAX_IMAGE_PIXELS' in result.stderr


@pytest.mark.parametrize('height, width', [(12, 16), (16, 12), (8, 8), (5, 9), (300, 200), (1, 7)])
@pytest.mark.parametrize('num_channels', [1, 3])
def test_every_size_is_fitted(height, width, num_channels):
  fitted = images.fit(_picture(height, width)[..., :num_channels], 8)
  assert (fitted.shape, fitted.dtype) == ((8, 8, num_channels), np.uint8)


def test_the_centre_is_kept_and_averaged():
  picture = np.zeros((4, 8, 1), np.uint8)
  picture[:2, 2:4] = 100
  picture[:2, 4:6] = [[[40], [80]], [[0], [120]]]
  picture[:, [0, 1, 6, 7]] = 255  # outside the central square
  assert images.fit(picture, 2)[..., 0].tolist() == [[100, 60], [0, 0]]
  np.testing.assert_array_equal(images.fit(picture, 4), picture[:, 2:6])


def test_augmentation_shows_a_part_of_the_image_the_right_way_round():
  picture = images.fit(_picture(64, 64), 32)
  widths = []
  for index in range(200):
    augmented = images.augment(picture, generator(index))
    image = augmented.astype(int)
    assert (augmented.shape, augmented.dtype) == ((32, 32, 3), np.uint8)
    assert np.diff(image[..., 0], axis=1).min() >= 0  # still redder to the right: not flipped
    assert np.diff(image[..., 1], axis=0).min() >= 0
    assert image[0, 0, 0] >= 20 and image[0, -1, 0] <= 220  # no border came in
    widths.append((image[0, -1, 0] - image[0, 0, 0]) / 200)
  assert 0.75 < min(widths) < 0.82
  assert 0.95 < max(widths) < 1
  np.testing.assert_array_equal(picture, images.fit(_picture(64, 64), 32))


def test_augmentation_takes_the_part_that_it_drew_to_a_fraction_of_a_pixel():
  picture = _picture(32, 32)
  for index in range(30):
    scale, left, top = generator(index).uniform((0.8, 0, 0), 1)
    image = images.augment(picture, generator(index)).astype(float)
    middle = (image[..., :2].mean((0, 1)) - 20) * 31 / 200  # in pixels: both colours are ramps of 200 over 31 pixels
    room = 32 * (1 - scale)
    expected = np.array([left, top]) * room + 32 * scale / 2 - 0.5
    np.testing.assert_allclose(middle, expected, atol=0.06)


def test_augmentation_keeps_gray_images_gray():
  assert images.augment(_picture(16, 16)[..., :1], generator(0)).shape == (16, 16, 1)
