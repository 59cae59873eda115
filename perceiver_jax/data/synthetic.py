"""Noise in the shape of any spec: for tests, benchmarks and `:debug` variants, never in place of real data."""

import dataclasses

import numpy as np

from perceiver_jax import types
from perceiver_jax.data.dataset import Dataset, Example
from perceiver_jax.data.order import generator


@dataclasses.dataclass(frozen=True)
class SyntheticSource:
  """Holds deterministic noise: floats are standard normal, integers uniform in 0 .. bound - 1.

  A field without a bound fills the range of uint8, or is 0 or 1 where it is another integer.
  """

  spec: types.Spec
  num_examples: int
  seed: int = 0

  def __len__(self) -> int:
    return self.num_examples

  def __getitem__(self, index: int) -> Example:
    noise = generator('synthetic', self.seed, index)
    return {name: _entry(noise, field) for name, field in self.spec.items() if not field.is_optional}

  def name(self, index: int) -> str:
    return f'synthetic/{index}'


def dataset(spec: types.Spec, num_examples: int, seed: int = 0) -> Dataset:
  """Returns a data set of noise."""
  required = {name: field for name, field in spec.items() if not field.is_optional}
  return Dataset(SyntheticSource(required, num_examples, seed), required, lambda record, **_: record)


def _entry(noise: np.random.Generator, field: types.Field) -> np.ndarray:
  dtype = np.dtype(field.dtype)
  if dtype.kind == 'f':
    return noise.standard_normal(field.shape).astype(dtype)
  bound = field.bound or (256 if dtype == np.uint8 else 2)
  return noise.integers(0, bound, field.shape).astype(dtype)
