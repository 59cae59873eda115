"""A source of records to batches: ordered, augmented, checked against the spec, padded, masked, read ahead by threads.

Training walks an endless sequence of positions: epoch 0 in its order, then epoch 1, and so on. Step s takes positions
s * B to s * B + B - 1, and a position alone decides the record and its augmentation. So the step is the only thing to
save, and no batch depends on the number of threads. Evaluation walks the source once, in the source's own order.

Of several processes each makes its own `rows` of every batch, and reads nothing else: the batch is the same whoever
makes which part of it.

A record that cannot be read keeps its place, all zeros, with mask 0; it is logged once, by name, and `unreadable` lists
the names. To count such places: the sum of (1 - mask) over training batches; len(source) minus the sum of mask over an
evaluation, which also pads.
"""

import contextlib
import os
import sys
import threading
from collections.abc import Callable, Generator, Iterable

import grain
import numpy as np
from absl import logging

from perceiver_jax import types
from perceiver_jax.data.dataset import Example, Source
from perceiver_jax.data.order import generator, order

MAX_THREADS = 16
MAX_UNREADABLE = 100                        # different records in a row: a lost disk, not a few bad files

Augment = Callable[[Example, np.random.Generator], Example]
View = Callable[[Example], Example]

_unreadable: dict[str, None] = {}           # in the order met; a process evaluates often, and names one of these once
_lock = threading.Lock()


def train_batches(
    source: Source, spec: types.Spec, *, batch_size: int, seed: int, first_step: int = 0,
    augment: Augment | None = None, num_threads: int | None = None, rows: slice = slice(None),
) -> Generator[types.Batch, None, None]:
  """Returns the endless batches of steps first_step, first_step + 1 ...; closing the iterator stops its threads.

  Args:
    source: the records.
    spec: the entries to take from each record, which must have exactly these shapes and dtypes once augmented.
    batch_size: B, over all devices.
    seed: decides order and augmentation, together with the position.
    first_step: the number of steps already taken, where a run resumes.
    augment: (example, generator) -> example; must leave its argument as it is.
    num_threads: reader threads, each busy with a batch of its own; None means one per core, at most MAX_THREADS.
    rows: which of the B rows of each batch to make.

  Returns:
    An iterator of {name: [R, ...]} with 'mask' [R] float32, all NumPy, of the R `rows`.

  Raises:
    UserError: at once, the source is empty or batch_size below 1; from the iterator, a record differs from the spec, or
      no record can be read any more.
  """
  reader = _Reader(source, spec, batch_size, rows)

  def example_at(position: int) -> Example | None:
    epoch, place = divmod(position, len(source))
    index = int(order(seed, epoch, len(source))[place])
    if augment is None:
      return reader.example(index)
    return reader.example(index, lambda example: augment(example, generator('augment', seed, position)))

  def batch_at(step: int) -> types.Batch:
    return reader.batch(example_at(position) for position in reader.positions(step))

  return _read_ahead(batch_at, range(first_step, sys.maxsize), num_threads)


def eval_batches(
    source: Source, spec: types.Spec, *, batch_size: int, view: View = lambda example: example,
    num_threads: int | None = None, rows: slice = slice(None),
) -> Generator[types.Batch, None, None]:
  """Returns one pass over the source in order; otherwise as `train_batches`.

  The last batch is filled up with zeros and mask 0, so all have the same shape. `view` takes the place of `augment`:
  it makes what the spec says of a record that is stored otherwise, say larger, and nothing in it is random.
  """
  reader = _Reader(source, spec, batch_size, rows)

  def batch_at(step: int) -> types.Batch:
    return reader.batch(reader.example(index, view) for index in reader.positions(step) if index < len(source))

  return _read_ahead(batch_at, range(-(-len(source) // batch_size)), num_threads)


def unreadable() -> list[str]:
  """Returns the names of all records that this process met and could not read: figures leave them out."""
  with _lock:
    return list(_unreadable)


class _Reader:
  """Reads, checks and stacks records of one source; called by many threads at once."""

  def __init__(self, source: Source, spec: types.Spec, batch_size: int, rows: slice):
    if len(source) == 0:
      raise types.UserError('The data set has no records.')
    if batch_size < 1:
      raise types.UserError(f'batch_size is {batch_size}; it must be at least 1.')
    self._source = source
    self._spec = spec
    self._batch_size = batch_size
    self._rows = rows
    self._unread: set[int] = set()          # those met since a record was last read

  def example(self, index: int, change: Callable[[Example], Example] = lambda example: example) -> Example | None:
    """Returns record `index`, changed and checked against the spec, or None where it cannot be read."""
    try:
      example = self._source[index]
    except (ValueError, OSError) as error:
      self._report(index, error)
      return None
    self._unread.clear()
    example = change(example)
    self._check(index, example)
    return example

  def positions(self, step: int) -> range:
    """Returns which positions of the endless sequence, or of the one pass, are our rows of a step's batch."""
    return range(step * self._batch_size, (step + 1) * self._batch_size)[self._rows]

  def batch(self, examples: Iterable[Example | None]) -> dict[str, np.ndarray]:
    """Returns the examples stacked, {name: [R, ...]}; rows that are None or left over stay zero, with mask 0."""
    num_rows = len(self.positions(0))
    batch = {name: np.zeros((num_rows, *field.shape), field.dtype) for name, field in self._spec.items()}
    batch['mask'] = np.zeros(num_rows, np.float32)
    for row, example in enumerate(examples):
      if example is not None:
        for name in self._spec:
          batch[name][row] = example[name]
        batch['mask'][row] = 1
    return batch

  def _check(self, index: int, example: Example) -> None:
    for name, field in self._spec.items():
      if name not in example:
        raise types.UserError(f'{self._source.name(index)} has no {name!r}, which the model takes; '
                              f'it has {", ".join(example)}.')
      value = np.asarray(example[name])
      if (value.shape, value.dtype) != (field.shape, np.dtype(field.dtype)):
        raise types.UserError(
            f'{self._source.name(index)}: {name!r} is {value.shape} {value.dtype}, but the model takes '
            f'{tuple(field.shape)} {field.dtype}. Make config.data describe the data.')

  def _report(self, index: int, error: Exception) -> None:
    name = self._source.name(index)
    with _lock:
      self._unread.add(index)
      num_unreadable = len(self._unread)
      is_new = name not in _unreadable
      _unreadable[name] = None
    if is_new:
      logging.warning('%s cannot be read, and counts for nothing: %s', name, error)
    if num_unreadable >= min(len(self._source), MAX_UNREADABLE):
      raise types.UserError(f'The last {num_unreadable} records could not be read, {name} among them: {error}')


def _read_ahead(
    batch_at: Callable[[int], types.Batch], steps: range, num_threads: int | None,
) -> Generator[types.Batch, None, None]:
  """Yields batch_at(step) for each step in order, `num_threads` of them under way at a time.

  Threads, as OpenCV and file reads release the interpreter lock; a whole batch per thread, as Grain's own cost per
  element is more than that of augmenting a digit. No worker processes: the order would depend on their number.
  """
  if num_threads is None:
    num_threads = min(MAX_THREADS, os.cpu_count() or 1)
  options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=num_threads)
  batches = grain.MapDataset.range(steps.start, steps.stop).map(batch_at).to_iter_dataset(options)
  with contextlib.closing(iter(batches)) as iterator:
    yield from iterator
