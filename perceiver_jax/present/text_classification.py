"""Texts: the probability of every class."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from perceiver_jax.inference.predictor import Predictor

SUFFIXES = ()  # there is no picture of a classified text


def present(predictor: Predictor, inputs: Sequence[str], output: str | None) -> Iterator[str]:
  """A line per class of the text, most probable first."""
  found = predictor.predict(' '.join(inputs))
  yield '\n'.join(
    f'{probability:6.1%}  {name}' for name, probability in zip(found.names, found.probabilities, strict=True))
