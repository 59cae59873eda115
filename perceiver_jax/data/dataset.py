"""Defines a data set: its records, what an example holds, and the way from one to the other; and the common split."""

import dataclasses
import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np

from perceiver_jax import types

SPLITS = ('train', 'validation', 'test')
MIN_PER_CLASS = 3                           # one for each split

Example = dict[str, np.ndarray]             # {name: array}: an example of a batch, without its mask and key
T = TypeVar('T')


class Source(Protocol):
  """Holds the records of one split, by index. `source[i]` raises ValueError or OSError for one that cannot be read."""

  def __len__(self) -> int: ...

  def __getitem__(self, index: int) -> Any: ...

  def name(self, index: int) -> str:
    """Returns what a person calls the record: a file, or a place in one."""


class Dataset(NamedTuple):
  """Describes one split of a data set, for training or for evaluation. Knows no JAX.

  `prepare(*records, random, position, step) -> example` augments an example for training, or takes the fixed view of it
  for evaluation; its config is bound already.
    records: as many as `records_per_example`, from `source`.
    random: a NumPy generator, a function of the seed and `position` in training, of split and index in evaluation.
    position: the example's number in the endless sequence of training; in evaluation its index.
    step: position // batch_size, the training step that will see the example; 0 in evaluation.
  It raises ValueError or OSError for a record that cannot be read: the example then has mask 0. Any other exception is
  a fault of the program. `spec` may be of other sizes than the task's (a whole frame in evaluation, a part of it in
  training), and may have entries that only training reads.
  """

  source: Source
  spec: types.Spec
  prepare: Callable[..., Example]
  records_per_example: int = 1
  class_names: Sequence[str] = ()


@dataclasses.dataclass(frozen=True)
class ArraySource:
  """Holds labelled images in memory: images uint8 [N, H, W, C], labels int32 [N], and a name for each."""

  images: np.ndarray
  labels: np.ndarray
  names: Sequence[str]

  def __len__(self) -> int:
    return len(self.images)

  def __getitem__(self, index: int) -> Example:
    return {'image': self.images[index], 'label': self.labels[index]}

  def name(self, index: int) -> str:
    return self.names[index]


@dataclasses.dataclass(frozen=True)
class Numbers:
  """Holds the numbers 0 .. count - 1 as records: for examples that are made up as they are needed."""

  count: int

  def __len__(self) -> int:
    return self.count

  def __getitem__(self, index: int) -> int:
    return index

  def name(self, index: int) -> str:
    return f'number {index}'


def choose(splits: Mapping[str, T], split: str) -> T:
  """Returns `splits[split]`; raises UserError, listing the splits, where there is none of that name."""
  if split not in splits:
    raise types.UserError(f'There is no split {split!r}; the splits are {", ".join(splits)}.')
  return splits[split]


def stratified_split(
    labels: Sequence[int] | np.ndarray, names: Sequence[str], class_names: Sequence[str],
) -> dict[str, list[int]]:
  """Splits records 70 / 10 / 20 within each class into train, validation and test; every split gets one of each class.

  A record's place is ranked by a hash of its name: the split depends on no seed, nor on the order of the records, and a
  record added later moves few others. The classes come mixed within a split, so that its first batch shows them all.

  Args:
    labels: N ints, each a place in `class_names`.
    names: N names, unique.
    class_names: what to call a class that is too small.

  Returns:
    The three splits: lists of ints in range(N), disjoint, together everything.

  Raises:
    UserError: a class has fewer than three records.
  """
  ranked = sorted(range(len(names)), key=lambda index: _rank(names[index]))
  members: list[list[int]] = [[] for _ in class_names]
  for index in ranked:
    members[labels[index]].append(index)
  splits: dict[str, list[int]] = {split: [] for split in SPLITS}
  for class_name, indices in zip(class_names, members, strict=True):
    if len(indices) < MIN_PER_CLASS:
      raise types.UserError(f'Class {class_name!r} has {len(indices)} images; to split them into {", ".join(SPLITS)} '
                            f'it needs at least {MIN_PER_CLASS}.')
    num_test = max(1, round(0.2 * len(indices)))
    num_validation = max(1, round(0.1 * len(indices)))
    splits['test'] += indices[:num_test]
    splits['validation'] += indices[num_test:num_test + num_validation]
    splits['train'] += indices[num_test + num_validation:]
  place = {index: rank for rank, index in enumerate(ranked)}
  return {split: sorted(indices, key=place.__getitem__) for split, indices in splits.items()}


def _rank(name: str) -> bytes:
  return hashlib.blake2b(os.fsencode(name), digest_size=16).digest()
