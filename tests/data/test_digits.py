"""The digits, their split, and what augmentation may do to them."""

import numpy as np
import pytest
from ml_collections import ConfigDict
from sklearn import datasets

from perceiver_jax import types
from perceiver_jax.data import digits
from perceiver_jax.data.order import generator

CONFIG = ConfigDict({'name': 'digits', 'num_classes': 10})


@pytest.fixture(scope='module')
def splits():
  return {split: digits.records(CONFIG, split) for split in ('train', 'validation', 'test')}


def test_the_split_is_fixed_disjoint_and_complete(splits):
  assert {split: len(source) for split, source in splits.items()} == {'train': 1259, 'validation': 179, 'test': 359}
  names = [source.name(index) for source in splits.values() for index in range(len(source))]
  assert sorted(names) == sorted(f'digits/{index}' for index in range(1797))
  assert splits['test'].names[:4] == ['digits/1658', 'digits/1697', 'digits/859', 'digits/729']


def test_each_class_has_its_share_of_each_split(splits):
  counts = {split: np.bincount(source.labels, minlength=10) for split, source in splits.items()}
  total = sum(counts.values())
  for split, share in [('train', 0.7), ('validation', 0.1), ('test', 0.2)]:
    assert np.abs(counts[split] - share * total).max() <= 1


def test_a_record_is_the_image_and_the_label_of_its_name(splits):
  original = datasets.load_digits()
  for source in splits.values():
    for index in range(0, len(source), 50):
      place = int(source.name(index).removeprefix('digits/'))
      example = source[index]
      assert (example['image'].shape, example['image'].dtype) == ((8, 8, 1), np.uint8)
      assert (example['label'].shape, example['label'].dtype) == ((), np.int32)
      np.testing.assert_allclose(example['image'][..., 0] / 255 * 16, original.images[place], atol=0.05)
      assert example['label'] == original.target[place]


def test_brightness_fills_its_range(splits):
  assert (splits['train'].images.min(), splits['train'].images.max()) == (0, 255)


def test_the_record_in_the_docstring_is_the_first_of_train(splits):
  for row in splits['train'][0]['image'][..., 0]:
    assert ' '.join('..' if pixel == 0 else f'{pixel:02x}' for pixel in row) in digits.__doc__
  assert splits['train'].name(0) in digits.__doc__
  assert f'label {splits["train"][0]["label"]}' in digits.__doc__


def test_an_unknown_split_and_a_wrong_number_of_classes_are_refused():
  with pytest.raises(types.UserError, match="no split 'dev'; the splits are train, validation, test"):
    digits.records(CONFIG, 'dev')
  with pytest.raises(types.UserError, match='10 classes, not 5'):
    digits.records(ConfigDict({'num_classes': 5}), 'train')


def test_augmentation_keeps_shape_and_source(splits):
  example = splits['train'][3]
  before = example['image'].copy()
  augmented = digits.augment(example['image'], generator(0))
  assert (augmented.shape, augmented.dtype) == ((8, 8, 1), np.uint8)
  assert not np.array_equal(augmented, before)
  np.testing.assert_array_equal(splits['train'][3]['image'], before)


def test_augmentation_depends_on_its_generator_alone(splits):
  example = splits['train'][3]
  first = digits.augment(example['image'], generator(0))
  np.testing.assert_array_equal(first, digits.augment(example['image'], generator(0)))
  assert not np.array_equal(first, digits.augment(example['image'], generator(1)))


def test_an_augmented_digit_stays_close_to_itself_and_far_from_its_mirror_image(splits):
  """A digit that moved by a pixel at most resembles itself more than it resembles itself flipped."""
  source = splits['train']
  closer = 0
  for index in range(200):
    image = source[index]['image'].astype(float)
    augmented = digits.augment(source[index]['image'], generator(index)).astype(float)
    closer += np.abs(augmented - image).mean() < np.abs(augmented - image[:, ::-1]).mean()
    assert 0.75 < augmented.sum() / image.sum() < 1.25
  assert closer > 180
