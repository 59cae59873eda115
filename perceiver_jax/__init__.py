"""Perceiver and Perceiver IO in JAX and Haiku. Importing this loads nothing: each name below is loaded when it is used.

`perceiver_jax.load(name or directory)` returns a trained model, ready to answer; the others are what a model of your
own is built from, for which `pip install .` without extras is enough.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
  from perceiver_jax.core.input_array import InputArray
  from perceiver_jax.core.perceiver import Decoder, Encoder, Processor, encode, learned_query, pool
  from perceiver_jax.inference.predictor import load

__version__ = '0.1.0'
__all__ = ['Decoder', 'Encoder', 'InputArray', 'Processor', 'encode', 'learned_query', 'load', 'pool']


def __getattr__(name: str) -> object:
  if name not in __all__:
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
  homes = {'load': 'inference.predictor', 'InputArray': 'core.input_array'}
  return getattr(importlib.import_module(f'{__name__}.{homes.get(name, "core.perceiver")}'), name)


def __dir__() -> list[str]:
  return sorted([*globals(), *__all__])
