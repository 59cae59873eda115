"""Maps of attention lie where the latents look, and a picture of them is refused where they do not fit."""

import numpy as np
import pytest
from matplotlib.image import AxesImage

from perceiver_jax import visualize
from perceiver_jax.types import UserError
from perceiver_jax.visualize.attention import different_latents, overlay, share_of_peak
from tests.visualize.tidy import assert_tidy, boxes_of_texts


def image_of(*shape):
  return np.random.default_rng(0).integers(256, size=shape, dtype=np.uint8)


def softmax_weights(*shape):
  scores = np.exp(3 * np.random.default_rng(1).normal(size=shape))
  return scores / scores.sum(-1, keepdims=True)


CASES = {
  'patches': (image_of(64, 64, 3), softmax_weights(1, 20, 256), dict(grid=(16, 16))),
  'eight cross-attends': (image_of(16, 16, 3), softmax_weights(8, 9, 256), {}),
  'twelve flat cross-attends': (image_of(4, 64, 3), softmax_weights(12, 9, 256), {}),
  'tiny, one latent': (image_of(8, 8, 1), softmax_weights(1, 1, 64), {}),
  'one pixel': (image_of(1, 1, 1), softmax_weights(1, 2, 1), {}),
  'wide': (image_of(64, 256, 3), softmax_weights(3, 12, 64), dict(grid=(4, 16))),
  'tall, many latents': (
    image_of(64, 8, 3), softmax_weights(2, 2000, 32), dict(grid=(16, 2), latents=range(1988, 2000))),
  'video': (image_of(16, 16, 16, 3), softmax_weights(1, 9, 1024), dict(grid=(16, 8, 8))),
  'tall video': (image_of(2, 64, 4, 3), softmax_weights(3, 9, 32), dict(grid=(2, 4, 4))),
  'cells finer than pixels': (image_of(4, 4, 3), softmax_weights(1, 9, 64), dict(grid=(8, 8))),
  'a latent that looks elsewhere': (image_of(4, 4, 3), np.zeros((1, 1, 16), np.float16), {}),
}


@pytest.mark.parametrize('case', CASES)
def test_a_picture_is_tidy(case, drawn):
  image, attention, options = CASES[case]
  figure, picture = drawn(visualize.attention_over_pixels, image, attention, **options)
  assert picture.shape[1] == 1400
  assert_tidy(figure)


@pytest.mark.parametrize('row, column', [(0, 0), (0, 3), (2, 1)])
def test_a_map_is_bright_where_its_latent_looks(row, column, drawn):
  attention = np.zeros((1, 1, 12))
  attention[0, 0, 4 * row + column] = 0.2              # the rest is attention to other inputs
  figure, picture = drawn(visualize.attention_over_pixels, np.zeros((30, 40, 3), np.uint8), attention, grid=(3, 4))
  box = figure.findobj(AxesImage)[1].get_window_extent()
  bottom = len(picture)
  cells = [picture[int(bottom - box.y1 + (r + 0.5) * box.height / 3), int(box.x0 + (c + 0.5) * box.width / 4)].sum()
           for r in range(3) for c in range(4)]
  assert np.argmax(cells) == 4 * row + column
  assert max(cells) > 2 and sorted(cells)[-2] < 0.1


def test_each_cross_attend_and_time_step_has_its_own_row(drawn):
  attention = np.zeros((2, 1, 3 * 4))                  # 2 cross-attends over 3 steps of 2 x 2 cells
  attention[0, 0, 4 * 1 + 3] = 1                       # the first looks at the last cell of step 2
  attention[1, 0, 4 * 2 + 0] = 1                       # the second at the first cell of step 3
  frames = np.stack([np.full((2, 2, 1), value, np.uint8) for value in (0, 100, 200)])
  figure, _ = drawn(visualize.attention_over_pixels, frames, attention, grid=(3, 2, 2))
  images = [image.get_array() for image in figure.findobj(AxesImage)][:-1]  # the last is the key
  assert [image.max() for image in images[::3]] == [0, 100, 200]
  lit = [(step, turn, *np.argwhere(images[3 * step + 1 + turn].sum(-1) > 2).ravel())
         for step in range(3) for turn in range(2) if images[3 * step + 1 + turn].max() > 0.9]
  assert lit == [(1, 0, 1, 1), (2, 1, 0, 0)]
  assert {text for text, _ in boxes_of_texts(figure)} >= {'1/2', '2/2', 'step 1 of 3', 'step 3 of 3', 'latent 0'}


