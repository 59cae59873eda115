"""Turns a data set into batches: ordered, prepared, checked against the spec, padded, masked, read ahead by threads.

Training walks an endless sequence of positions: epoch 0 in its order, then epoch 1, and so on. Step s takes positions
s * B to s * B + B - 1, and a position alone decides an example: its records, its augmentation and its random key. So
the step is the only thing to save, and no batch depends on the number of threads. Evaluation walks the source once, in
the source's own order.

With several processes, each makes its own `rows` of every batch, and reads nothing else.

A record that cannot be read keeps its place, all zeros, with mask 0; it is logged once, by name, and `unreadable` lists
the names.
"""

import contextlib
import os
import sys
import threading
from collections.abc import Generator, Iterable

import grain
import numpy as np
from absl import logging

from perceiver_jax import types
from perceiver_jax.data.dataset import Dataset, Example
from perceiver_jax.data.order import generator, order

MAX_THREADS = 16
MAX_UNREADABLE = 100                        # different records in a row: a lost disk, not a few bad files

_unreadable: dict[str, None] = {}           # in the order met; a process evaluates often, and names one of these once
_lock = threading.Lock()


def batches(
    dataset: Dataset, split: str, *, batch_size: int, is_training: bool, seed: int = 0, first_step: int = 0,
    rows: slice = slice(None), num_threads: int | None = None,
) -> Generator[types.Batch, None, None]:
  """Yields the batches of a data set; closing the iterator stops its threads.

  Args:
    dataset: the records, and how an example is made of them.
    split: its name, which decides what is random in an evaluation.
    batch_size: B, over all devices.
    is_training: endless batches in the order of `seed`; otherwise one pass in the source's order, whose last batch is
      filled up with zeros and mask 0.
    seed: decides, with the position, order, augmentation and keys of training.
    first_step: the number of steps already taken, where a run resumes.
    rows: which of the B rows of each batch to make.
    num_threads: reader threads, each busy with a batch of its own; None means one per core, at most MAX_THREADS.

  Returns:
    An iterator of {name: [R, ...]}, NumPy arrays, with 'mask' [R] float32 and 'key' [R, 2] uint32, of the R `rows`.

  Raises:
    UserError: at once, the source is empty or batch_size below 1; from the iterator, an example differs from the spec,
      or no record can be read any more.
  """
  if len(dataset.source) == 0:
    raise types.UserError(f'The split {split!r} has no records.')
  if batch_size < 1:
    raise types.UserError(f'batch_size is {batch_size}; it must be at least 1.')
  reader = _Reader(dataset)
  num_examples = len(dataset.source) // dataset.records_per_example

  def train_example(position: int) -> Example | None:
    count, size = dataset.records_per_example, len(dataset.source)
    places = [divmod(position * count + k, size) for k in range(count)]
    indices = [int(order(seed, epoch, size)[place]) for epoch, place in places]
    return reader.example(indices, ('augment', seed, position), position, position // batch_size)

  def eval_example(index: int) -> Example | None:
    count = dataset.records_per_example
    return reader.example(range(index * count, (index + 1) * count), ('view', split, index), index, 0)

  def batch_at(step: int) -> types.Batch:
    ids: list[tuple[int | str, int]]
    positions = range(step * batch_size, (step + 1) * batch_size)[rows]
    if is_training:
      examples, ids = map(train_example, positions), [(seed, position) for position in positions]
    else:
      real = [index for index in positions if index < num_examples]
      examples, ids = map(eval_example, real), [(split, index) for index in real]
    return _stacked(dataset.spec, len(positions), examples, [_key('key', *each) for each in ids])

  last = sys.maxsize if is_training else -(-num_examples // batch_size)
  return _read_ahead(batch_at, range(first_step, last), num_threads)


def unreadable() -> list[str]:
  """Returns the names of all records that this process met and could not read: figures leave them out."""
  with _lock:
    return list(_unreadable)


def _key(*ids: int | str) -> np.ndarray:
  """Returns the data of a random key, [2] uint32: a function of `ids` alone, in every NumPy release."""
  return generator(*ids).bit_generator.random_raw(1).astype('<u8').view(np.uint32)


def _stacked(
    spec: types.Spec, num_rows: int, examples: Iterable[Example | None], keys: list[np.ndarray],
) -> dict[str, np.ndarray]:
  """Returns the examples as {name: [R, ...]}; rows that are None or left over stay zero, with mask 0."""
  fields = {**spec, **types.ALWAYS}
  batch = {name: np.zeros((num_rows, *field.shape), field.dtype) for name, field in fields.items()}
  for row, (example, key) in enumerate(zip(examples, keys, strict=True)):
    batch['key'][row] = key
    if example is not None:
      batch['mask'][row] = 1
      for name in spec:
        batch[name][row] = example[name]
  return batch


class _Reader:
  """Reads, prepares and checks examples of one data set; called by many threads at once."""

  def __init__(self, dataset: Dataset):
    self._dataset = dataset
    self._unread: set[int] = set()          # those met since a record was last read

  def example(self, indices: Iterable[int], ids: tuple[int | str, ...], position: int, step: int) -> Example | None:
    """Returns the example made of some records and checked against the spec, or None where one cannot be read."""
    source, index = self._dataset.source, 0
    try:
      records = []
      for index in indices:
        records.append(source[index])
      example = self._dataset.prepare(*records, random=generator(*ids), position=position, step=step)
    except (ValueError, OSError) as error:
      self._report(index, error)
      return None
    self._unread.clear()
    self._check(source.name(index), example)
    return example

  def _check(self, name: str, example: Example) -> None:
    for entry, field in self._dataset.spec.items():
      if entry not in example:
        raise types.UserError(f'{name} has no {entry!r}, which the model takes; it has {", ".join(example)}.')
      value = np.asarray(example[entry])
      if (value.shape, value.dtype) != (tuple(field.shape), np.dtype(field.dtype)):
        raise types.UserError(
            f'{name}: {entry!r} is {value.shape} {value.dtype}, but the model takes '
            f'{tuple(field.shape)} {field.dtype}. Make config.data describe the data.')

  def _report(self, index: int, error: Exception) -> None:
    name = self._dataset.source.name(index)
    with _lock:
      self._unread.add(index)
      num_unreadable = len(self._unread)
      is_new = name not in _unreadable
      _unreadable[name] = None
    if is_new:
      logging.warning('%s cannot be read, and is left out: %s', name, error)
    if num_unreadable >= min(len(self._dataset.source), MAX_UNREADABLE):
      raise types.UserError(f'The last {num_unreadable} records could not be read, {name} among them: {error}')


def _read_ahead(batch_at, steps: range, num_threads: int | None) -> Generator[types.Batch, None, None]:
  """Yields batch_at(step) for each step in order, `num_threads` of them under way at a time.

  Threads serve, as OpenCV and file reads release the interpreter lock; each makes a whole batch, as Grain's own cost
  per element is more than that of augmenting a digit. Worker processes do not: the order would depend on their number.
  """
  if num_threads is None:
    num_threads = min(MAX_THREADS, os.cpu_count() or 1)
  options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=num_threads)
  iterable = grain.MapDataset.range(steps.start, steps.stop).map(batch_at).to_iter_dataset(options)
  with contextlib.closing(iter(iterable)) as iterator:
    yield from iterator
