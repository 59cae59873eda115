"""From a coarse grid back to pixels, against PyTorch's convolutions and unfolding, and NumPy."""

import haiku as hk
import jax
import numpy as np
import pytest
import torch

from perceiver_jax.adapters.image import space_to_depth
from perceiver_jax.adapters.image_output import ConvUpsample, convex_upsample, depth_to_space, raft_flow
from perceiver_jax.types import UserError

pytestmark = pytest.mark.usefixtures('quick_compilation')

GENERATOR = np.random.default_rng(0)


def _normal(*shape):
  return GENERATOR.normal(size=shape).astype(np.float32)


def _transformed(function):
  return hk.without_apply_rng(hk.transform(function))


def _cut(video, num_frames, size):
  """[T, H, W, C] -> [T / t, H / s, W / s, t * s * s * C], by slicing."""
  time, height, width, _ = video.shape
  return np.array([[[
    video[t:t + num_frames, y:y + size, x:x + size].reshape(-1)
    for x in range(0, width, size)] for y in range(0, height, size)] for t in range(0, time, num_frames)])


def test_the_authors_examples_come_back():
  frames = np.arange(24).reshape(1, 2, 2, 2, 3)
  patch = np.concatenate([np.arange(24)[12 * frame:][:12] for frame in (0, 1)])
  np.testing.assert_array_equal(depth_to_space(patch.reshape(1, 1, 1, 1, 24), 2, 2), frames)
  image = np.arange(48).reshape(1, 4, 4, 3)
  patches = _cut(image[:, None][0], 1, 2)
  np.testing.assert_array_equal(patches[0, 0, 0], [0, 1, 2, 3, 4, 5, 12, 13, 14, 15, 16, 17])
  np.testing.assert_array_equal(depth_to_space(patches, 2), image)


@pytest.mark.parametrize(('num_frames', 'size'), [(1, 1), (2, 3), (4, 2), (2, 1)])
def test_patches_become_the_video_that_they_were_cut_from(num_frames, size):
  video = _normal(2, 4, 6, 12, 3)
  patches = np.stack([_cut(example, num_frames, size) for example in video])
  np.testing.assert_array_equal(depth_to_space(patches, size, num_frames), video)
  np.testing.assert_array_equal(depth_to_space(space_to_depth(video, size, num_frames), size, num_frames), video)


def test_patches_become_the_image_that_they_were_cut_from():
  image = _normal(2, 4, 6, 5)
  patches = np.stack([_cut(example[None], 1, 2)[0] for example in image])
  np.testing.assert_array_equal(depth_to_space(patches, 2), image)
  np.testing.assert_array_equal(depth_to_space(space_to_depth(image, 2), 2), image)


@pytest.mark.parametrize(('shape', 'num_frames'), [((1, 2, 2, 10), 1), ((1, 2, 2, 2, 12), 2)])
def test_channels_that_hold_no_whole_patches_are_the_users_mistake(shape, num_frames):
  with pytest.raises(UserError, match=rf'does not hold patches of {num_frames} x 2 x 2'):
    depth_to_space(np.zeros(shape), 2, num_frames)


@pytest.mark.parametrize(('shape', 'num_frames'), [((1, 2, 2, 8), 2), ((2, 2, 8), 1)])
def test_frames_are_asked_of_videos_alone(shape, num_frames):
  with pytest.raises(AssertionError, match='has rank'):
    depth_to_space(np.zeros(shape), 2, num_frames)


def _transposed_convolution(x, params, strides):
  """PyTorch's, which turns its kernel round where Haiku's does not; of stride 1 it gives a cell too many."""
  num_axes = len(strides)
  kernel = np.flip(params['w'], range(num_axes))  # [*4, out, in]
  kernel = torch.from_numpy(np.moveaxis(kernel, (-1, -2), (0, 1)).copy())
  convolve = {2: torch.nn.functional.conv_transpose2d, 3: torch.nn.functional.conv_transpose3d}[num_axes]
  y = convolve(torch.from_numpy(np.moveaxis(x, -1, 1).copy()), kernel, stride=strides, padding=1).numpy()
  sizes = [stride * n for stride, n in zip(strides, x.shape[1:-1], strict=True)]
  y = y[(slice(None), slice(None), *map(slice, sizes))]
  return np.moveaxis(y, 1, -1) + params['b']


def _built(factor, time_factor, x):
  function = _transformed(lambda x: ConvUpsample(3, factor, time_factor)(x))
  params = jax.tree.map(lambda p: np.asarray(p) + _normal(*p.shape) / 10, function.init(jax.random.key(0), x))
  return params, function.apply(params, x)


def test_an_image_is_upsampled_by_two_transposed_convolutions():
  x = _normal(2, 3, 5, 7)
  params, fine = _built(4, 1, x)
  assert jax.tree.map(np.shape, params) == {
    'upsample/conv_0': {'w': (4, 4, 6, 7), 'b': (6,)}, 'upsample/conv_1': {'w': (4, 4, 3, 6), 'b': (3,)}}
  hidden = np.maximum(_transposed_convolution(x, params['upsample/conv_0'], (2, 2)), 0)
  expected = _transposed_convolution(hidden, params['upsample/conv_1'], (2, 2))
  assert fine.shape == (2, 12, 20, 3) and (expected < 0).any()
  np.testing.assert_allclose(fine, expected, atol=1e-5)


