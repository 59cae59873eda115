"""Digits on a canvas: every place, the same places always, and nothing of the digit lost."""

import itertools

import numpy as np
import pytest
from ml_collections import ConfigDict

from perceiver_jax.data import digits, placed_digits
from perceiver_jax.data.order import generator
from perceiver_jax.types import UserError


def config(image_size=20, num_classes=10):
  return ConfigDict({'image_size': image_size, 'num_channels': 1, 'num_classes': num_classes})


def test_each_digit_is_there_ten_times_and_in_one_split_alone():
  splits = {
    split: placed_digits.load(config(), split, is_training=False).source for split in ('train', 'validation', 'test')}
  assert {split: len(source) for split, source in splits.items()} == {'train': 12590, 'validation': 1790, 'test': 3590}
  names = [source.name(index) for source in splits.values() for index in range(len(source))]
  assert len(set(names)) == len(names)
  files = [{name.partition(' ')[0] for name in map(source.name, range(len(source)))} for source in splits.values()]
  assert not files[0] & files[1] and not files[0] & files[2] and not files[1] & files[2]


def test_records_of_one_digit_differ_in_their_places_and_these_never_change():
  source = placed_digits.load(config(), 'test', is_training=False).source
  records = [source[index] for index in range(0, len(source), 359)]
  assert all((record['digit'] == records[0]['digit']).all() for record in records)
  places = [tuple(record['place'].tolist()) for record in records]
  assert places == [(8, 6), (5, 2), (0, 0), (7, 3), (8, 2), (3, 3), (1, 3), (0, 6), (6, 2), (3, 8)]


def test_a_digit_is_drawn_in_its_place_and_the_rest_is_paper():
  source = placed_digits.load(config(), 'test', is_training=False).source
  image = placed_digits.draw(source[0]['digit'], np.array([2, 5]), 20)
  assert (image.shape, image.dtype) == ((20, 20, 1), np.uint8)
  inside = image[2:14, 5:17].copy()
  image[2:14, 5:17] = 0
  assert not image.any()
  assert inside.mean() == pytest.approx(source[0]['digit'].mean(), abs=4)


def test_every_place_is_met_in_training_and_none_beyond():
  source = placed_digits.load(config(), 'train', is_training=False).source
  example = {**source[0], 'digit': np.full((8, 8, 1), 255, np.uint8)}
  prepare = placed_digits.load(config(), 'train', is_training=True).prepare
  met = set()
  for index in range(1500):
    image = prepare(example, random=generator('augment', 0, index), position=index, step=0)['image']
    rows, columns = np.nonzero(image[..., 0] > 127)
    met.add((round(rows.mean() - 5.5), round(columns.mean() - 5.5)))
  assert met >= set(itertools.product(range(9), range(9)))  # and, as digits are shifted too, a pixel around
  assert min(min(place) for place in met) >= -1 and max(max(place) for place in met) <= 9


def test_augmentation_is_a_function_of_its_generator_and_changes_no_record():
  source = placed_digits.load(config(), 'train', is_training=False).source
  example = source[3]
  prepare = placed_digits.load(config(), 'train', is_training=True).prepare
  one, again, other = (
    prepare(example, random=generator('augment', seed, 3), position=3, step=0)['image'] for seed in (0, 0, 1))
  assert (one == again).all() and (one != other).any()
  assert (example['digit'] == source[3]['digit']).all() and (example['place'] == source[3]['place']).all()


def test_a_smaller_image_is_the_mean_of_its_pixels():
  record = placed_digits.load(config(), 'test', is_training=False).source[7]
  small, large = (placed_digits.draw(record['digit'], record['place'], size).astype(float) for size in (10, 20))
  np.testing.assert_allclose(small[..., 0], large.reshape(10, 2, 10, 2).mean((1, 3)), atol=0.51)


@pytest.mark.parametrize('size', [0, 21])
def test_a_canvas_of_another_size_is_refused(size):
  with pytest.raises(UserError, match=f'not {size}.*--config.data.image_size=20'):
    placed_digits.load(config(size), 'train', is_training=False)


def test_another_split_or_number_of_classes_is_refused_as_of_the_digits():
  with pytest.raises(UserError, match='train, validation, test'):
    placed_digits.load(config(), 'trian', is_training=False)
  with pytest.raises(UserError, match='10 classes'):
    placed_digits.load(config(num_classes=5), 'test', is_training=False)
  assert placed_digits.load(config(), 'test', is_training=False).class_names == digits.CLASS_NAMES
