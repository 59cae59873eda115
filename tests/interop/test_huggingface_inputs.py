"""The layouts of Hugging Face's inputs and logits; test_huggingface.py compares what models make of them."""

from __future__ import annotations

import numpy as np
import pytest

from perceiver_jax.interop.huggingface_config import ARCHITECTURES, read_config
from perceiver_jax.interop.huggingface_inputs import inputs_of, logits_of
from perceiver_jax.types import UserError

MASKED_LM, FOURIER = 'PerceiverForMaskedLM', 'PerceiverForImageClassificationFourier'
LEARNED, CONV = 'PerceiverForImageClassificationLearned', 'PerceiverForImageClassificationConvProcessing'
FLOW, MULTIMODAL = 'PerceiverForOpticalFlow', 'PerceiverForMultimodalAutoencoding'
SIZES = {
  'max_position_embeddings': 6, 'vocab_size': 9, 'image_size': 8, 'num_labels': 3, 'num_frames': 2,
  'output_shape': [1, 2, 8, 8], 'audio_samples_per_frame': 8, 'samples_per_patch': 4}
CONFIGS = {name: read_config({**SIZES, 'architectures': [name]}) for name in ARCHITECTURES}
TOKENS = np.array([[1, 2, 3, 4], [8, 0, 0, 5]])
IMAGE = np.random.default_rng(0).normal(size=(2, 3, 8, 8))
PATCHES = np.random.default_rng(0).normal(size=(2, 2, 27, 3, 5))
PARTS = {
  'image': np.random.default_rng(0).normal(size=(2, 2, 3, 8, 8)).astype(np.float32),
  'audio': np.random.default_rng(0).normal(size=(2, 16, 1)).astype(np.float32),
  'label': np.eye(3, dtype=np.float32)[:2],
}


def _batch(architecture: str, **inputs):
  return inputs_of(CONFIGS[architecture], architecture, inputs)


@pytest.mark.parametrize('name', ['inputs', 'input_ids'])
def test_tokens_go_by_two_names(name):
  batch = _batch(MASKED_LM, **{name: TOKENS}, attention_mask=np.array([[1, 1, 1, 1], [2, 1, 0, 0]]))
  assert batch.keys() == {'tokens', 'valid'} and batch['tokens'].dtype == np.int32
  np.testing.assert_array_equal(batch['tokens'], TOKENS)
  np.testing.assert_array_equal(batch['valid'], [[1, 1, 1, 1], [1, 1, 0, 0]])


@pytest.mark.parametrize('name', ['inputs', 'pixel_values'])
@pytest.mark.parametrize(('architecture', 'num_elements'), [(FOURIER, 64), (LEARNED, 64), (CONV, 1)])
def test_colours_of_an_image_go_last(name, architecture, num_elements):
  batch = _batch(architecture, **{name: IMAGE}, attention_mask=np.ones([2, num_elements]))
  assert batch['image'].dtype == np.float32
  for row, column in np.ndindex(8, 8):
    np.testing.assert_array_equal(batch['image'][:, row, column], IMAGE[:, :, row, column].astype(np.float32))


def test_images_of_other_sizes_are_taken_where_positions_are_computed():
  assert _batch(FOURIER, inputs=np.ones([1, 3, 4, 9]))['image'].shape == (1, 4, 9, 3)
  assert _batch(CONV, inputs=np.ones([1, 3, 224, 21]), attention_mask=np.ones([1, 55 * 5]))['valid'].shape == (1, 275)


def test_values_of_a_patch_go_last():
  batch = _batch(FLOW, inputs=PATCHES, attention_mask=np.ones([2, 15]))
  for frame, row, column in np.ndindex(2, 3, 5):
    np.testing.assert_array_equal(
      batch['patches'][:, frame, row, column], PATCHES[:, frame, :, row, column].astype(np.float32))


