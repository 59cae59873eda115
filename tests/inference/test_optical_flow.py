"""Flow between frames of any size: which tiles, how they are joined, and in which unit."""

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from perceiver_jax.inference.model import Model
from perceiver_jax.inference.optical_flow import predict, tile_corners, tile_weights
from perceiver_jax.types import UserError
from tests.tasks.tiny import random_model, read_config

pytestmark = pytest.mark.usefixtures('quick_compilation')

TILE = 12, 16                              # of the tiny model
RNG = np.random.default_rng(0)


def _model(flow_of):
  """A model whose flow is `flow_of(pair)` [H, W, 2], of uint8 [2, H, W, 3]."""
  def run(batch, *, capture=False):
    (pair,) = batch['frames']
    assert pair.shape == (2, *TILE, 3) and pair.dtype == np.uint8
    flow = np.broadcast_to(np.asarray(flow_of(pair), np.float32), (*TILE, 2))
    return {'flow': flow[None], **({'captured': {'latents': pair}} if capture else {})}

  return Model(read_config('optical_flow:debug'), {}, {}, run)


def _frames(height, width):
  return RNG.integers(0, 256, (2, height, width, 3), dtype=np.uint8)


# Tiles.


@pytest.mark.parametrize('size, tops, lefts', [
  ((436, 1024), [0, 68], [0, 476, 528]),   # Sintel
  ((375, 1242), [0, 7], [0, 476, 746]),    # KITTI
  ((368, 496), [0], [0]),
  ((369, 497), [0, 1], [0, 1]),
  ((716, 972), [0, 348], [0, 476]),        # two tiles that share 20 pixels
  ((717, 973), [0, 348, 349], [0, 476, 477]),
])
def test_tiles_are_where_the_authors_have_them(size, tops, lefts):
  assert tile_corners(size, (368, 496)) == [(top, left) for top in tops for left in lefts]


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 50), st.integers(0, 200))
def test_tiles_cover_every_pixel_and_neighbours_overlap(side, more):
  length = side + more
  starts = [top for top, _ in tile_corners((length, 1), (side, 1))]
  assert starts[0] == 0 and starts[-1] == length - side
  steps = np.diff(starts)
  assert np.all(steps > 0) and np.all(steps <= side - min(20, side // 2))


def test_a_tile_counts_by_the_distance_to_its_nearest_edge():
  expected = [[min(x + 1, 16 - x, y + 1, 12 - y) for x in range(16)] for y in range(12)]
  weights = tile_weights(TILE)
  assert weights.dtype == np.float32 and weights.min() == 1
  np.testing.assert_array_equal(weights, expected)


# Flow.


@pytest.mark.parametrize('size', [(12, 16), (1, 1), (5, 7), (12, 17), (13, 16), (30, 9), (9, 40), (31, 45), (18, 24)])
def test_a_constant_flow_comes_back_at_every_pixel_in_pixels(size):
  flow = predict(_model(lambda _: (0.5, -0.25)), *_frames(*size)).flow
  assert (flow.shape, flow.dtype) == ((*size, 2), np.float32)
  np.testing.assert_allclose(flow, np.broadcast_to([10, -5], flow.shape), rtol=1e-6)


@pytest.mark.parametrize('size', [(12, 16), (6, 4), (13, 33), (40, 21)])
def test_what_is_the_same_in_every_tile_is_joined_seamlessly(size):
  """A flow that tells the pixels' own colours."""
  first, second = _frames(*size)
  flow = predict(_model(lambda pair: pair[[0, 1], :, :, 1].transpose(1, 2, 0) / 20), first, second).flow
  np.testing.assert_allclose(flow, np.stack([first[..., 1], second[..., 1]], -1), rtol=1e-5, atol=1e-5)


def test_tiles_that_differ_are_averaged_by_their_weights():
  """Two tiles, of which each says how bright its own first pixel is."""
  frames = np.zeros((2, 12, 24, 3), np.uint8)
  frames[0, 0, 0], frames[0, 0, 8] = 40, 200
  flow = predict(_model(lambda pair: pair[0, 0, 0, :2] / 20), *frames).flow
  weights = tile_weights(TILE)
  np.testing.assert_allclose(flow[:, :8], 40, rtol=1e-6)
  np.testing.assert_allclose(flow[:, 16:], 200, rtol=1e-6)
  left, right = weights[:, 8:], weights[:, :8]
  expected = (40 * left + 200 * right) / (left + right)
  np.testing.assert_allclose(flow[:, 8:16], np.repeat(expected[..., None], 2, -1), rtol=1e-6)


def test_frames_smaller_than_a_tile_are_continued_by_their_border():
  seen = []
  first, second = _frames(5, 7)
  predict(_model(lambda pair: seen.append(pair) or (0, 0)), first, second)
  (pair,) = seen
  rows, columns = np.minimum(np.arange(12), 4), np.minimum(np.arange(16), 6)
  np.testing.assert_array_equal(pair, np.stack([first, second])[:, rows[:, None], columns])


def test_one_tile_is_twenty_times_what_the_model_says():
  model, (first, second) = random_model(read_config('optical_flow:debug')), _frames(*TILE)
  raw = model.run({'frames': np.stack([first, second])[None]})['flow'][0]
  np.testing.assert_allclose(predict(model, first, second).flow, 20 * raw, rtol=1e-5)
  assert np.abs(predict(model, second, first).flow - 20 * raw).max() > 1e-4


def test_grey_frames_are_taken_as_colours():
  grey = RNG.integers(0, 256, (2, 12, 16), dtype=np.uint8)
  flow = predict(_model(lambda pair: pair[0, :, :, 1:] / 20), *grey).flow
  np.testing.assert_allclose(flow, np.repeat(grey[0][..., None], 2, -1), rtol=1e-5, atol=1e-5)


def test_attention_comes_for_every_tile_if_it_is_asked_for():
  frames = _frames(13, 40)
  assert predict(_model(lambda _: (0, 0)), *frames).captured == []
  captured = predict(_model(lambda _: (0, 0)), *frames, capture=True).captured
  corners = tile_corners((13, 40), TILE)
  assert len(captured) == len(corners)
  for (top, left), tile in zip(corners, captured, strict=True):
    np.testing.assert_array_equal(tile['latents'], frames[:, top:top + 12, left:left + 16])


@pytest.mark.parametrize('first, second, message', [
  (np.zeros((8, 8, 3), np.uint8), np.zeros((8, 9, 3), np.uint8),
   r'the frames differ in size: \[8, 8, 3\] and \[8, 9, 3\]'),
  (np.zeros((8, 8, 3), np.float32), np.zeros((8, 8, 3), np.float32), 'a frame is uint8, 0 to 255, not float32'),
  (np.zeros((3, 8, 8), np.uint8), np.zeros((3, 8, 8), np.uint8), r'a frame is \[height, width, 3\], not \[3, 8, 8\]'),
  (np.zeros((8, 8, 3), np.uint8), np.zeros((0, 8, 3), np.uint8), r'not \[0, 8, 3\]'),
])
def test_what_are_no_two_frames_is_the_users_mistake(first, second, message):
  with pytest.raises(UserError, match=message):
    predict(_model(lambda _: (0, 0)), first, second)
