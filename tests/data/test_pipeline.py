"""Batches depend on the step alone; every record keeps its place; mistakes name the record."""

import itertools
import logging
import subprocess
import sys
import threading

import numpy as np
import pytest

from perceiver_jax import types
from perceiver_jax.data import pipeline
from perceiver_jax.data.dataset import ArraySource, Dataset
from perceiver_jax.data.order import order

SPEC = {'image': types.Field((2, 3, 1), 'uint8'), 'label': types.Field((), 'int32')}


def _source(num_examples, prefix='record'):
  """Record i is filled with i + 1, so that none looks like padding."""
  labels = np.arange(1, num_examples + 1, dtype=np.int32)
  images = np.broadcast_to(labels.astype(np.uint8)[:, None, None, None], (num_examples, 2, 3, 1))
  return ArraySource(images, labels, [f'{prefix}/{index}' for index in range(num_examples)])


class _Damaged(ArraySource):
  """Records at odd places raise what a broken file would."""

  def __getitem__(self, index):
    if index % 2:
      raise (OSError if index % 4 == 1 else ValueError)('half of it is missing')
    return super().__getitem__(index)


def _damaged(num_examples, prefix):
  return _Damaged(**vars(_source(num_examples, prefix)))


def _add_noise(example, generator):
  noise = generator.integers(0, 100, example['image'].shape, np.uint8)
  return {**example, 'image': example['image'] + noise}


def _dataset(source, spec, change):
  def prepare(record, *, random, position, step):
    return record if change is None else change(record, random)

  return Dataset(source, spec, prepare)


def _train_batches(source, spec, *, augment=None, **settings):
  return pipeline.batches(_dataset(source, spec, augment), 'train', is_training=True, **settings)


def _eval_batches(source, spec, *, view=None, **settings):
  change = None if view is None else lambda record, random: view(record)
  return pipeline.batches(_dataset(source, spec, change), 'test', is_training=False, **settings)


def _train(source, num_steps, **settings):
  batches = _train_batches(source, SPEC, **{'batch_size': 4, 'seed': 0, **settings})
  try:
    return list(itertools.islice(batches, num_steps))
  finally:
    batches.close()


def _assert_same(first, second):
  assert len(first) == len(second)
  for one, other in zip(first, second, strict=True):
    assert one.keys() == other.keys()
    for name in one:
      np.testing.assert_array_equal(one[name], other[name])
      assert one[name].dtype == other[name].dtype


@pytest.mark.parametrize('num_parts', [2, 4])
def test_parts_of_a_batch_made_apart_are_the_batch_and_read_nothing_else(num_parts):
  source, size, read = _source(11), 8 // num_parts, []

  class Watched(ArraySource):
    def __getitem__(self, index):
      read.append(index)
      return super().__getitem__(index)

  whole = _train(source, 5, batch_size=8, augment=_add_noise)
  once = list(_eval_batches(source, SPEC, batch_size=8))
  for start in range(0, 8, size):
    rows = slice(start, start + size)
    _assert_same(_train(source, 5, batch_size=8, augment=_add_noise, rows=rows), _rows(whole, rows))
    _assert_same(list(_eval_batches(source, SPEC, batch_size=8, rows=rows)), _rows(once, rows))
  list(_eval_batches(Watched(**vars(source)), SPEC, batch_size=8, rows=slice(0, size)))
  assert sorted(read) == [*range(size), *range(8, min(8 + size, 11))]


def _rows(batches, rows):
  return [{name: x[rows] for name, x in batch.items()} for batch in batches]



def test_an_evaluation_of_22_in_batches_of_8_counts_22():
  batches = list(_eval_batches(_source(22), SPEC, batch_size=8))
  assert [batch['mask'].tolist() for batch in batches] == [[1] * 8, [1] * 8, [1] * 6 + [0] * 2]
  assert [batch['image'].shape for batch in batches] == [(8, 2, 3, 1)] * 3
  labels = np.concatenate([batch['label'] for batch in batches])
  assert labels.tolist() == [*range(1, 23), 0, 0]
  assert batches[-1]['image'][6:].max() == 0


@pytest.mark.parametrize('num_examples, batch_size, num_batches', [(1, 1, 1), (8, 8, 1), (9, 8, 2), (3, 8, 1)])
def test_an_evaluation_has_no_empty_batch(num_examples, batch_size, num_batches):
  batches = list(_eval_batches(_source(num_examples), SPEC, batch_size=batch_size))
  assert len(batches) == num_batches
  assert sum(batch['mask'].sum() for batch in batches) == num_examples


