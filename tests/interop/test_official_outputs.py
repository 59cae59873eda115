"""The six released models, tiny, against outputs of the authors' own modules (google-deepmind/deepmind-research).

The golden file was made by assembling each model as the authors' example does (perceiver/colabs), at the sizes below,
from their unchanged perceiver.py, io_processors.py and position_encoding.py of 2021, with jax 0.10.2, dm-haiku 0.0.17,
einops 0.8.2 and opencv 5.0.0, on a CPU, in float32 with float32 products. Parameters, BatchNorm averages and inputs are
those of `_official` and `_batch`, so that only outputs are stored: flow in pixels, tiled flow by the example's
`compute_optical_flow`, a clip decoded in the example's chunks, and the example's crop and resize of a frame. Every
stored number came out of their code alone.
"""

from __future__ import annotations

import functools
import pathlib

import haiku as hk
import jax
import numpy as np
import pytest

from perceiver_jax.config import overrides
from perceiver_jax.inference import optical_flow, video_autoencoding
from perceiver_jax.inference.model import build, template
from perceiver_jax.interop import deepmind
from perceiver_jax.tasks import make_task

pytestmark = pytest.mark.usefixtures('quick_compilation')

ROOT = pathlib.Path(__file__).resolve().parents[2]
GOLDEN = ROOT / 'tests' / 'golden' / 'deepmind_outputs.npz'
EXPERIMENTS = {
  'imagenet_fourier': 'imagenet.py:debug', 'imagenet_learned': 'imagenet.py:learned,debug',
  'imagenet_conv': 'imagenet.py:conv,debug', 'masked_lm': 'masked_lm.py:debug', 'optical_flow': 'optical_flow.py:debug',
  'video_autoencoding': 'video_autoencoding.py:debug',
}
IMAGE_SIZES = {'imagenet_fourier': (12, 20), 'imagenet_learned': (16, 16), 'imagenet_conv': (18, 21)}
TILE, FRAMES = (48, 64), (53, 112)  # sizes of the tiled flow: two rows of three tiles


def _config(name):
  return overrides.load(f'{ROOT}/configs/{EXPERIMENTS[name]}')


def _official(config):
  """(params, state) under the authors' names: every number drawn in the order of these names, none of them at rest."""
  rng, trees = np.random.default_rng(0), ({}, {})
  for tree, ours in zip(trees, template(config), strict=True):
    shapes = {
      deepmind.foreign_name(config.task, f'{module}:{leaf}'): value
      for module, leaves in ours.items() for leaf, value in leaves.items()}
    for name in sorted(shapes):
      module, leaf = name.rsplit(':', 1)
      tree.setdefault(module, {})[leaf] = _value(rng, module, leaf, shapes[name])
  return trees


def _value(rng, module, leaf, like):
  x = rng.normal(size=like.shape)
  if leaf == 'w':
    x *= 1.3 / np.sqrt(np.prod(like.shape[:-1]))
  elif leaf == 'scale':
    x = 1 + 0.4 * x
  elif leaf == 'counter':
    x = 7
  elif 'var_ema' in module:
    x = np.exp(0.4 * x)
  elif leaf not in ('pos_embs', 'embeddings'):
    x *= 0.5
  return np.asarray(x, like.dtype)


def _batch(name, config):
  """Two or three examples, as the authors' examples take them before they normalise; masks for text alone."""
  rng, data = np.random.default_rng(1), config.data
  if name == 'masked_lm':
    tokens = rng.integers(0, data.vocab_size, (3, data.max_length), np.int32)
    valid = rng.random((3, data.max_length)) < [[0.6], [0.3], [0.0]]  # the last example is all padding
    return {'tokens': tokens, 'valid': valid.astype(np.uint8)}
  if name == 'optical_flow':
    return {'frames': _pixels(rng, 2, *data.frame_size, 3)}
  if name == 'video_autoencoding':
    video = _pixels(rng, data.num_frames, data.image_size, data.image_size, 3)
    audio = np.tanh(rng.normal(size=(2, data.num_frames * data.samples_per_frame))).astype(np.float32)
    return {'video': video, 'audio': audio, 'label': np.zeros((2, data.num_classes), np.float32)}
  return {'image': _pixels(rng, *IMAGE_SIZES[name], 3)}


