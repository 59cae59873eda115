"""Perceiver and Perceiver IO in JAX and Haiku. Import modules by name: this file loads none of them by itself.

`perceiver_jax.load(name or directory)` is `perceiver_jax.inference.predictor.load`: a trained model, ready to answer.
"""

__version__ = '0.1.0'


def __getattr__(name: str) -> object:
  if name != 'load':
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
  from perceiver_jax.inference.predictor import load

  return load
