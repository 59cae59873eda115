"""What Hugging Face's Perceivers take and give, as our batches and from our outputs. All arrays are NumPy's.

Shapes: B batch, L tokens, M elements, H height, W width, T frames, S samples, O points, E classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from ml_collections import ConfigDict

from perceiver_jax.types import Array, UserError, to_array

_FRAMES, _PATCH_VALUES = 2, 27             # of a pixel of their flow model: 3 x 3 pixels of 3 colours, in each frame


def inputs_of(config: ConfigDict, architecture: str, inputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """Our batch, from the keyword arguments of a forward pass of theirs.

  Args:
    config: what `read_config` made of theirs.
    architecture: the name of their class.
    inputs: `attention_mask` [B, M], non-zero = an element that counts, is optional everywhere. The others are
      text: `inputs` or `input_ids`, [B, L] integers;
      image classification: `inputs` or `pixel_values`, [B, 3, H, W] floats, normalised already;
      optical flow: `inputs` [B, 2, 27, H, W] floats, the patch around each pixel, row, column, colour;
      multimodal: `inputs`, {'image': [B, T, 3, H, W], 'audio': [B, S, 1], 'label': [B, E]}, floats; and
      `subsampled_output_points`, {'image': [O], 'audio': [O'], 'label': None}, flat indices of what to decode.

  Raises:
    UserError: unknown, missing or contradictory arguments; shapes, kinds or values that the model does not take.
  """
  layout = _layout(architecture)
  taken = f'{architecture} takes {", ".join((*layout.names, *layout.extras))} and attention_mask'
  if unknown := sorted(inputs.keys() - {*layout.names, *layout.extras, *_OTHERS, *_HARMLESS, 'attention_mask'}):
    raise UserError(f'{taken}; not {", ".join(unknown)}')
  given = {name: value for name, value in inputs.items() if value is not None and name not in _HARMLESS}
  for name, why in _OTHERS.items():
    if given.get(name) is not None and given[name] is not False:
      raise UserError(f'{taken}; not {name}: {why}')
  named = [name for name in layout.names if name in given]
  if len(named) != 1:
    raise UserError(
      f'{architecture} takes one of {" and ".join(layout.names)}; there is {" and ".join(named) or "none"}')
  batch, order = layout.batch(config, given[named[0]], given)
  if 'attention_mask' in given:
    valid = to_array('attention_mask', given['attention_mask'])
    expected = [len(next(iter(batch.values()))), len(order)]
    if list(valid.shape) != expected:
      raise UserError(f'attention_mask is {list(valid.shape)}, but there are {expected} elements')
    batch['valid'] = (valid[:, order] != 0).astype(np.uint8)
  return batch


def logits_of(config: ConfigDict, architecture: str, outputs: Mapping[str, Array]) -> Any:
  """What their class calls `logits`, from our outputs.

  text and images: [B, L, V] or [B, E]; flow: [B, H, W, 2]; multimodal: {'image': [B, O, 3], 'audio': [B, S], 'label':
  [B, E]}, of all outputs or those that were asked for.
  """
  return _layout(architecture).logits(outputs)


# Arguments of their forward passes: what serves in place of those that are not taken; and what changes nothing here.
_OTHERS = {
  'labels': 'they serve a loss, and here are logits alone; compute it from them',
  'output_attentions': 'run(batch, capture=True) returns the attention maps in outputs["captured"]',
  'output_hidden_states': 'run(batch, capture=True) returns the latents in outputs["captured"]',
  'interpolate_pos_encoding':
    'resize the images to those of the model; --config.init_from interpolates positions where it is trained on',
  'head_mask': 'no heads are left out here',
}
_HARMLESS = ('return_dict',)

_Batch: TypeAlias = tuple[dict[str, np.ndarray], np.ndarray]  # our batch; and for each of our elements, which of theirs


class _Layout(NamedTuple):
  names: tuple[str, ...]                   # of the one argument that must be there
  batch: Callable[[ConfigDict, Any, Mapping[str, Any]], _Batch]
  logits: Callable[[Mapping[str, Array]], Any]
  extras: tuple[str, ...] = ()


def _layout(architecture: str) -> _Layout:
  if architecture not in _LAYOUTS:
    raise UserError(f'there is no class {architecture!r} here; there are {", ".join(_LAYOUTS)}')
  return _LAYOUTS[architecture]


def _text_batch(config: ConfigDict, value: Any, given: Mapping[str, Any]) -> _Batch:
  tokens = to_array('tokens', value)
  max_length, vocab_size = config.data.max_length, config.data.vocab_size
  if tokens.ndim != 2 or not np.issubdtype(tokens.dtype, np.integer) or not 0 < tokens.shape[1] <= max_length:
    raise UserError(
      f'tokens are integers [batch, 1 to {max_length} tokens], not {tokens.dtype} {list(tokens.shape)}')
  if tokens.size and not (tokens.min() >= 0 and tokens.max() < vocab_size):
    raise UserError(f'tokens are from {tokens.min()} to {tokens.max()}; this model knows 0 to {vocab_size - 1}')
  return {'tokens': tokens.astype(np.int32)}, np.arange(tokens.shape[1])


def _image_batch(config: ConfigDict, value: Any, given: Mapping[str, Any]) -> _Batch:
  image = _floats('an image', value, ('batch', config.data.num_channels, 'height', 'width'))
  height, width = image.shape[2:]
  stem, position, size = config.model.stem, config.model.position, config.data.image_size
  if position.kind == 'learned' and (height, width) != (size, size):
    raise UserError(f'this model has learned positions, of images of {size} x {size} pixels, not {height} x {width}')
  if stem.kind == 'conv':
    height, width = (((n + 1) // 2 - 1) // 2 for n in (height, width))
    if min(height, width) < 1:
      raise UserError(f'an image is at least 5 x 5 pixels, not {list(image.shape[2:])}')
  return {'image': image.transpose(0, 2, 3, 1)}, np.arange(height * width)


def _flow_batch(config: ConfigDict, value: Any, given: Mapping[str, Any]) -> _Batch:
  patches = _floats('a pair of frames', value, ('batch', _FRAMES, _PATCH_VALUES, 'height', 'width'))
  return {'patches': patches.transpose(0, 1, 3, 4, 2)}, np.arange(math.prod(patches.shape[3:]))


def _video_batch(config: ConfigDict, value: Any, given: Mapping[str, Any]) -> _Batch:
  data, patch, samples = config.data, config.model.video.patch_size, config.model.audio.patch_size
  if not isinstance(value, Mapping) or value.keys() != {'image', 'audio', 'label'}:
    raise UserError("inputs is {'image': ..., 'audio': ..., 'label': ...}")
  video = _floats("inputs['image']", value['image'], ('batch', 'frames', 3, 'height', 'width'))
  audio = _floats("inputs['audio']", value['audio'], (len(video), 'samples', 1))[..., 0]
  label = _floats("inputs['label']", value['label'], (len(video), data.num_classes))
  _, num_frames, _, height, width = video.shape
  if height % patch or width % patch or audio.shape[1] % samples:
    raise UserError(f'patches of {patch} x {patch} pixels and {samples} samples do not divide the image '
                    f'{list(video.shape)} and the audio {list(audio.shape)}')
  batch = {'video': video.transpose(0, 1, 3, 4, 2), 'audio': audio, 'label': label}
  num_outputs = {
    'image': data.num_frames * data.image_size**2, 'audio': data.num_frames * data.samples_per_frame // samples}
  batch |= _points(given.get('subsampled_output_points'), num_outputs, len(video))
  num_audio, num_image = audio.shape[1] // samples, num_frames * (height // patch) * (width // patch)
  # Both put modalities in the order of their names, and theirs calls the video an image.
  of_audio, of_image, of_label = np.split(np.arange(num_audio + num_image + 1), [num_audio, num_audio + num_image])
  return batch, np.concatenate([of_audio, of_label, of_image])


def _points(points: Any, num_outputs: Mapping[str, int], batch_size: int) -> dict[str, np.ndarray]:
  if points is None:
    return {}
  if not isinstance(points, Mapping) or not num_outputs.keys() <= points.keys() <= {*num_outputs, 'label'} or (
      points.get('label') is not None):
    raise UserError("subsampled_output_points is {'image': indices, 'audio': indices, 'label': None}")
  chosen = {}
  for name, ours in (('image', 'video_points'), ('audio', 'audio_points')):
    indices = to_array(f'subsampled_output_points[{name!r}]', points[name])
    if indices.ndim != 1 or not indices.size or not np.issubdtype(indices.dtype, np.integer) or (
        indices.min() < 0 or indices.max() >= num_outputs[name]):
      raise UserError(
        f'subsampled_output_points[{name!r}] are integers [points] from 0 to {num_outputs[name] - 1}, at least one')
    chosen[ours] = np.broadcast_to(indices.astype(np.int32), (batch_size, indices.size))
  return chosen


def _floats(what: str, value: Any, shape: tuple[str | int, ...]) -> np.ndarray:
  """float32 of `value`, whose axes must be those of `shape`; a number there is the size that an axis must have."""
  array = to_array(what, value)
  fits = array.ndim == len(shape) and all(
    size == wanted if isinstance(wanted, int) else size > 0 for size, wanted in zip(array.shape, shape, strict=True))
  if not fits or not np.issubdtype(array.dtype, np.floating):
    raise UserError(f'{what} is of floats [{", ".join(map(str, shape))}], not {array.dtype} {list(array.shape)}')
  return array.astype(np.float32)


def _video_logits(outputs: Mapping[str, Array]) -> dict[str, np.ndarray]:
  video = np.asarray(outputs['video'])
  return {
    'image': video.reshape(len(video), -1, 3),
    'audio': np.asarray(outputs['audio']),
    'label': np.asarray(outputs['label']),
  }


_TEXT = _Layout(('inputs', 'input_ids'), _text_batch, lambda outputs: np.asarray(outputs['logits']))
_IMAGE = _Layout(('inputs', 'pixel_values'), _image_batch, lambda outputs: np.asarray(outputs['logits']))
_LAYOUTS = {
  'PerceiverForMaskedLM': _TEXT,
  'PerceiverForSequenceClassification': _TEXT,
  'PerceiverForImageClassificationFourier': _IMAGE,
  'PerceiverForImageClassificationLearned': _IMAGE,
  'PerceiverForImageClassificationConvProcessing': _IMAGE,
  'PerceiverForOpticalFlow': _Layout(('inputs',), _flow_batch, lambda outputs: np.asarray(outputs['flow'])),
  'PerceiverForMultimodalAutoencoding': _Layout(
    ('inputs',), _video_batch, _video_logits, ('subsampled_output_points',)),
}