def _pixels(rng, *shape):
  """[2, *shape] uint8: a dark example and a bright one, as a model that attends evenly sees the mean of its inputs."""
  return rng.integers([[0], [128]], [[128], [256]], (2, np.prod(shape)), np.uint8).reshape(2, *shape)


def _frames(size):
  """[2, H, W, 3] uint8: slow waves, for what is resized."""
  rows, columns = np.mgrid[:size[0], :size[1]]
  waves = [np.sin(rows / (5 + i) + i) * np.cos(columns / (4 + i)) for i in range(6)]
  return (128 + 120 * np.stack(waves, -1).reshape(*size, 2, 3).transpose(2, 0, 1, 3)).astype(np.uint8)


@functools.cache
def _golden():
  with np.load(GOLDEN) as file:
    return dict(file)


@functools.cache
def _model(name):
  config = _config(name)
  return build(config, *deepmind.convert(*_official(config), config, template(config)))


def _outputs(name, **changes):
  """Ours, in the authors' layout: flow in pixels, a clip's pixels in a row, every fourth position of the text."""
  model = _model(name)
  outputs = model.run({**_batch(name, model.config), **changes})
  if name == 'masked_lm':
    return {'logits': outputs['logits'][:, ::4]}
  if name == 'optical_flow':
    return {'flow': 20 * outputs['flow']}
  if name == 'video_autoencoding':
    return {**outputs, 'video': outputs['video'].reshape(len(outputs['video']), -1, 3)}
  return outputs


def _far(ours, theirs):
  """The largest difference, by the largest of theirs."""
  assert ours.shape == theirs.shape
  return np.abs(ours - theirs).max() / np.abs(theirs).max()


@pytest.mark.parametrize('name', EXPERIMENTS)
def test_outputs_are_those_of_the_authors_code(name):
  outputs = _outputs(name)
  assert {f'{name}.{key}' for key in outputs} == {key for key in _golden() if key.startswith(f'{name}.')}
  for key, value in outputs.items():
    theirs = _golden()[f'{name}.{key}']
    assert _far(value, theirs) < 2e-5, key
    assert _far(theirs[1], theirs[0]) > 0.05, f'{key} is the same for any input'


def test_a_mask_changes_the_text_that_it_hides():
  theirs = _golden()['masked_lm.logits']
  unmasked = _outputs('masked_lm', valid=np.ones((3, 32), np.uint8))['logits']
  assert all(_far(ours, masked) > 0.05 for ours, masked in zip(unmasked, theirs, strict=True))


def test_points_of_a_clip_are_answered_as_in_the_whole():
  points = {'video_points': np.array([127, 3, 64]), 'audio_points': np.array([7, 0])}
  outputs = _outputs('video_autoencoding', **{name: np.stack([x, x]) for name, x in points.items()})
  assert _far(outputs['video'], _golden()['video_autoencoding.video'][:, points['video_points']]) < 2e-5
  audio = _golden()['video_autoencoding.audio'].reshape(2, -1, 8)[:, points['audio_points']]
  assert _far(outputs['audio'], audio.reshape(2, -1)) < 2e-5


def test_the_label_of_a_clip_is_never_seen():
  outputs = _outputs('video_autoencoding', label=np.eye(5, dtype=np.float32)[[1, 3]])
  assert all(_far(value, _golden()[f'video_autoencoding.{key}']) < 2e-5 for key, value in outputs.items())


def test_flow_of_large_frames_is_tiled_and_joined_as_theirs():
  config = _config('optical_flow')
  config.data.frame_size = config.model.max_resolution = TILE
  model = build(config, *deepmind.convert(*_official(config), config, template(config)))
  flow = optical_flow.predict(model, *_frames(FRAMES)).flow
  assert _far(flow[::2, ::2], _golden()['tiled_flow']) < 2e-5


def test_a_frame_of_a_clip_is_cropped_and_resized_as_theirs():
  """To a grey level: theirs is resized in fixed-point numbers."""
  ours = video_autoencoding.central_square(_frames((30, 41)), 16)
  assert np.abs(ours.astype(int) - _golden()['frames_of_a_clip']).max() <= 1


def test_untrained_flow_is_zero_as_theirs():
  config = _config('optical_flow')
  batch = _batch('optical_flow', config)
  init = functools.partial(hk.transform_with_state(make_task(config).forward).init, is_training=True)
  params, _ = jax.jit(init)(jax.random.key(0), batch)
  assert not np.any(params['decoder/output']['w']) and np.any(params['stem']['w'])
