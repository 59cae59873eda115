"""Optical flow between two frames of any size, tile by tile (2107.14795, appendix H)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from tqdm import tqdm

from perceiver_jax.inference.model import Model, as_image, ask
from perceiver_jax.tasks.optical_flow import FLOW_SCALE
from perceiver_jax.types import UserError

if TYPE_CHECKING:
  from perceiver_jax.inference.predictor import Predictor

SUFFIXES = ('.png', '.npy')
OVERLAP = 20  # pixels that neighbouring tiles share at least, as in the authors' example


class Flow(NamedTuple):
  """Holds the motion of every pixel of the first frame."""

  flow: np.ndarray                   # [H, W, 2] float32: x to the right and y down, in pixels
  captured: list[dict[str, Any]]     # of every tile, attention maps and latents, where asked for


def predict(model: Model, first: Any, second: Any, *, capture: bool = False) -> Flow:
  """The flow from one frame to the next.

  Args:
    model: of the task optical_flow.
    first: [H, W, 3] uint8, of any size: what is smaller than a tile is padded with its border. Or a file's path.
    second: of the same size.
    capture: also return attention maps and latents; at full size a map takes gigabytes.

  Raises:
    UserError: frames of different sizes, or not uint8.
  """
  frames = [as_image(frame, 'a frame') for frame in (first, second)]
  if frames[0].shape != frames[1].shape:
    raise UserError(f'the frames differ in size: {list(frames[0].shape)} and {list(frames[1].shape)}')
  tile = tuple(model.config.data.frame_size)
  size = frames[0].shape[:2]
  padding = [(0, max(0, side - length)) for length, side in zip(size, tile, strict=True)]
  pair = np.pad(np.stack(frames), [(0, 0), *padding, (0, 0)], mode='edge')
  total, weight, captured = np.zeros((*pair.shape[1:3], 2), np.float32), np.zeros(pair.shape[1:3], np.float32), []
  share = tile_weights(tile)
  for top, left in tqdm(tile_corners(pair.shape[1:3], tile), desc='tiles', leave=False, disable=None):
    window = np.s_[top:top + tile[0], left:left + tile[1]]
    outputs = ask(model, {'frames': pair[None, :, *window]}, capture=capture)
    total[window] += share[..., None] * outputs['flow'][0]
    weight[window] += share
    captured += [outputs['captured']] if capture else []
  flow = FLOW_SCALE * total / weight[..., None]
  return Flow(flow[:size[0], :size[1]], captured)


def tile_corners(size: tuple[int, ...], tile: tuple[int, ...]) -> list[tuple[int, int]]:
  """Top and left of tiles that cover an image no smaller than one; the last of a row or column ends at the border."""
  starts = []
  for length, side in zip(size, tile, strict=True):
    overlap = min(OVERLAP, side // 2)
    steps = range(0, length - overlap, side - overlap)
    starts.append(sorted({min(step, length - side) for step in steps}))
  return [(top, left) for top in starts[0] for left in starts[1]]


def tile_weights(tile: tuple[int, ...]) -> np.ndarray:
  """Returns the weight of a tile at each of its pixels, [H, W] float32: the distance to its nearest edge."""
  rows, columns = (np.minimum(np.arange(1, side + 1), np.arange(side, 0, -1)) for side in tile)
  return np.minimum(rows[:, None], columns[None]).astype(np.float32)


def present(predictor: Predictor, inputs: Sequence[str], output: str | None) -> Iterator[str]:
  """Tells how far pixels go; draws the flow, or writes it to an `.npy` file, [H, W, 2] float32, in pixels."""
  from perceiver_jax import visualize
  from perceiver_jax.data.files import read_image

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
