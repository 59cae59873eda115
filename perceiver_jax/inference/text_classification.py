"""What kind of text it is."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import numpy as np

from perceiver_jax import byte_tokenizer
from perceiver_jax.inference.model import Model
from perceiver_jax.types import UserError


class TextClass(NamedTuple):
  """The classes, most probable first."""

  names: tuple[str, ...]             # [E]
  probabilities: np.ndarray          # [E] float32
  captured: dict[str, Any] | None    # attention maps and latents, where asked for


def predict(
  model: Model, text: str, *, class_names: tuple[str, ...] | None = None, capture: bool = False,
) -> TextClass:
  """The classes of a text, wrapped in the class and separator tokens, as Hugging Face's tokenizer does.

  Raises:
    UserError: a longer text than the model reads, or a model that does not read bytes.
  """
  data = model.config.data
  if data.vocab_size != byte_tokenizer.VOCAB_SIZE:
    raise UserError(f'this model reads a vocabulary of {data.vocab_size} tokens; only bytes, 262, can be told')
  ids = [byte_tokenizer.CLASS, *byte_tokenizer.encode(text), byte_tokenizer.SEPARATOR]
  if len(ids) > data.max_length:
    raise UserError(f'the text has {len(ids) - 2} bytes, but the model reads {data.max_length - 2}; shorten it')
  tokens, valid = np.zeros((2, 1, data.max_length), np.int32)
  tokens[0, :len(ids)], valid[0, :len(ids)] = ids, 1
  outputs = model.run({'tokens': tokens, 'valid': valid}, capture=capture)
  probabilities = np.asarray(jax.nn.softmax(outputs['logits'][0]))
  order = np.argsort(-probabilities, kind='stable')
  names = tuple(class_names[i] if class_names else f'class {i}' for i in order)
  return TextClass(names, probabilities[order], outputs.get('captured'))
