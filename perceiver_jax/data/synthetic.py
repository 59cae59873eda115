"""Noise in the shape of any spec: for tests, benchmarks and `:debug` variants, never in place of real data."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from perceiver_jax import types
from perceiver_jax.data.dataset import Example
from perceiver_jax.data.order import generator


@dataclasses.dataclass(frozen=True)
class SyntheticSource:
  """Deterministic noise: floats standard normal, integers and bytes uniform in 0 .. bound - 1.

  `bounds` gives the bound by entry; without one, uint8 fills its range and other integers are 0 or 1, a class that any
  task has.
  """

  spec: types.Spec
  num_examples: int
  seed: int = 0
  bounds: Mapping[str, int] = dataclasses.field(default_factory=dict)
  class_names: Sequence[str] = ()

  def __len__(self) -> int:
    return self.num_examples

  def __getitem__(self, index: int) -> Example:
    noise = generator('synthetic', self.seed, index)
    return {name: self._entry(noise, name, field) for name, field in self.spec.items()}

  def name(self, index: int) -> str:
    return f'synthetic/{index}'

  def _entry(self, noise: np.random.Generator, name: str, field: types.Field) -> np.ndarray:
    dtype = np.dtype(field.dtype)
    if dtype.kind == 'f':
      return noise.standard_normal(field.shape).astype(dtype)
    bound = self.bounds.get(name, 256 if dtype == np.uint8 else 2)
    return noise.integers(0, bound, field.shape).astype(dtype)
