"""Classifies pictures: the view of the data set that the model was trained on, then the most probable classes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from perceiver_jax.inference.model import Model, as_image, ask, most_probable
from perceiver_jax.types import UserError

if TYPE_CHECKING:
  from perceiver_jax.inference.predictor import Predictor

SUFFIXES = ('.png',)


class Classification(NamedTuple):
  """The most probable classes first."""

  names: tuple[str, ...]             # [k]
  probabilities: np.ndarray          # [k] float32
  indices: np.ndarray                # [k] int
  image: np.ndarray                  # [S, S, C] uint8: what the model saw
  captured: dict[str, Any] | None    # attention maps and latents, where asked for


def predict(
  model: Model, image: Any, *, class_names: tuple[str, ...] | None = None, top_k: int = 5, capture: bool = False,
) -> Classification:
  """The `top_k` most probable classes of one picture.

  Args:
    model: of the task image_classification.
    image: [H, W, 3] uint8 of any size, grey or with a transparency too: an array, a PIL image, or the path of a file.
    class_names: of all classes; by number where None.
    top_k: how many to return, at least 1.
    capture: also return attention maps and latents.

  Raises:
    UserError: not one picture, or not uint8; `top_k` below 1, or names of another number of classes.
  """
  from perceiver_jax.data import labelled_images

  pixels = labelled_images.view(as_image(image, 'an image'), model.config.data)
  outputs = ask(model, {'image': pixels[None]}, capture=capture)
  names, probabilities, indices = most_probable(outputs['logits'][0], class_names, top_k)
  return Classification(names, probabilities, indices, pixels, outputs.get('captured'))


def present(predictor: Predictor, inputs: Sequence[str], output: str | None) -> Iterator[str]:
  """A line per class of every picture; draws the attention of the only one."""
  from perceiver_jax import visualize

  if output and len(inputs) != 1:
    raise UserError(f'--output draws one picture, but {len(inputs)} are given')
  if output and predictor.config.model.backbone != 'perceiver':
    raise UserError(f'this model is a {predictor.config.model.backbone}: it has no latents to draw; leave out --output')
  for path in inputs:
    found = predictor.predict(path, capture=output is not None)
    lines = [f'{probability:6.1%}  {name}' for name, probability in zip(found.names, found.probabilities, strict=True)]
    yield '\n'.join([f'{path}:', *lines] if len(inputs) > 1 else lines)
  if output:
    attention = found.captured['cross_attends'].mean(axis=2)[:, 0]  # over heads: [T, N, M]
    grid = _grid(found.image.shape[0], attention.shape[-1])
    visualize.attention_over_pixels(output, found.image, attention, grid=grid)


def _grid(size: int, num_elements: int) -> tuple[int, int]:
  """Rows and columns of a square grid, as large as the picture or coarser."""
  side = round(num_elements**0.5)
  return (side, side) if side**2 == num_elements else (size, size)