@pytest.mark.parametrize(('factor', 'time_factor', 'strides'), [
  (4, 2, [(2, 2, 2), (1, 2, 2)]),
  (2, 4, [(2, 2, 2), (2, 1, 1)]),
  (2, 1, [(1, 2, 2)]),
])
def test_a_video_is_upsampled_in_space_and_time_until_each_is_done(factor, time_factor, strides):
  x = _normal(1, 2, 3, 2, 5)
  params, fine = _built(factor, time_factor, x)
  expected = x
  for layer, each in enumerate(strides):
    kernel = params[f'upsample/conv_{layer}']['w']
    assert kernel.shape == (4, 4, 4, 3 * 2**(len(strides) - 1 - layer), expected.shape[-1])
    expected = np.maximum(expected, 0) if layer else expected
    expected = _transposed_convolution(expected, params[f'upsample/conv_{layer}'], each)
  assert fine.shape == (1, 2 * time_factor, 3 * factor, 2 * factor, 3)
  np.testing.assert_allclose(fine, expected, atol=1e-5)


def test_factors_and_shapes_that_convolutions_cannot_upsample_are_the_users_mistake():
  for factor in (0, 3, 6):
    with pytest.raises(UserError, match=f'upsample: convolutions upsample by powers of 2, not {factor}'):
      _built(factor, 1, _normal(1, 2, 2, 3))
  with pytest.raises(AssertionError, match='shape'):
    _built(2, 2, _normal(1, 2, 2, 3))
  with pytest.raises(AssertionError, match='shape'):
    _built(2, 1, _normal(2, 2, 3))


def _mixed(coarse, logits, factor):
  """Pixel by pixel: PyTorch unfolds the neighbours, [B, C * 9, h * w]."""
  batch_size, height, width, num_channels = coarse.shape
  unfolded = torch.nn.functional.unfold(torch.from_numpy(np.moveaxis(coarse, -1, 1).copy()), 3, padding=1).numpy()
  unfolded = unfolded.reshape(batch_size, num_channels, 9, height, width)
  fine = np.zeros((batch_size, height * factor, width * factor, num_channels))
  for b, y, x in np.ndindex(batch_size, height * factor, width * factor):
    row, column = y // factor, x // factor
    start = 9 * (factor * (y % factor) + x % factor)
    weights = np.exp(logits[b, row, column, start:start + 9])
    fine[b, y, x] = factor * unfolded[b, :, :, row, column] @ (weights / weights.sum())
  return fine


def test_fine_flow_is_a_convex_mix_of_the_cells_around():
  coarse, logits = _normal(2, 3, 4, 2), _normal(2, 3, 4, 9 * 9)
  np.testing.assert_allclose(convex_upsample(coarse, logits, 3), _mixed(coarse, logits, 3), atol=1e-5)


def test_constant_flow_stays_constant_inside_in_finer_pixels():
  coarse = np.broadcast_to(np.array([0.5, -3], np.float32), (1, 5, 6, 2))
  fine = convex_upsample(coarse, 3 * _normal(1, 5, 6, 16 * 9), 4)
  assert fine.shape == (1, 20, 24, 2)
  inside = fine[:, 4:-4, 4:-4]
  np.testing.assert_allclose(inside, np.broadcast_to([2, -12], inside.shape), atol=1e-5)
  assert (np.abs(fine) < [2 + 1e-5, 12 + 1e-5]).all()


def test_weights_are_exact_though_logits_are_bfloat16():
  logits = jax.numpy.asarray(_normal(1, 2, 2, 36), 'bfloat16')
  fine = convex_upsample(np.ones((1, 2, 2, 1), np.float32), logits, 2)
  expected = _mixed(np.ones((1, 2, 2, 1), np.float32), np.asarray(logits, np.float32), 2)
  np.testing.assert_allclose(fine, expected, atol=1e-6)


def test_weights_that_do_not_fit_the_flow_are_the_users_mistake():
  with pytest.raises(AssertionError, match='shape'):
    convex_upsample(np.zeros((1, 2, 2, 2)), np.zeros((1, 2, 2, 36)), 4)
  with pytest.raises(AssertionError, match='shape'):
    convex_upsample(np.zeros((2, 2, 2)), np.zeros((2, 2, 9)), 1)


def test_flow_comes_of_answers_by_a_linear_and_weights_of_the_same_answers():
  features = _normal(2, 3, 4, 8)
  function = _transformed(lambda x: raft_flow(x, 4))
  params = jax.tree.map(lambda p: np.asarray(p) + _normal(*p.shape) / 10, function.init(jax.random.key(0), features))
  assert jax.tree.map(np.shape, params) == {
    'coarse_flow': {'w': (8, 2), 'b': (2,)},
    'upsample_hidden': {'w': (3, 3, 8, 8), 'b': (8,)},
    'upsample_weights': {'w': (8, 144), 'b': (144,)},
  }
  coarse = features @ params['coarse_flow']['w'] + params['coarse_flow']['b']
  kernel = torch.from_numpy(params['upsample_hidden']['w'].transpose(3, 2, 0, 1).copy())
  hidden = torch.nn.functional.conv2d(torch.from_numpy(features.transpose(0, 3, 1, 2).copy()), kernel, padding=1)
  hidden = np.maximum(hidden.numpy().transpose(0, 2, 3, 1) + params['upsample_hidden']['b'], 0)
  logits = hidden @ params['upsample_weights']['w'] + params['upsample_weights']['b']
  fine = function.apply(params, features)
  assert fine.shape == (2, 12, 16, 2)
  np.testing.assert_allclose(fine, _mixed(coarse, logits, 4), atol=1e-4)
  with pytest.raises(AssertionError, match='shape'):
    function.init(jax.random.key(0), _normal(2, 12, 8))
