"""What Hugging Face's config.json says of a Perceiver, in our words, and back.

Most sizes stand in their file, some their seven classes fix. Facts from transformers 5.23, models/perceiver.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from perceiver_jax.config.values import check, flatten
from perceiver_jax.interop import zoo
from perceiver_jax.types import UserError


class _Class(NamedTuple):
  """One of their classes: the released model whose config to start from, and what differs."""

  released: str
  read: dict[str, str]                     # our dotted key: theirs, or one that `_derived` adds
  fixed: dict[str, Any]                    # our dotted key: its value, whatever their file says
  without: tuple[str, ...] = ()            # our dotted keys that the task lacks


# Keys that their files may leave out.
_DEFAULTS: dict[str, Any] = {
  'num_latents': 256, 'd_latents': 1280, 'd_model': 768, 'num_blocks': 1, 'num_self_attends_per_block': 26,
  'num_self_attention_heads': 8, 'num_cross_attention_heads': 8, 'qk_channels': None, 'v_channels': None,
  'cross_attention_shape_for_attention': 'kv', 'self_attention_widening_factor': 1,
  'cross_attention_widening_factor': 1, 'hidden_act': 'gelu', 'attention_probs_dropout_prob': 0.1,
  'use_query_residual': True, 'vocab_size': 262, 'max_position_embeddings': 2048, 'image_size': 56,
  'train_size': (368, 496), 'num_frames': 16, 'audio_samples_per_frame': 1920, 'samples_per_patch': 16,
  'output_shape': (1, 16, 224, 224), 'output_num_channels': 512, '_label_trainable_num_channels': 1024,
  'num_labels': 2,
}
_GELU = {
  'gelu': 'exact', 'gelu_python': 'exact', 'gelu_new': 'tanh', 'gelu_pytorch_tanh': 'tanh', 'gelu_fast': 'tanh',
}
_LATENTS = {
  'model.num_latents': 'num_latents',
  'model.latent_channels': 'd_latents',
  'model.num_blocks': 'num_blocks',
  'model.num_self_attends_per_block': 'num_self_attends_per_block',
  'model.num_cross_heads': 'num_cross_attention_heads',
  'model.num_self_heads': 'num_self_attention_heads',
  'model.qk_channels': 'qk_channels',
  'model.v_channels': 'v_channels',
  'model.cross_widening': 'cross_attention_widening_factor',
  'model.self_widening': 'self_attention_widening_factor',
  'model.encoder_residual': 'use_query_residual',
  'model.attention_dropout_prob': 'attention_probs_dropout_prob',
  'model.gelu': 'gelu',
}
_ONE_QUERY = {'model.query_channels': 'd_latents', 'data.num_classes': 'num_labels'}
_TEXT = {
  'data.vocab_size': 'vocab_size',
  'data.max_length': 'max_position_embeddings',
  'model.token_channels': 'd_model',
}
_VIDEO = {
  'data.num_frames': 'num_frames',
  'data.image_size': 'output_size',
  'data.samples_per_frame': 'audio_samples_per_frame',
  'data.num_classes': 'num_labels',
  'model.video.max_resolution': 'video_resolution',
  'model.audio.max_resolution': 'audio_resolution',
  'model.audio.patch_size': 'samples_per_patch',
  'model.label_query_channels': '_label_trainable_num_channels',
  'model.output_channels': 'output_num_channels',
}
# They mask by adding the least number to a logit, so that a row without a key reads the mean; query masks they ignore.
_ALL = {'model.masked_rows': 'mean', 'model.query_residual': False}
_WITH_RESIDUAL = {**_ALL, 'model.query_residual': True}
_IMAGES = {**_WITH_RESIDUAL, 'data.class_names': None}  # what the classes are only `class_names` knows
_CLASSES = {
  'PerceiverForMaskedLM': _Class('masked_lm', _TEXT, {
    **_ALL, 'model.num_decoder_heads': 8, 'model.decoder_qk_channels': 256}),
  'PerceiverForSequenceClassification': _Class('masked_lm', {**_TEXT, **_ONE_QUERY}, {
    **_WITH_RESIDUAL, 'task': 'text_classification'}, ('model.num_decoder_heads', 'model.decoder_qk_channels')),
  'PerceiverForImageClassificationFourier': _Class(
    'imagenet_fourier', {**_ONE_QUERY, 'data.image_size': 'trained_size'}, _IMAGES),
  # The authors' model of this kind has no residual.
  'PerceiverForImageClassificationLearned': _Class(
    'imagenet_learned', {**_ONE_QUERY, 'data.image_size': 'image_size'}, _IMAGES),
  'PerceiverForImageClassificationConvProcessing': _Class(
    'imagenet_conv', {**_ONE_QUERY, 'data.image_size': 'trained_size'},
    {**_IMAGES, 'model.stem.padding': 'symmetric'}),
  'PerceiverForOpticalFlow': _Class(
    'optical_flow', {'data.frame_size': 'train_size', 'model.max_resolution': 'train_size'}, _ALL),
  'PerceiverForMultimodalAutoencoding': _Class('video_autoencoding', _VIDEO, {**_ALL, 'data.class_names': None}),
}
ARCHITECTURES = tuple(_CLASSES)

# How the keys begin that a forward pass depends on, and how those of them end that do not matter: dropout, how a table
# starts, what says nothing where there is one cross-attend, and how uint8 is normalised, which their models never see.
_COMPUTING = ('task', 'model.', 'data.num_channels', 'data.permutation')
_IDLE = {
  'dropout_prob', 'attention_dropout_prob', 'init_scale', 'cross_attends', 'share_cross_attends', 'normalisation'}


def read_config(source: str | os.PathLike | Mapping[str, Any]) -> ConfigDict:
  """The config of the model that a config.json of theirs describes: of our task that computes what its class does.

  Args:
    source: a directory with config.json, or what such a file holds.

  Returns:
    A locked config: that of the released model of the same kind, with the sizes of this one.

  Raises:
    UserError: no such file; a class other than the seven; a value that is none; what ours cannot express.
  """
  values = _values(source)
  theirs = _CLASSES[architecture_of(values)]
  known = _derived(_checked(values), values)
  if theirs.read is _VIDEO:
    _check_video(known)
  if known['cross_attention_shape_for_attention'] == 'q':
    if theirs.released in ('optical_flow', 'video_autoencoding'):
      raise UserError("cross_attention_shape_for_attention is 'q', which gives the decoder of this class widths that "
                      "ours does not have; only 'kv' can be read")
    known['qk_channels'] = known['qk_channels'] or known['d_latents']
  flat = flatten(zoo.config(theirs.released))
  flat = {key: value for key, value in flat.items() if key not in theirs.without}
  flat |= {ours: known[key] for ours, key in {**_LATENTS, **theirs.read}.items()} | theirs.fixed
  config = _nested(flat)
  check(config)
  return config


def architecture_of(source: str | os.PathLike | Mapping[str, Any]) -> str:
  """The name of their class, one of ARCHITECTURES, that a directory or a config names. Raises UserError for others."""
  named = _values(source).get('architectures')
  found = [name for name in named if name in _CLASSES] if isinstance(named, list | tuple) else []
  if len(found) != 1:
    raise UserError(f'architectures is {named!r}; it must name one of {", ".join(ARCHITECTURES)}')
  return found[0]


def class_names(source: str | os.PathLike | Mapping[str, Any]) -> tuple[str, ...] | None:
  """What their file calls the classes, in order; None where it gives them numbers only, none, or no table of names."""
  names = _values(source).get('id2label')
  try:
    ordered = tuple(names[key] for key in sorted(names, key=int)) if isinstance(names, Mapping) else ()
  except (TypeError, ValueError):           # keys that are no numbers
    return None
  if not all(isinstance(name, str) for name in ordered):
    return None
  return None if all(re.fullmatch(r'LABEL_\d+', name) for name in ordered) else ordered


def write_config(config: ConfigDict, class_names: Sequence[str] = ()) -> dict[str, Any]:
  """What their config.json would say of one of our configs: the opposite of `read_config`.

  Raises:
    UserError: no class of theirs computes the same; names the keys that differ from the nearest one. Or another number
      of `class_names` than of classes.
  """
  flat = flatten(config)
  nearest: tuple[int, str, str] | None = None
  for name, theirs in _CLASSES.items():
    values = {**_inverted(flat, {**_LATENTS, **theirs.read}), 'architectures': [name], 'model_type': 'perceiver'}
    same = flatten(read_config(values))
    differences = [
      f'{key} is {flat.get(key)!r} here, {same.get(key)!r} there' for key in sorted(flat.keys() | same.keys())
      if key.startswith(_COMPUTING) and key.rpartition('.')[2] not in _IDLE and flat.get(key) != same.get(key)]
    if not differences:
      return values | _labels(values.get('id2label', {}), class_names)
    nearest = min(nearest or (len(differences) + 1, '', ''), (len(differences), name, '; '.join(differences)))
  assert nearest is not None
  raise UserError(f'no class of Hugging Face computes what this config does; nearest is {nearest[1]}: {nearest[2]}')


def _labels(numbered: Mapping[str, str], class_names: Sequence[str]) -> dict[str, Any]:
  """What their config says of names for the classes that are `numbered`; nothing where there are none of either."""
  if not numbered or not class_names:
    return {}
  if len(class_names) != len(numbered):
    raise UserError(f'there are {len(class_names)} names of classes, but the model has {len(numbered)} classes')
  return {
    'id2label': dict(zip(numbered, class_names, strict=True)),
    'label2id': {name: int(number) for number, name in zip(numbered, class_names, strict=True)},
  }


def _values(source: str | os.PathLike | Mapping[str, Any]) -> Mapping[str, Any]:
  if isinstance(source, Mapping):
    return source
  path = Path(source) / 'config.json'
  try:
    values = json.loads(path.read_text())
  except OSError as error:
    raise UserError(f'cannot read {path}: {error.strerror}') from error
  except (ValueError, RecursionError) as error:
    raise UserError(f'{path} is damaged: {error}') from error
  if not isinstance(values, dict):
    raise UserError(f'{path} is damaged: it holds no table of keys')
  return values


def _checked(values: Mapping[str, Any]) -> dict[str, Any]:
  """Every key of `_DEFAULTS`; raises UserError for values of another kind than their defaults'."""
  known = {key: values.get(key, default) for key, default in _DEFAULTS.items()}
  wrong = [f'{key} is {known[key]!r}' for key, default in _DEFAULTS.items() if not _is_like(known[key], default)]
  if wrong:
    raise UserError(f'cannot read this config of Hugging Face, where {"; ".join(wrong)}')
  return {key: tuple(value) if isinstance(value, list) else value for key, value in known.items()}


