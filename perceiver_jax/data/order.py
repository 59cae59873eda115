"""Randomness as a function of what it is for, never of how many numbers were drawn before."""

import functools
import hashlib

import numpy as np


def generator(*ids: int | str) -> np.random.Generator:
  """Returns a generator that depends on `ids` alone, such as ('augment', seed, position).

  Philox is keyed by a hash of the ids, so its bit stream is the same on every machine and, as NumPy promises for bit
  generators (NEP 19), in every release. NumPy may change what the methods of `Generator` (`uniform`, `permutation` ...)
  make of that stream; whatever must outlive a NumPy release uses `shuffled`.
  """
  words = ','.join(str(word) for word in ids).encode()
  key = np.frombuffer(hashlib.blake2b(words, digest_size=16).digest(), '<u8')
  return np.random.Generator(np.random.Philox(key=key))


def shuffled(size: int, *ids: int | str) -> np.ndarray:
  """Returns a permutation of range(size), int64 [size]: a function of its arguments alone, in every NumPy release."""
  words = generator(*ids).bit_generator.random_raw(size)
  return np.argsort(words, kind='stable')


@functools.lru_cache(maxsize=4)
def order(seed: int, epoch: int, num_examples: int) -> np.ndarray:
  """Returns the order in which an epoch visits its examples: a permutation, int64 [num_examples], read-only."""
  indices = shuffled(num_examples, 'order', seed, epoch)
  indices.flags.writeable = False
  return indices
