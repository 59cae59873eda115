"""The split that data sets share, and records in memory."""

import itertools

import numpy as np
import pytest

from perceiver_jax import types
from perceiver_jax.data.dataset import ArraySource, choose, stratified_split


def _names(num_records):
  return [f'cat/{index}.jpg' for index in range(num_records)]


def test_a_split_is_70_10_20_within_each_class_disjoint_and_complete():
  labels = np.repeat([0, 1], [100, 30])
  splits = stratified_split(labels, _names(130), ['cat', 'dog'])
  counts = {split: np.bincount(labels[indices]).tolist() for split, indices in splits.items()}
  assert counts == {'train': [70, 21], 'validation': [10, 3], 'test': [20, 6]}
  assert sorted(itertools.chain(*splits.values())) == list(range(130))


@pytest.mark.parametrize('size, counts', [(3, [1, 1, 1]), (4, [2, 1, 1]), (7, [5, 1, 1]), (8, [5, 1, 2])])
def test_every_split_has_an_example_of_a_small_class(size, counts):
  splits = stratified_split([0] * size, _names(size), ['cat'])
  assert [len(splits[split]) for split in ('train', 'validation', 'test')] == counts


def test_a_split_depends_on_names_and_not_on_their_order():
  names, labels = _names(60), [index % 3 for index in range(60)]
  splits = stratified_split(labels, names, ['a', 'b', 'c'])
  shuffle = np.random.default_rng(0).permutation(60)
  again = stratified_split([labels[index] for index in shuffle], [names[index] for index in shuffle], ['a', 'b', 'c'])
  for split, indices in splits.items():
    assert [names[index] for index in indices] == [names[shuffle[index]] for index in again[split]]


def test_a_record_added_later_moves_few_others():
  before = stratified_split([0] * 200, _names(200), ['cat'])
  after = stratified_split([0] * 201, _names(201), ['cat'])
  assert len(set(before['test']) ^ set(after['test'])) <= 2
  assert len(set(before['train']) - set(after['train'])) <= 2


def test_the_classes_come_mixed():
  labels = np.repeat(np.arange(4), 50)
  splits = stratified_split(labels, _names(200), ['a', 'b', 'c', 'd'])
  assert len(set(labels[splits['test'][:16]])) == 4


@pytest.mark.parametrize('labels, message', [
    ([0, 0, 0, 1, 1], "Class 'dog' has 2 images; .* at least 3"), ([0, 0, 0], "Class 'dog' has 0 images")])
def test_a_class_too_small_to_split_is_named(labels, message):
  with pytest.raises(types.UserError, match=message):
    stratified_split(labels, _names(len(labels)), ['cat', 'dog'])


def test_a_name_that_is_not_utf_8_is_ranked_like_any_other():
  splits = stratified_split([0] * 3, ['a', 'b', 'c\udcff'], ['cat'])
  assert sorted(itertools.chain(*splits.values())) == [0, 1, 2]


def test_an_unknown_split_is_answered_with_the_list():
  with pytest.raises(types.UserError, match="no split 'valid'; the splits are train, test"):
    choose({'train': 1, 'test': 2}, 'valid')


def test_records_in_memory_have_their_names():
  source = ArraySource(np.zeros((2, 4, 4, 1), np.uint8), np.array([7, 8], np.int32), ['x', 'y'])
  assert len(source) == 2
  assert (source.name(1), int(source[1]['label'])) == ('y', 8)
  assert source[1]['image'].shape == (4, 4, 1)
