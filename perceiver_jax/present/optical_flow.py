"""Two frames: how far their pixels go, and in which direction."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from perceiver_jax import visualize
from perceiver_jax.data.files import read_image
from perceiver_jax.inference.predictor import Predictor
from perceiver_jax.types import UserError

SUFFIXES = ('.png', '.npy')


def present(predictor: Predictor, inputs: Sequence[str], output: str | None) -> Iterator[str]:
  """How far pixels go; draws the flow in colours, or writes it to an `.npy` file, [H, W, 2] float32, in pixels."""
  if len(inputs) != 2:
    raise UserError(f'optical flow needs two pictures, the first and the next; {len(inputs)} are given')
  first, second = (read_image(path) for path in inputs)
  flow = predictor.predict(first, second).flow
  length = np.hypot(flow[..., 0], flow[..., 1])
  x, y = flow.mean(axis=(0, 1)).tolist()
  yield (
    f'{flow.shape[1]} x {flow.shape[0]} pixels go {length.mean():.2f} px on average, {length.max():.2f} px at most; '
    f'mean {x:+z.2f} px to the right, {y:+z.2f} px down')
  if output and output.endswith('.npy'):
    _save(output, flow)
  elif output:
    visualize.flow_picture(output, first, second, flow)


def _save(path: str, flow: np.ndarray) -> None:
  try:
    np.save(path, flow)
  except OSError as error:
    raise UserError(f'cannot write {path}: {error.strerror}') from error
