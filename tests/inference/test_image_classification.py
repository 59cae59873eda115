"""What is in a picture: how it is cut, what is taken for one, and which classes are named."""

import numpy as np
import pytest
from PIL import Image

from perceiver_jax.data import labelled_images
from perceiver_jax.inference.image_classification import predict
from perceiver_jax.inference.model import as_image
from perceiver_jax.types import UserError
from tests.tasks.tiny import random_model, read_config

pytestmark = pytest.mark.usefixtures('quick_compilation')

RNG = np.random.default_rng(0)
PICTURE = RNG.integers(0, 256, (20, 30, 3), dtype=np.uint8)


@pytest.fixture(scope='module')
def model():
  """On pictures of 16 x 16 pixels, with 5 classes."""
  return random_model(read_config('imagenet:debug'))


def _view(model):
  return labelled_images.view(PICTURE, model.config.data)


# What is taken for a picture.


@pytest.mark.parametrize('image, expected', [
  (PICTURE, PICTURE),
  (PICTURE[..., 0], PICTURE[..., [0, 0, 0]]),
  (PICTURE[..., :1], PICTURE[..., [0, 0, 0]]),
  (np.dstack([PICTURE, PICTURE[..., 0]]), PICTURE),
  (Image.fromarray(PICTURE), PICTURE),
  (Image.fromarray(PICTURE[..., 0]), PICTURE[..., [0, 0, 0]]),
  (Image.fromarray(np.dstack([PICTURE, PICTURE[..., 0]])), PICTURE),
  (Image.fromarray(PICTURE[..., :2], 'LA'), PICTURE[..., [0, 0, 0]]),
  (Image.fromarray(PICTURE // 128 * 255).quantize(8), PICTURE // 128 * 255),
  (Image.fromarray(PICTURE[..., 0] > 127), (PICTURE[..., [0, 0, 0]] > 127) * 255),
  (Image.fromarray(PICTURE[..., 0].astype(np.uint16) * 257), PICTURE[..., [0, 0, 0]]),
], ids=['array', 'grey', 'one channel', 'transparent', 'pil', 'pil grey', 'pil transparent',
        'pil grey transparent', 'pil palette', 'pil black and white', 'pil 16 bits'])
def test_pictures_of_every_kind_become_red_green_and_blue(image, expected):
  found = as_image(image, 'an image')
  assert found.dtype == np.uint8
  np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize('image, message', [
  (np.zeros((8, 8, 3), np.float32), r'an image is uint8, 0 to 255, not float32: multiply by 255'),
  (np.zeros((8, 8, 3), int), r'not int64'),
  (np.zeros((8, 8), np.uint16), r'not uint16'),
  (np.zeros((8, 8, 3), bool), r'not bool'),
  (Image.fromarray(np.zeros((8, 8), np.float32)), r"mode 'F' has no range"),
  (np.zeros((3, 8, 8), np.uint8), r'an image is \[height, width, 3\], not \[3, 8, 8\]'),
  (np.zeros((1, 8, 8, 3), np.uint8), r'not \[1, 8, 8, 3\]'),
  (np.zeros(8, np.uint8), r'not \[8\]'),
  (np.zeros((0, 8, 3), np.uint8), r'not \[0, 8, 3\]'),
  (None, r'not \[\]'),
  ('dog.png', 'cannot read dog.png'),
])
def test_what_is_no_picture_is_the_users_mistake(model, image, message):
  with pytest.raises(UserError, match=message):
    predict(model, image)


# What is said of it.


def test_the_most_probable_classes_come_first(model):
  found = predict(model, PICTURE, top_k=5)
  logits = model.run({'image': _view(model)[None]})['logits'][0].astype(float)
  expected = np.exp(logits) / np.exp(logits).sum()
  np.testing.assert_array_equal(found.indices, np.argsort(-expected))
  np.testing.assert_allclose(found.probabilities, np.sort(expected)[::-1], rtol=1e-5)
  assert found.names == tuple(f'class {i}' for i in found.indices)
  assert found.captured is None
  np.testing.assert_array_equal(found.image, _view(model))


def test_as_many_classes_are_named_as_are_asked_for(model):
  whole = predict(model, PICTURE, top_k=99)
  assert len(whole.names) == len(whole.probabilities) == len(whole.indices) == 5
  assert predict(model, PICTURE, top_k=2).names == whole.names[:2]
  assert predict(model, PICTURE).names == whole.names


def test_classes_have_the_names_that_are_given(model):
  names = tuple('abcde')
  found = predict(model, PICTURE, class_names=names)
  assert found.names == tuple(names[i] for i in found.indices)


@pytest.mark.parametrize('options, message', [
  ({'top_k': 0}, 'top_k is 0; it must be at least 1'),
  ({'class_names': ('a', 'b')}, 'there are 2 class_names, but the model has 5 classes'),
  ({'class_names': ()}, 'there are 0 class_names'),
])
def test_another_number_of_names_is_the_users_mistake(model, options, message):
  with pytest.raises(UserError, match=message):
    predict(model, PICTURE, **options)


def test_a_model_of_grey_pictures_sees_them_as_itu_r_601_says():
  model = random_model(read_config('digits:debug'))
  colours = RNG.integers(0, 256, (8, 8, 3), dtype=np.uint8)
  found = predict(model, colours)
  assert found.image.shape == (8, 8, 1)
  assert np.abs(found.image[..., 0] - colours @ np.array([0.299, 0.587, 0.114])).max() < 0.51
  np.testing.assert_array_equal(predict(model, found.image[..., 0]).image, found.image)


def test_attention_comes_if_it_is_asked_for(model):
  found = predict(model, PICTURE, capture=True)
  assert found.captured['cross_attends'].shape == (1, 1, 1, 4, 256)
  np.testing.assert_allclose(found.probabilities, predict(model, PICTURE).probabilities, rtol=1e-5)


@pytest.mark.parametrize('variant, batch, message', [
  ('debug', {'image': np.zeros((1, 16, 16, 1), np.uint8)},
   r'image is \[batch, height, width, 3\], not \[1, 16, 16, 1\]'),
  ('debug', {'image': np.zeros((16, 16, 3), np.uint8)}, r'not \[16, 16, 3\]'),
  ('learned,debug', {'image': np.zeros((1, 16, 17, 3), np.uint8)},
   r'image is \[batch, 16, 16, 3\], not \[1, 16, 17, 3\]'),
  ('debug', {'image': np.zeros((1, 16, 16, 3), np.uint8), 'valid': np.ones((1, 16, 16))},
   r'do not fit .*valid \[1, 16, 16\].*expected \(1, 256\)'),
  ('debug', {'label': np.zeros(1, np.int32)}, "no input 'label'; it takes image"),
  ('debug', {}, 'image is missing: the batch has nothing'),
])
def test_another_batch_is_the_users_mistake(variant, batch, message):
  with pytest.raises(UserError, match=message):
    random_model(read_config(f'imagenet:{variant}')).run(batch)


def test_bands_of_positions_take_pictures_of_any_size(model):
  assert model.run({'image': np.zeros((2, 9, 30, 3), np.uint8)})['logits'].shape == (2, 5)