def test_the_latents_asked_for_are_the_ones_shown(drawn):
  figure, _ = drawn(visualize.attention_over_pixels, image_of(4, 4, 3), softmax_weights(1, 9, 16), latents=[7, 2])
  names = [text for text, _ in boxes_of_texts(figure) if text.startswith('latent')]
  assert names == ['latent 7', 'latent 2']


@pytest.mark.parametrize(('image', 'attention', 'options', 'says'), [
  (image_of(8, 8, 3), np.ones((1, 4, 9)), {}, r'\(1, 4, 9\) does not fit a grid of 8 x 8 = 64 cells'),
  (image_of(8, 8, 3), np.ones((1, 4, 64)), dict(grid=(3, 3)), r'\(1, 4, 64\) does not fit a grid of 3 x 3 = 9 cells'),
  (image_of(8, 8, 3), np.ones((4, 64)), {}, r'\(4, 64\) does not fit a grid of 8 x 8'),
  (image_of(8, 8, 3), np.ones((1, 4, 64)), dict(grid=(64,)), r'\(h, w\) or \(t, h, w\), not \(64,\)'),
  (image_of(8, 8), np.ones((1, 4, 64)), {}, r'uint8 of shape \(8, 8\)'),
  (image_of(8, 8, 3) / 255, np.ones((1, 4, 64)), {}, r'float64 of shape \(8, 8, 3\)'),
  (image_of(3, 8, 8, 3), np.ones((1, 4, 128)), dict(grid=(2, 8, 8)), r'\(3, 8, 8, 3\) do not fit a grid of 2 x 8 x 8'),
  (image_of(8, 8, 3), np.full((1, 4, 64), np.nan), {}, 'not finite'),
  (image_of(8, 8, 3), -np.ones((1, 4, 64)), {}, 'negative'),
  (image_of(8, 8, 3), np.ones((1, 4, 64)), dict(latents=[4]), r'\[4\].*0 to 3'),
  (image_of(8, 8, 3), np.ones((1, 40, 64)), dict(latents=range(13)), '1 to 12'),
  (image_of(8, 8, 3), np.ones((1, 4, 64)), dict(latents=[]), '1 to 12'),
])
def test_what_does_not_fit_is_refused(image, attention, options, says, tmp_path):
  with pytest.raises(UserError, match=says):
    visualize.attention_over_pixels(tmp_path / 'picture.png', image, attention, **options)


def test_latents_that_look_at_few_and_different_pixels_are_chosen():
  maps = np.full((1, 8, 16), 1 / 16)
  for latent, pixel in ((2, 3), (4, 3), (5, 9)):
    maps[0, latent] = 0.1 / 15
    maps[0, latent, pixel] = 0.9
  assert different_latents(maps, 2) == [2, 5], 'latent 4 looks where latent 2 looks'
  assert different_latents(maps, 3)[1:] != [4, 5]
  assert different_latents(maps, 99) == list(range(8))


def test_even_attention_still_gives_as_many_latents_as_asked():
  assert len(set(different_latents(np.full((3, 50, 1000), 1e-3, np.float16), 5))) == 5


def test_a_latent_that_looks_at_nothing_is_no_error():
  maps = np.zeros((1, 3, 4))
  maps[0, 1, 2] = 1
  assert different_latents(maps, 1) == [1]
  assert (share_of_peak(maps)[0] == [[0, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]).all()


def test_brightness_follows_the_attention_over_the_picture():
  weights = share_of_peak(np.array([0.1, 0.2, 0.3, 0.4])).reshape(2, 2)
  lit = overlay(np.zeros((2, 2, 1), np.uint8), weights).sum(-1).ravel()
  assert (np.diff(lit) > 0).all()
  unlit = overlay(np.array([[[255], [0]]], np.uint8), np.array([[0.0, 1.0]]))
  assert unlit[0, 0].max() < 0.4 < unlit[0, 1].max(), 'a white pixel that nobody looks at stays dim'


def test_a_coarse_cell_covers_the_pixels_below_it():
  lit = overlay(np.zeros((6, 4, 1), np.uint8), np.array([[0, 1], [0, 0], [0, 0]])).max(-1) > 0.5
  np.testing.assert_array_equal(lit, [[0, 0, 1, 1]] * 2 + [[0, 0, 0, 0]] * 4)
  assert overlay(np.zeros((2, 8, 1), np.uint8), np.zeros((4, 4))).shape == (4, 8, 3)
