"""Pictures: the most probable classes, and where the latents look."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from perceiver_jax import visualize
from perceiver_jax.inference.predictor import Predictor
from perceiver_jax.types import UserError

SUFFIXES = ('.png',)


def present(predictor: Predictor, inputs: Sequence[str], output: str | None) -> Iterator[str]:
  """A line per class of every picture; draws the attention of the only one."""
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
