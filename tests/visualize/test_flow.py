"""Colours of flows that are known, and a picture that says what its colours mean."""

import cv2
import numpy as np
import pytest
from matplotlib.image import AxesImage

from perceiver_jax import visualize
from perceiver_jax.types import UserError
from tests.visualize.tidy import assert_tidy, boxes_of_texts


def image_of(*shape):
  return np.random.default_rng(0).integers(256, size=shape, dtype=np.uint8)


def flow_of(height, width, longest=30.0):
  return np.random.default_rng(1).uniform(-longest, longest, size=(height, width, 2)).astype(np.float32)


@pytest.mark.parametrize(('motion', 'colour'), [
  ((0, 0), (255, 255, 255)),
  ((24, 0), (255, 0, 0)),                              # right: hue 0
  ((0, 24), (128, 255, 0)),                            # down: hue 90 degrees
  ((-24, 0), (0, 255, 255)),                           # left: hue 180 degrees
  ((0, -24), (128, 0, 255)),                           # up: hue 270 degrees
  ((12, 0), (255, 128, 128)),                          # half as far, half as full
  ((900, 0), (255, 0, 0)),
  ((np.nan, 0), (128, 128, 128)),
  ((0, -np.inf), (128, 128, 128)),
])
def test_a_motion_has_its_colour(motion, colour):
  colours = visualize.flow_colours(np.full((1, 1, 2), motion, np.float32))
  assert colours.dtype == np.uint8
  np.testing.assert_allclose(colours[0, 0], colour, atol=1)


def test_colours_are_those_of_the_released_recipe():
  """facts of the released notebook: 8-bit HSV, hue = angle / 2 pi * 180, saturation = clip(length * 255 / 24)."""
  flow = flow_of(50, 60)
  length, angle = cv2.cartToPolar(flow[..., 0], flow[..., 1])
  hsv = np.stack([angle / (2 * np.pi) * 180, np.clip(length * 255 / 24, 0, 255), np.full_like(length, 255)], -1)
  expected = cv2.cvtColor(hsv.astype(np.uint8), cv2.COLOR_HSV2RGB)
  # A step of 8-bit hue is two degrees, a thirtieth of the way from one full colour to the next.
  np.testing.assert_allclose(visualize.flow_colours(flow).astype(int), expected, atol=255 / 30 + 2)


def test_max_magnitude_is_where_colours_become_full():
  flow = np.array([[[3.0, 0.0], [1.5, 0.0]]])
  np.testing.assert_array_equal(visualize.flow_colours(flow, max_magnitude=3), [[[255, 0, 0], [255, 128, 128]]])


CASES = {
  'as Sintel': (109, 256), 'wide': (64, 256), 'tiny': (8, 8), 'tall': (256, 64), 'one pixel': (1, 1),
}


@pytest.mark.parametrize('case', CASES)
def test_a_picture_is_tidy(case, drawn):
  height, width = CASES[case]
  flow = flow_of(height, width)
  flow[0, 0] = np.nan
  figure, picture = drawn(visualize.flow_picture, image_of(height, width, 3), image_of(height, width, 3), flow)
  assert picture.shape[1] == 1400
  assert_tidy(figure)


def test_the_picture_holds_both_frames_and_the_colours_of_the_flow(drawn):
  first, second, flow = image_of(8, 8, 3), image_of(8, 8, 3)[::-1], flow_of(8, 8)
  figure, picture = drawn(visualize.flow_picture, first, second, flow)
  for shown, expected in zip(figure.findobj(AxesImage), (first, second, visualize.flow_colours(flow)), strict=False):
    box = shown.get_window_extent()
    rows = (len(picture) - box.y1 + (np.arange(8) + 0.5) * box.height / 8).astype(int)
    columns = (box.x0 + (np.arange(8) + 0.5) * box.width / 8).astype(int)
    np.testing.assert_allclose(255 * picture[rows[:, None], columns], expected, atol=1)


def test_the_wheel_shows_every_direction_and_the_scale_in_pixels(drawn):
  figure, picture = drawn(visualize.flow_picture, *[image_of(8, 8, 1)] * 2, flow_of(8, 8), max_magnitude=6.0)
  box = figure.findobj(AxesImage)[3].get_window_extent()
  x, y = (box.x0 + box.x1) / 2, len(picture) - (box.y0 + box.y1) / 2
  for across, down in ((0, 0), (1, 0), (0, 1), (-1, 0), (0, -1)):
    colour = picture[round(y + 0.9 * down * box.height / 2), round(x + 0.9 * across * box.width / 2)]
    expected = visualize.flow_colours(np.array([[[across * 0.9, down * 0.9]]]), max_magnitude=1)[0, 0]
    np.testing.assert_allclose(255 * colour, expected, atol=12)
  assert (picture[round(y - 0.95 * box.height / 2), round(x - 0.95 * box.width / 2)] == 1).all(), 'a wheel is round'
  texts = {text for text, _ in boxes_of_texts(figure)}
  assert texts >= {'left', 'right', 'up', 'down', 'dotted circle: 3 px', 'rim: 6 px or more'}


def test_the_caption_says_how_long_the_flow_is_and_where_it_is_unknown(drawn):
  flow = np.zeros((20, 100, 2))
  flow[0, 0], flow[1] = (3, 4), np.inf
  figure, _ = drawn(visualize.flow_picture, *[image_of(20, 100, 3)] * 2, flow)
  texts = {text for text, _ in boxes_of_texts(figure)}
  assert texts >= {'flow: mean 0.00263 px, longest 5 px', 'not finite at 100 of 2,000 pixels: grey'}
  flow[:] = np.nan
  figure, _ = drawn(visualize.flow_picture, *[image_of(20, 100, 3)] * 2, flow)
  assert 'not finite at 2,000 of 2,000 pixels: grey' in {text for text, _ in boxes_of_texts(figure)}


@pytest.mark.parametrize('shape', [(4, 4), (4, 4, 3), (1, 4, 4, 2), (2,)])
def test_flow_of_another_shape_is_refused(shape, tmp_path):
  with pytest.raises(UserError, match=r'\[H, W, 2\], not \(' + ', '.join(map(str, shape))):
    visualize.flow_colours(np.zeros(shape))
  with pytest.raises(UserError):
    visualize.flow_picture(tmp_path / 'picture.png', *[image_of(4, 4, 3)] * 2, np.zeros(shape))


@pytest.mark.parametrize(('first', 'second', 'flow', 'says'), [
  (image_of(4, 4, 3), image_of(4, 5, 3), flow_of(4, 4), r'\(4, 4, 3\) and \(4, 5, 3\)'),
  (image_of(4, 4, 3), image_of(4, 4, 3), flow_of(3, 4), r'\(4, 4, 3\).*\(3, 4, 2\)'),
  (image_of(4, 4), image_of(4, 4), flow_of(4, 4), r'uint8 of shape \(4, 4\)'),
  (image_of(4, 4, 3), image_of(4, 4, 3) / 255, flow_of(4, 4), r'float64 of shape \(4, 4, 3\)'),
])
def test_frames_that_do_not_fit_are_refused(first, second, flow, says, tmp_path):
  with pytest.raises(UserError, match=says):
    visualize.flow_picture(tmp_path / 'picture.png', first, second, flow)


@pytest.mark.parametrize('length', [0, -1, np.nan, np.inf])
def test_a_scale_that_is_no_length_is_refused(length):
  with pytest.raises(UserError, match='max_magnitude'):
    visualize.flow_colours(flow_of(2, 2), max_magnitude=length)
