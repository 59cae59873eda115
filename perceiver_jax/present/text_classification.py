"""Texts: the probability of every class."""

from __future__ import annotations

from collections.abc import Sequence

from perceiver_jax.inference.predictor import Predictor
from perceiver_jax.types import UserError


def present(predictor: Predictor, inputs: Sequence[str], output: str | None) -> str:
  """A line per class of the text, most probable first."""
  if output:
    raise UserError('there is no picture of a classified text; leave out --output')
  found = predictor.predict(' '.join(inputs))
  return '\n'.join(
    f'{probability:6.1%}  {name}' for name, probability in zip(found.names, found.probabilities, strict=True))
