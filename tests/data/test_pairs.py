"""Two records for each example: which ones, and the random numbers that go with them."""

import itertools

import numpy as np

from perceiver_jax.data.pairs import paired, rows_of_records


def _records(num_batches, size=6):
  """Batches whose labels count up from 0, and whose pictures show the label."""
  for step in range(num_batches):
    label = np.arange(step * size, (step + 1) * size, dtype=np.int32)
    image = np.broadcast_to(label.astype(np.uint8)[:, None, None, None], (size, 2, 2, 1))
    yield {'image': image, 'label': label, 'mask': np.ones(size, np.float32)}


def test_neighbours_make_an_example():
  one, two = paired(_records(2), batch_size=3, seed=0)
  np.testing.assert_array_equal(one['label'], [0, 2, 4])
  np.testing.assert_array_equal(one['partner_label'], [1, 3, 5])
  np.testing.assert_array_equal(two['label'], [6, 8, 10])
  for batch in (one, two):
    np.testing.assert_array_equal(batch['image'][:, 1, 1, 0], batch['label'])
    np.testing.assert_array_equal(batch['partner'][:, 1, 1, 0], batch['partner_label'])
    np.testing.assert_array_equal(batch['mask'], 1)
    np.testing.assert_array_equal(batch['place'], [0, 1, 2])
  assert {name: (x.shape[1:], x.dtype.name) for name, x in one.items()} == {
    'image': ((2, 2, 1), 'uint8'), 'label': ((), 'int32'), 'partner': ((2, 2, 1), 'uint8'),
    'partner_label': ((), 'int32'), 'mask': ((), 'float32'), 'mixing_key': ((2,), 'uint32'), 'place': ((), 'int32')}


def test_an_example_counts_only_if_both_of_its_records_could_be_read():
  batch = {**next(_records(1)), 'mask': np.array([1, 1, 0, 1, 1, 0], np.float32)}
  np.testing.assert_array_equal(next(paired([batch], batch_size=3, seed=0))['mask'], [1, 0, 0])


def test_a_key_is_a_function_of_seed_step_and_place():
  whole = [batch['mixing_key'] for batch in paired(_records(3), batch_size=3, seed=5)]
  assert len({tuple(key) for keys in whole for key in keys}) == 9
  resumed = paired(itertools.islice(_records(3), 1, None), batch_size=3, seed=5, first_step=1)
  for batch, expected in zip(resumed, whole[1:], strict=True):
    np.testing.assert_array_equal(batch['mixing_key'], expected)
  assert not np.isin(next(paired(_records(1), batch_size=3, seed=6))['mixing_key'], whole[0]).any()
  larger = next(paired(_records(1, size=12), batch_size=6, seed=5))
  np.testing.assert_array_equal(larger['mixing_key'][:3], whole[0])


def test_parts_of_a_batch_made_apart_are_the_batch():
  whole = list(paired(_records(2), batch_size=3, seed=5))
  for rows in (slice(0, 1), slice(1, 3)):
    some = rows_of_records(rows, 3)
    records = ({name: x[some] for name, x in batch.items()} for batch in _records(2))
    for part, batch in zip(paired(records, batch_size=3, seed=5, rows=rows), whole, strict=True):
      for name in batch:
        np.testing.assert_array_equal(part[name], batch[name][rows])