def test_modalities_get_our_names_layouts_and_order():
  # Of theirs: 4 elements of audio, 8 of the image, one of the label.
  batch = _batch(
    MULTIMODAL, inputs=PARTS, subsampled_output_points={'image': [127, 0], 'audio': [3], 'label': None},
    attention_mask=np.array([[1, 1, 1, 0, *8 * [0], 1], [0, 0, 0, 1, 1, *6 * [0], 1, 0]]))
  np.testing.assert_array_equal(batch['video'], np.moveaxis(PARTS['image'], 2, -1))
  np.testing.assert_array_equal(batch['audio'], PARTS['audio'][:, :, 0])
  np.testing.assert_array_equal(batch['label'], PARTS['label'])
  np.testing.assert_array_equal(batch['video_points'], [[127, 0]] * 2)
  np.testing.assert_array_equal(batch['audio_points'], [[3]] * 2)
  np.testing.assert_array_equal(batch['valid'], [[1, 1, 1, 0, 1, *8 * [0]], [0, 0, 0, 1, 0, 1, *6 * [0], 1]])
  assert _batch(MULTIMODAL, inputs=PARTS).keys() == {'video', 'audio', 'label'}


def test_arguments_may_be_given_as_none():
  assert _batch(MASKED_LM, inputs=TOKENS, input_ids=None, attention_mask=None).keys() == {'tokens'}


def _parts(**changed):
  return {**PARTS, **changed}


@pytest.mark.parametrize(('architecture', 'inputs', 'message'), [
  (MASKED_LM, {'inputs': TOKENS, 'input_ids': TOKENS}, 'takes one of inputs and input_ids; there is inputs and input_'),
  (FOURIER, {'inputs': IMAGE, 'pixel_values': IMAGE}, 'takes one of inputs and pixel_values'),
  (FOURIER, {}, 'there is none'),
  (FOURIER, {'input_ids': TOKENS}, 'takes inputs, pixel_values and attention_mask; not input_ids'),
  (LEARNED, {'inputs': IMAGE, 'interpolate_pos_encoding': True}, 'not interpolate_pos_encoding'),
  (FLOW, {'inputs': PATCHES, 'subsampled_output_points': None}, 'not subsampled_output_points'),
  (MASKED_LM, {'inputs': TOKENS[0]}, r'tokens are integers \[batch, 1 to 6 tokens\], not int64 \[4\]'),
  (MASKED_LM, {'inputs': TOKENS * 1.0}, 'not float64'),
  (MASKED_LM, {'inputs': np.ones([1, 7], int)}, r'1 to 6 tokens\], not int64 \[1, 7\]'),
  (MASKED_LM, {'inputs': np.ones([1, 0], int)}, r'not int64 \[1, 0\]'),
  (MASKED_LM, {'inputs': TOKENS + 1}, 'from 1 to 9; this model knows 0 to 8'),
  (MASKED_LM, {'inputs': TOKENS - 1}, 'from -1 to 7'),
  (MASKED_LM, {'inputs': TOKENS, 'attention_mask': np.ones([2, 6])}, r'is \[2, 6\], but there are \[2, 4\] elements'),
  (FOURIER, {'inputs': IMAGE[0]}, r'floats \[batch, 3, height, width\], not float64 \[3, 8, 8\]'),
  (FOURIER, {'inputs': np.moveaxis(IMAGE, 1, -1)}, r'not float64 \[2, 8, 8, 3\]'),
  (FOURIER, {'inputs': np.ones([2, 3, 8, 8], np.uint8)}, 'not uint8'),
  (FOURIER, {'inputs': IMAGE, 'attention_mask': np.ones([1, 64])}, r'is \[1, 64\], but there are \[2, 64\] elements'),
  (LEARNED, {'inputs': IMAGE[..., 1:]}, 'of images of 8 x 8 pixels, not 8 x 7'),
  (CONV, {'inputs': IMAGE[..., 4:]}, r'at least 5 x 5 pixels, not \[8, 4\]'),
  (FLOW, {'inputs': PATCHES[:, :1]}, r'floats \[batch, 2, 27, height, width\], not float64 \[2, 1, 27, 3, 5\]'),
  (FLOW, {'inputs': PATCHES[:, :, :3]}, r'not float64 \[2, 2, 3, 3, 5\]'),
  (MULTIMODAL, {'inputs': PARTS['image']}, "inputs is {'image'"),
  (MULTIMODAL, {'inputs': {'image': PARTS['image']}}, "inputs is {'image'"),
  (MULTIMODAL, {'inputs': _parts(image=PARTS['image'][:, 0])}, r"inputs\['image'\] is of floats \[batch, frames, 3"),
  (MULTIMODAL, {'inputs': _parts(image=PARTS['image'][..., 1:])}, r'do not divide the image \[2, 2, 3, 8, 7\]'),
  (MULTIMODAL, {'inputs': _parts(audio=PARTS['audio'][:, 1:])}, r'and 4 samples do not divide .* audio \[2, 15\]'),
  (MULTIMODAL, {'inputs': _parts(audio=PARTS['audio'][..., 0])}, r"inputs\['audio'\] is of floats \[2, samples, 1\]"),
  (MULTIMODAL, {'inputs': _parts(label=PARTS['label'][:1])}, r"inputs\['label'\] is of floats \[2, 3\], not"),
  (MULTIMODAL, {'inputs': PARTS, 'subsampled_output_points': {'image': [0]}}, 'subsampled_output_points is'),
  (MULTIMODAL, {'inputs': PARTS, 'subsampled_output_points': {'image': [0], 'audio': [0], 'label': [0]}}, 'points is'),
  (MULTIMODAL, {'inputs': PARTS, 'subsampled_output_points': {'image': [128], 'audio': [0]}},
   r"points\['image'\] are integers \[points\] from 0 to 127"),
  (MULTIMODAL, {'inputs': PARTS, 'subsampled_output_points': {'image': [0], 'audio': [4]}}, 'from 0 to 3'),
  (MULTIMODAL, {'inputs': PARTS, 'subsampled_output_points': {'image': [0], 'audio': [-1]}}, 'from 0 to 3'),
  (MULTIMODAL, {'inputs': PARTS, 'subsampled_output_points': {'image': [0.5], 'audio': [0]}}, 'are integers'),
  (MULTIMODAL, {'inputs': PARTS, 'subsampled_output_points': {'image': [], 'audio': [0]}}, 'at least one'),
])
def test_what_a_model_does_not_take_is_the_users_mistake(architecture, inputs, message):
  with pytest.raises(UserError, match=message):
    _batch(architecture, **inputs)


