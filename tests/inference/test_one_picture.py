"""Law 9: training, evaluation and predict see one picture, whoever made the file and by whatever way it comes."""

import io

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from perceiver_jax.data import images, labelled_images
from perceiver_jax.data.files import pixels
from perceiver_jax.inference.image_classification import predict
from tests.tasks.tiny import random_model, read_config

pytestmark = pytest.mark.usefixtures('quick_compilation')

RNG = np.random.default_rng(0)
COARSE = RNG.integers(0, 256, (6, 8, 3), dtype=np.uint8)
PICTURE = np.asarray(Image.fromarray(COARSE).resize((40, 30), Image.Resampling.BICUBIC))  # smooth, as photographs are


def _image(mode):
  """PICTURE in a mode of Pillow's; transparent to the left where the mode knows that."""
  image = Image.fromarray(PICTURE)
  if mode in ('RGBA', 'LA'):
    image = image.convert(mode)
    image.putalpha(Image.fromarray(np.repeat(np.uint8([[0] * 20 + [255] * 20]), 30, 0)))
    return image
  if mode == 'I;16':
    return Image.fromarray(np.asarray(image.convert('L')).astype(np.uint16) * 257)
  if mode == 'P transparent':
    image = image.quantize(16)
    image.info['transparency'] = 3
    return image
  return image.convert(mode)


KINDS = [
  ('a.png', 'RGB'), ('a.png', 'L'), ('a.png', 'RGBA'), ('a.png', 'LA'), ('a.png', 'P'), ('a.png', '1'),
  ('a.png', 'I;16'),
  ('a.png', 'P transparent'), ('a.jpg', 'RGB'), ('a.jpg', 'L'), ('a.jpg', 'CMYK'), ('a.jfif', 'RGB'), ('a.JPEG', 'RGB'),
  ('a.gif', 'P'), ('a.gif', 'P transparent'), ('a.tif', 'RGB'), ('a.tif', 'RGBA'), ('a.tiff', 'I;16'),
  ('a.webp', 'RGB'),
  ('a.webp', 'RGBA'), ('a.bmp', 'RGB'), ('a.ppm', 'RGB'), ('a.avif', 'RGB'), ('a.tga', 'RGB'), ('a.jp2', 'RGB'),
]


def _set(tmp_path, name, mode, num_channels, orientation=None, **changes):
  """A folder of one class whose test split is one file, as the mode and the name say; its config and the file."""
  for split in ('train', 'validation', 'test'):
    path = tmp_path / split / 'thing' / name
    path.parent.mkdir(parents=True)
    exif = Image.Exif()                     # of its own: to save AVIF takes the orientation out of it
    if orientation:
      exif[274] = orientation
    _image(mode).save(path, **({'exif': exif} if orientation else {}))
  config = read_config('images:debug', **{
    'data.path': str(tmp_path), 'data.num_classes': 1, 'data.image_size': 8, 'data.num_channels': num_channels,
    **changes})
  return config, path


def _evaluated(config):
  dataset = labelled_images.load(config.data, 'test', is_training=False)
  return dataset.prepare(dataset.source[0], random=np.random.default_rng(0), position=0, step=0)['image']


@pytest.mark.parametrize('num_channels', [1, 3])
@pytest.mark.parametrize('name, mode', KINDS)
def test_evaluation_predict_by_path_by_pil_and_by_array_see_the_same(tmp_path, name, mode, num_channels):
  config, path = _set(tmp_path, name, mode, num_channels)
  expected = _evaluated(config)
  model = random_model(config)
  with Image.open(path) as image:
    for given in (str(path), path, image, pixels(image)):
      np.testing.assert_array_equal(predict(model, given).image, expected)
  assert expected.shape == (8, 8, num_channels)
  if num_channels == 3 and mode in ('RGB', 'CMYK'):
    assert np.abs(expected.astype(int) - images.fit(PICTURE, 8)).mean() < 12


@pytest.mark.parametrize('orientation', range(1, 9))
@pytest.mark.parametrize('name', ['a.jpg', 'a.png', 'a.webp', 'a.tif', 'a.avif'])
def test_pictures_are_upright_everywhere(tmp_path, name, orientation):
  config, path = _set(tmp_path, name, 'RGB', 3, orientation)
  upright = {
    1: PICTURE, 2: PICTURE[:, ::-1], 3: PICTURE[::-1, ::-1], 4: PICTURE[::-1], 5: PICTURE.swapaxes(0, 1),
    6: np.rot90(PICTURE, -1), 7: np.rot90(PICTURE, 2).swapaxes(0, 1), 8: np.rot90(PICTURE)}[orientation]
  expected = _evaluated(config)
  assert np.abs(expected.astype(int) - images.fit(np.ascontiguousarray(upright), 8)).mean() < 6
  model = random_model(config)
  np.testing.assert_array_equal(predict(model, path).image, expected)
  with Image.open(path) as image:
    np.testing.assert_array_equal(predict(model, image).image, expected)


@pytest.mark.parametrize('permutation', ['joint', 'pixels'])
def test_what_a_model_of_moved_pixels_sees_is_moved(tmp_path, permutation):
  config, path = _set(tmp_path, 'a.png', 'RGB', 3, **{'data.permutation': permutation})
  expected = _evaluated(config)
  np.testing.assert_array_equal(predict(random_model(config), path).image, expected)
  assert (expected != images.fit(PICTURE, 8)).any()
  assert sorted(expected.reshape(-1, 3).tolist()) == sorted(images.fit(PICTURE, 8).reshape(-1, 3).tolist())


def test_nothing_of_the_border_is_cut_off_where_training_sees_it(tmp_path):
  """A thin frame may be what tells two classes apart."""
  framed = np.full((64, 64, 3), 128, np.uint8)
  framed[[0, -1]], framed[:, [0, -1]] = 255, 255
  config, path = _set(tmp_path, 'a.png', 'RGB', 3, **{'data.image_size': 64})
  Image.fromarray(framed).save(path)
  np.testing.assert_array_equal(predict(random_model(config), path).image, framed)


@pytest.mark.parametrize('name', ['digits', 'placed_digits'])
def test_a_digit_of_the_set_comes_back_as_it_is(name):
  config = read_config(f'{name}:debug')
  expected = _evaluated(config)
  given = labelled_images.view(expected, ConfigDict({**config.data.to_dict(), 'permutation': 'none'}))
  np.testing.assert_array_equal(given, expected)


@pytest.mark.parametrize('most, is_refused', [(0, False), (1, True), (4095, True), (4096, False), (65535, False)])
def test_sixteen_bits_of_which_twelve_are_used_are_refused_by_path_and_by_pil(tmp_path, most, is_refused):
  config, path = _set(tmp_path, 'a.png', 'I;16', 3)
  Image.fromarray(np.full((30, 40), most, np.uint16)).save(path)
  model = random_model(config)
  with Image.open(path) as image:
    for given in (path, image):
      if is_refused:
        with pytest.raises(Exception, match=f'the brightest of its pixels is {most} of 65,535.*save it with 8 bits'):
          predict(model, given)
      else:
        assert predict(model, given).image.max() == most >> 8


def test_a_file_without_a_name_serves_too():
  file = io.BytesIO()
  Image.fromarray(PICTURE).save(file, 'png')
  np.testing.assert_array_equal(pixels(Image.open(file)), PICTURE)