def _is_like(value: Any, default: Any) -> bool:
  if isinstance(default, tuple):
    return isinstance(value, list | tuple) and len(value) == len(default) and all(_is_like(each, 1) for each in value)
  if isinstance(default, float):
    return type(value) in (int, float)
  if default is None:
    return value is None or _is_like(value, 1)
  return type(value) is type(default) and (type(value) is not int or value > 0)


def _derived(known: dict[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
  """Adds the keys of `_Class.read` that are not in their file."""
  if known['hidden_act'] not in _GELU:
    raise UserError(f'hidden_act is {known["hidden_act"]!r}; ours has {", ".join(_GELU)}')
  if known['cross_attention_shape_for_attention'] not in ('kv', 'q'):
    raise UserError(
      f"cross_attention_shape_for_attention is 'kv' or 'q', not {known['cross_attention_shape_for_attention']!r}")
  size, num_frames, id2label = known['image_size'], known['num_frames'], values.get('id2label')
  return {
    **known,
    'gelu': _GELU[known['hidden_act']],
    'num_labels': len(id2label) if isinstance(id2label, Mapping) and id2label else known['num_labels'],
    'output_size': known['output_shape'][2],
    'video_resolution': (num_frames, size, size),
    'audio_resolution': (num_frames * known['audio_samples_per_frame'],),
    # Classes with Fourier positions do not read image_size: the default says nothing of what a model was trained on.
    'trained_size': 224 if size == _DEFAULTS['image_size'] else size,
  }


def _check_video(known: dict[str, Any]) -> None:
  _, num_frames, height, width = known['output_shape']
  if num_frames != known['num_frames'] or height != width:
    raise UserError(f'output_shape is {known["output_shape"]} and num_frames {known["num_frames"]}: ours has '
                    'square videos only, as long at the end as at the start')


def _inverted(flat: dict[str, Any], read: dict[str, str]) -> dict[str, Any]:
  """Their keys for our values, as far as there are any; what `_derived` adds is led back to what it came from."""
  values = {theirs: flat[ours] for ours, theirs in read.items() if flat.get(ours) is not None}
  origins: dict[str, Callable[[Any], dict[str, Any]]] = {
    'gelu': lambda gelu: {'hidden_act': 'gelu_pytorch_tanh' if gelu == 'tanh' else 'gelu'},
    'num_labels': lambda num: {'id2label': {str(i): f'LABEL_{i}' for i in range(num)}},
    'output_size': lambda size: {'output_shape': (1, values.get('num_frames', _DEFAULTS['num_frames']), size, size)},
    'video_resolution': lambda resolution: {'image_size': resolution[-1]},
    'audio_resolution': lambda _: {},
    'trained_size': lambda size: {'image_size': size},
  }
  plain = {theirs: value for theirs, value in values.items() if theirs not in origins}
  for theirs in origins.keys() & values.keys():
    plain |= origins[theirs](values[theirs])
  return plain


def _nested(flat: dict[str, Any]) -> ConfigDict:
  tree: dict[str, Any] = {}
  for key, value in flat.items():
    *sections, leaf = key.split('.')
    inner = tree
    for section in sections:
      inner = inner.setdefault(section, {})
    inner[leaf] = value
  return ConfigDict(tree).lock()