def test_another_class_is_the_users_mistake():
  with pytest.raises(UserError, match="no class 'PerceiverModel' here; there are PerceiverForMaskedLM"):
    inputs_of(CONFIGS[FLOW], 'PerceiverModel', {'inputs': PATCHES})


def test_logits_have_their_names_and_shapes():
  flow = np.random.default_rng(0).normal(size=(2, 3, 5, 2))
  np.testing.assert_array_equal(logits_of(CONFIGS[FLOW], FLOW, {'flow': flow}), flow)
  for architecture in (MASKED_LM, FOURIER):
    np.testing.assert_array_equal(logits_of(CONFIGS[architecture], architecture, {'logits': flow}), flow)
  video = np.random.default_rng(0).normal(size=(2, 2, 4, 4, 3))
  outputs = {'video': video, 'audio': np.ones([2, 16]), 'label': np.ones([2, 3])}
  logits = logits_of(CONFIGS[MULTIMODAL], MULTIMODAL, outputs)
  assert {name: array.shape for name, array in logits.items()} == {
    'image': (2, 32, 3), 'audio': (2, 16), 'label': (2, 3)}
  np.testing.assert_array_equal(logits['image'][:, 5], video[:, 0, 1, 1])
  some = logits_of(CONFIGS[MULTIMODAL], MULTIMODAL, {**outputs, 'video': video[:, 0, 0]})
  np.testing.assert_array_equal(some['image'], video[:, 0, 0])
