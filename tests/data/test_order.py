"""Order and randomness are functions of their ids."""

import numpy as np
import pytest

from perceiver_jax.data.order import generator, order, shuffled


@pytest.mark.parametrize('num_examples', [1, 2, 22, 1000])
def test_each_epoch_visits_every_example_once(num_examples):
  for epoch in range(3):
    indices = order(7, epoch, num_examples)
    assert indices.dtype == np.int64
    np.testing.assert_array_equal(np.sort(indices), np.arange(num_examples))


def test_order_differs_by_seed_and_by_epoch():
  orders = [order(seed, epoch, 50).tolist() for seed in (0, 1) for epoch in (0, 1)]
  assert len(set(map(tuple, orders))) == 4


def test_a_cached_order_cannot_be_changed_by_its_reader():
  with pytest.raises(ValueError, match='read-only'):
    order(0, 0, 10)[0] = 3


def test_order_is_the_same_in_every_release():
  assert order(0, 0, 8).tolist() == [1, 5, 3, 7, 4, 2, 6, 0]
  assert generator('augment', 0, 5).bit_generator.random_raw() == 16840973502949634526


def test_a_shuffle_puts_every_element_everywhere_equally_often():
  places = np.stack([shuffled(4, 'test', trial) for trial in range(1000)])
  counts = np.stack([np.bincount(column, minlength=4) for column in places.T])
  assert np.abs(counts - 250).max() < 70  # five standard deviations


@pytest.mark.parametrize('others', [(1, 2), (1, 23), (12, 3), (1, 2, 3, 0), ('a', 1, 2, 3), (-1, 2, 3)])
def test_other_ids_give_other_numbers(others):
  assert not np.array_equal(generator(1, 2, 3).uniform(size=4), generator(*others).uniform(size=4))


def test_a_generator_does_not_depend_on_what_was_drawn_before():
  generator(0, 5).uniform(size=100)
  np.random.seed(3)
  first = generator(0, 5).uniform(size=4)
  np.testing.assert_array_equal(first, generator(0, 5).uniform(size=4))
  np.testing.assert_array_equal(first, generator(np.int64(0), np.int64(5)).uniform(size=4))
