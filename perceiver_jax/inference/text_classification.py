"""Classifies texts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from perceiver_jax.data import byte_tokenizer
from perceiver_jax.inference.model import Model, ask, check_text, most_probable
from perceiver_jax.types import UserError

if TYPE_CHECKING:
  from perceiver_jax.inference.predictor import Predictor

SUFFIXES = ()  # there is no picture of a classified text


class TextClass(NamedTuple):
  """The classes, most probable first."""

  names: tuple[str, ...]             # [E]
  probabilities: np.ndarray          # [E] float32
  captured: dict[str, Any] | None    # attention maps and latents, where asked for


def predict(
  model: Model, text: str, *, class_names: tuple[str, ...] | None = None, capture: bool = False,
) -> TextClass:
  """The classes of a text, wrapped in the class and separator tokens, as Hugging Face's tokenizer does.

  Args:
    model: of the task text_classification, on bytes.
    text: of any language.
    class_names: of all classes; by number where None.
    capture: also return attention maps and latents.

  Raises:
    UserError: a longer text than the model reads, a model that does not read bytes, or names of another number of
      classes.
  """
  check_text(model, text)
  data = model.config.data
  ids = [byte_tokenizer.CLASS, *byte_tokenizer.encode(text), byte_tokenizer.SEPARATOR]
  if len(ids) > data.max_length:
    raise UserError(f'the text has {len(ids) - 2} bytes, but the model reads {data.max_length - 2}; shorten it')
  tokens = np.full(data.max_length, byte_tokenizer.PAD, np.int32)
  tokens[:len(ids)] = ids
  valid = (np.arange(data.max_length) < len(ids)).astype(np.uint8)
  outputs = ask(model, {'tokens': tokens[None], 'valid': valid[None]}, capture=capture)
  names, probabilities, _ = most_probable(outputs['logits'][0], class_names)
  return TextClass(names, probabilities, outputs.get('captured'))


def present(predictor: Predictor, inputs: Sequence[str], output: str | None) -> Iterator[str]:
  """A line per class of the text, most probable first."""
  found = predictor.predict(' '.join(inputs))
  yield '\n'.join(
    f'{probability:6.1%}  {name}' for name, probability in zip(found.names, found.probabilities, strict=True))