def test_a_batch_holds_the_entries_of_the_spec_a_mask_and_keys():
  batch, = _train(_source(9), 1)
  assert {name: (array.shape, array.dtype.name) for name, array in batch.items()} == {
      'image': ((4, 2, 3, 1), 'uint8'), 'label': ((4,), 'int32'), 'mask': ((4,), 'float32'),
      'key': ((4, 2), 'uint32')}
  assert batch['mask'].tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize('batch_size', [1, 4, 7, 25])
def test_training_follows_the_order_of_one_epoch_after_the_other(batch_size):
  batches = _train(_source(10), 30 // batch_size + 1, batch_size=batch_size, seed=3)
  labels = np.concatenate([batch['label'] for batch in batches])[:30]
  expected = np.concatenate([order(3, epoch, 10) for epoch in range(3)]) + 1
  assert labels.tolist() == expected.tolist()
  assert len({tuple(epoch) for epoch in labels.reshape(3, 10).tolist()}) == 3


def test_training_resumed_at_any_step_continues_as_if_uninterrupted():
  whole = _train(_source(10), 8, augment=_add_noise)  # 32 positions: three epochs of 10, and more
  for step in range(8):
    _assert_same(_train(_source(10), 8 - step, first_step=step, augment=_add_noise), whole[step:])


@pytest.mark.parametrize('num_threads', [0, 1, 3, 8])
def test_batches_do_not_depend_on_the_number_of_threads(num_threads):
  expected = _train(_source(50), 20, augment=_add_noise)
  _assert_same(_train(_source(50), 20, augment=_add_noise, num_threads=num_threads), expected)
  evaluation = list(_eval_batches(_source(50), SPEC, batch_size=4))
  _assert_same(list(_eval_batches(_source(50), SPEC, batch_size=4, num_threads=num_threads)), evaluation)


def test_augmentation_depends_on_seed_and_position_and_not_on_the_batch():
  source = _source(10)
  small = np.concatenate([batch['image'] for batch in _train(source, 10, batch_size=2, augment=_add_noise)])
  large = np.concatenate([batch['image'] for batch in _train(source, 2, batch_size=10, augment=_add_noise)])
  np.testing.assert_array_equal(small, large)
  labels = np.concatenate([batch['label'] for batch in _train(source, 2, batch_size=10)])
  noise = large - labels[:, None, None, None].astype(np.uint8)
  assert len({image.tobytes() for image in noise}) == 20  # the second epoch does not repeat the noise of the first
  first, second = (_train(_source(1), 1, seed=seed, augment=_add_noise) for seed in (0, 1))  # one record: one order
  assert not np.array_equal(first[0]['image'], second[0]['image'])


def test_training_without_augmentation_and_evaluation_show_records_as_they_are():
  batch, = _train(_source(4), 1)
  np.testing.assert_array_equal(batch['image'][:, 1, 2, 0], batch['label'])
  evaluation, = _eval_batches(_source(4), SPEC, batch_size=4)
  np.testing.assert_array_equal(evaluation['image'][:, 1, 2, 0], [1, 2, 3, 4])


def test_an_evaluation_sees_records_through_its_view():
  spec = {**SPEC, 'image': types.Field((2, 1, 1), 'uint8')}
  view = lambda example: {**example, 'image': example['image'][:, :1]}
  batches = list(_eval_batches(_source(5), spec, batch_size=4, view=view))
  assert np.concatenate([batch['image'][:, 0, 0, 0] for batch in batches]).tolist() == [1, 2, 3, 4, 5, 0, 0, 0]



def test_what_cannot_be_prepared_is_unreadable_like_what_cannot_be_read():
  def prepare(example):
    if example['label'] == 2:
      raise ValueError('half of it is missing')
    return example

  batch, = _eval_batches(_source(4, 'prepared'), SPEC, batch_size=4, view=prepare)
  assert batch['mask'].tolist() == [1, 0, 1, 1] and 'prepared/1' in pipeline.unreadable()


def test_an_unreadable_record_keeps_its_place_with_mask_0():
  batches = list(_eval_batches(_damaged(11, 'kept'), SPEC, batch_size=4))
  mask = np.concatenate([batch['mask'] for batch in batches])
  assert mask.tolist() == [1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0]
  assert np.concatenate([batch['label'] for batch in batches]).tolist() == [1, 0, 3, 0, 5, 0, 7, 0, 9, 0, 11, 0]
  assert 11 - mask.sum() == 5  # what the documentation says counts the unreadable

  trained = _train(_damaged(10, 'kept'), 5, augment=_add_noise)
  for clean, batch in zip(_train(_source(10), 5, augment=_add_noise), trained, strict=True):
    readable = clean['label'] % 2
    np.testing.assert_array_equal(batch['mask'], readable)
    np.testing.assert_array_equal(batch['label'], clean['label'] * readable)
    np.testing.assert_array_equal(batch['image'], clean['image'] * readable[:, None, None, None].astype(np.uint8))
  assert sum((1 - batch['mask']).sum() for batch in trained) == 10


def test_an_unreadable_record_is_named_once(caplog):
  with caplog.at_level(logging.WARNING, logger='absl'):
    _train(_damaged(6, 'named'), 6)
    list(_eval_batches(_damaged(6, 'named'), SPEC, batch_size=2))
  messages = sorted(record.getMessage() for record in caplog.records)
  assert sorted(name for name in pipeline.unreadable() if 'named/' in name) == ['named/1', 'named/3', 'named/5']
  problem = 'cannot be read, and is left out: half of it is missing'
  assert messages == [f'named/1 {problem}', f'named/3 {problem}', f'named/5 {problem}']


class _Lost(ArraySource):

  def __getitem__(self, index):
    raise OSError('the disk has gone')


@pytest.mark.parametrize('num_examples', [1, 5, 300])
def test_a_source_of_which_nothing_can_be_read_stops_the_run(num_examples):
  source = _Lost(**vars(_source(num_examples, f'lost{num_examples}')))
  with pytest.raises(types.UserError, match=rf'The last {min(num_examples, 100)} records .*the disk has gone'):
    _train(source, 1000, num_threads=1)


def test_many_unreadable_records_among_readable_ones_do_not_stop_the_run():
  batches = list(_eval_batches(_damaged(250, 'many'), SPEC, batch_size=50))
  assert sum(batch['mask'].sum() for batch in batches) == 125


def test_an_error_of_the_program_is_not_taken_for_a_broken_record():
  class Broken(ArraySource):
    def __getitem__(self, index):
      raise KeyError('a bug')

  def augment(example, generator):
    raise TypeError('a bug, too')

  with pytest.raises(KeyError, match='a bug'):
    list(_eval_batches(Broken(**vars(_source(3))), SPEC, batch_size=2))
  with pytest.raises(TypeError, match='a bug, too'):
    _train(_source(3), 1, augment=augment)


@pytest.mark.parametrize('field, message', [
    (types.Field((3, 3, 1), 'uint8'), r"'image' is \(2, 3, 1\) uint8, but the model takes \(3, 3, 1\) uint8"),
    (types.Field((2, 3, 1), 'float32'), r"'image' is \(2, 3, 1\) uint8, but the model takes \(2, 3, 1\) float32"),
])
def test_a_record_that_differs_from_the_spec_is_named_with_both_shapes(field, message):
  with pytest.raises(types.UserError, match=f'record/0: {message}'):
    list(_eval_batches(_source(1), {**SPEC, 'image': field}, batch_size=2))


def test_a_record_without_an_entry_of_the_spec_is_named():
  spec = {**SPEC, 'flow': types.Field((2,), 'float32')}
  with pytest.raises(types.UserError, match="record/0 has no 'flow', which the model takes; it has image, label"):
    list(_eval_batches(_source(1), spec, batch_size=2))


def test_what_augmentation_returns_is_checked_too():
  with pytest.raises(types.UserError, match=r"'image' is \(1, 3, 1\) uint8"):
    _train(_source(3), 1, augment=lambda example, generator: {**example, 'image': example['image'][:1]})


def test_an_empty_source_and_an_empty_batch_are_refused_at_once():
  with pytest.raises(types.UserError, match='no records'):
    _train_batches(_source(0), SPEC, batch_size=2, seed=0)
  with pytest.raises(types.UserError, match='no records'):
    _eval_batches(_source(0), SPEC, batch_size=2)
  with pytest.raises(types.UserError, match='batch_size is 0'):
    _train_batches(_source(3), SPEC, batch_size=0, seed=0)
  with pytest.raises(types.UserError, match='batch_size is -8'):
    _eval_batches(_source(3), SPEC, batch_size=-8)


def test_keys_and_what_is_random_depend_on_seed_and_position_or_on_split_and_index_alone():
  def batches(split='train', is_training=True, batch_size=4, num_steps=4, **settings):
    drawn = lambda record, *, random, **_: {'x': random.integers(0, 2**31, dtype=np.int64)}
    dataset = Dataset(_source(9), {'x': types.Field((), 'int64')}, drawn)
    some = pipeline.batches(dataset, split, batch_size=batch_size, is_training=is_training, **settings)
    some = list(itertools.islice(some, num_steps))
    return {name: np.concatenate([batch[name] for batch in some]) for name in some[0]}

  whole, others = batches(seed=3), batches(seed=4)
  assert len(np.unique(whole['key'], axis=0)) == len(np.unique(whole['x'])) == 16
  for name in ('key', 'x'):
    np.testing.assert_array_equal(batches(seed=3, batch_size=8, num_steps=2)[name], whole[name])
    np.testing.assert_array_equal(batches(seed=3, first_step=2, num_steps=2)[name], whole[name][8:])
    assert not (others[name] == whole[name]).all(axis=-1 if name == 'key' else None).any()
  seen = batches('test', False, seed=3)
  again = batches('test', False, seed=4, batch_size=3)
  for name in ('key', 'x'):
    np.testing.assert_array_equal(seen[name][:9], again[name][:9])
    assert not np.array_equal(seen[name], batches('validation', False)[name])


def test_an_example_of_two_records_takes_the_next_two_and_knows_its_position_and_step():
  def prepare(first, second, *, random, position, step):
    return {'pair': np.array([first['label'], second['label']]), 'place': np.array([position, step], np.int32)}

  spec = {'pair': types.Field((2,), 'int32'), 'place': types.Field((2,), 'int32')}
  dataset = Dataset(_source(9), spec, prepare, records_per_example=2)
  some = list(itertools.islice(pipeline.batches(dataset, 'train', batch_size=3, is_training=True, seed=1), 4))
  single = _train(_source(9), 6, seed=1)
  labels = np.concatenate([batch['label'] for batch in single])
  assert np.concatenate([batch['pair'] for batch in some]).ravel().tolist() == labels.tolist()
  assert np.concatenate([batch['place'] for batch in some]).tolist() == [[i, i // 3] for i in range(12)]
  once = list(pipeline.batches(dataset, 'test', batch_size=3, is_training=False))
  pairs = np.concatenate([batch['pair'][batch['mask'] > 0] for batch in once])
  assert pairs.tolist() == [[1, 2], [3, 4], [5, 6], [7, 8]]


def test_closing_an_iterator_ends_its_threads():
  before = set(threading.enumerate())
  batches = _train_batches(_source(10), SPEC, batch_size=4, seed=0, num_threads=3)
  next(batches)
  started = set(threading.enumerate()) - before
  assert started
  batches.close()
  for thread in started:
    thread.join(timeout=30)
  assert not any(thread.is_alive() for thread in started)
  with pytest.raises(StopIteration):
    next(batches)


def test_an_error_ends_the_threads():
  before = set(threading.enumerate())
  spec = {**SPEC, 'label': types.Field((), 'int64')}
  with pytest.raises(types.UserError) as caught:
    next(_train_batches(_source(10), spec, batch_size=4, seed=0, num_threads=3))
  for thread in set(threading.enumerate()) - before:
    thread.join(timeout=30)
    assert not thread.is_alive()
  assert caught  # and with it every frame that could hold the iterator


PROGRAM = """
import sys
sys.modules.update(jax=None, haiku=None)  # to import them is now an error
import pkgutil
from absl import logging
logging.set_verbosity(logging.ERROR)  # Grain regrets that it has no profiler
import perceiver_jax.data
for module in pkgutil.iter_modules(perceiver_jax.data.__path__):
  __import__(f'perceiver_jax.data.{module.name}')
from perceiver_jax import types
from perceiver_jax.data import pipeline, synthetic
dataset = synthetic.dataset({'label': types.Field((), 'int32')}, 10)
batches = pipeline.batches(dataset, 'train', batch_size=4, is_training=True)
print(next(batches)['mask'].sum())
"""


@pytest.mark.slow
def test_data_needs_neither_jax_nor_parsed_flags_and_exits_cleanly_with_an_open_iterator():
  result = subprocess.run([sys.executable, '-c', PROGRAM], capture_output=True, text=True, timeout=300)
  assert (result.returncode, result.stdout, result.stderr) == (0, '4.0\n', '')
