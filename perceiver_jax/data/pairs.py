"""Two records for each training example, to be mixed, and the random numbers that decide how (adapters/mixing.py).

An epoch of the records is so over in half the steps, as in the authors' code. A batch of pairs:

  key            shape            dtype
  image          [B, H, W, C]     that of the records
  label          [B]              that of the records
  partner        as `image`       the other picture
  partner_label  as `label`       its label
  mask           [B]              float32, 0 where either record could not be read
  mixing_key     [B, 2]           uint32, the data of a random key: a function of the seed, the step and the place
  place          [B]              int32, 0 to B - 1: the place in the whole batch, over all devices
"""

from collections.abc import Iterable, Iterator

import numpy as np

from perceiver_jax import types
from perceiver_jax.data.order import generator


def paired(
    batches: Iterable[types.Batch], *, batch_size: int, seed: int, first_step: int = 0, rows: slice = slice(None),
) -> Iterator[types.Batch]:
  """Yields `rows` of a batch of B pairs for each of 2 B records: records 2 i and 2 i + 1 make example i.

  Args:
    batches: those of steps first_step, first_step + 1 ..., each with `image`, `label` and `mask` of `rows_of_records`.
    batch_size: B, over all devices.
    seed: of the keys.
    first_step: the number of steps already taken, where a run resumes.
    rows: which of the B rows of each batch to make.
  """
  for step, batch in enumerate(batches, first_step):
    yield {
      'image': batch['image'][::2],
      'label': batch['label'][::2],
      'partner': batch['image'][1::2],
      'partner_label': batch['label'][1::2],
      'mask': batch['mask'][::2] * batch['mask'][1::2],
      'mixing_key': _keys(batch_size, seed, step)[rows],
      'place': np.arange(batch_size, dtype=np.int32)[rows],
    }


def rows_of_records(rows: slice, batch_size: int) -> slice:
  """Which rows of a batch of 2 B records make these rows of a batch of B pairs."""
  start, stop, _ = rows.indices(batch_size)
  return slice(2 * start, 2 * stop)


def _keys(size: int, seed: int, step: int) -> np.ndarray:
  """uint32 [size, 2], the same in every NumPy release."""
  words = generator('mixing', seed, step).bit_generator.random_raw(size)
  return words.astype('<u8').view(np.uint32).reshape(size, 2)
