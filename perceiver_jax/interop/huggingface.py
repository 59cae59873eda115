"""Hugging Face's parameters of a Perceiver as ours, and back: a table of names, and the few layouts that differ.

Read off their seven classes (transformers 5.23, models/perceiver), and held to them by numbers. Linears are transposed,
convolutions [out, in, height, width] become [height, width, in, out], BatchNorm's scale and statistics gain three axes.
"""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from absl import logging
from ml_collections import ConfigDict
from safetensors.numpy import save_file

from perceiver_jax.interop.huggingface_config import write_config
from perceiver_jax.runs import weights
from perceiver_jax.types import Tree, UserError

# An average over so many batches that 1 - decay ** count is 1: their average corrects no bias, so ours must not either.
_MANY_BATCHES = 1000
_FIRST = 'perceiver.'                       # of most of their names
_COUNTER = '.num_batches_tracked'
_TO_OURS, _TO_THEIRS = (2, 3, 1, 0), (3, 2, 0, 1)  # axes of a convolution's weights

# Pattern of a path below a block: their name below it.
_IN_A_BLOCK = {
  '(query|attention)_norm': 'attention.self.layernorm1',
  'inputs_norm': 'attention.self.layernorm2',
  r'attention/(?P<part>query|key|value)': r'attention.self.\g<part>',
  'attention/output': 'attention.output.dense',
  'mlp_norm': 'layernorm',
  'mlp/hidden': 'mlp.dense1',
  'mlp/output': 'mlp.dense2',
}
_ENCODER = {
  'encoder/cross_attend_0': 'perceiver.encoder.cross_attention',
  r'processor/self_attend_(?P<index>\d+)': r'perceiver.encoder.self_attends.\g<index>',
}
_LEAVES = {
  'w': '.weight', 'b': '.bias', 'scale': '.weight', 'offset': '.bias', 'table': '', 'latents': '.latents',
  'average': '', 'hidden': '',
}
_DECODER = 'perceiver.decoder.decoder'
# All but this one wrap their decoder in another, which knows the task.
_DECODERS = {'masked_lm': 'perceiver.decoder'}
_INPUTS = 'perceiver.input_preprocessor'
_POSITIONS = 'output_position_encodings.position_embeddings'
_QUERY = {'query': f'{_DECODER}.{_POSITIONS}', 'decoder/output': f'{_DECODER}.final_layer'}
_TEXT = {'tokens': f'{_INPUTS}.embeddings.weight', 'positions': f'{_INPUTS}.position_embeddings.weight'}

# By task: pattern of a module's path: their name. Blocks follow from the three tables above.
_MODULES: dict[str, dict[str, str]] = {
  'image_classification': {
    **_QUERY,
    'stem': f'{_INPUTS}.convnet_1x1',
    'stem/conv': f'{_INPUTS}.convnet.conv',
    'stem/norm': f'{_INPUTS}.convnet.batchnorm',
    'stem/norm/~/mean_ema': f'{_INPUTS}.convnet.batchnorm.running_mean',
    'stem/norm/~/var_ema': f'{_INPUTS}.convnet.batchnorm.running_var',
    'positions': f'{_INPUTS}.position_embeddings.position_embeddings',
    'positions_projection': f'{_INPUTS}.positions_projection',
  },
  'masked_lm': {
    **_TEXT,
    'query': f'{_DECODERS["masked_lm"]}.{_POSITIONS}',
    'output': 'embedding_decoder',
  },
  'text_classification': {**_TEXT, **_QUERY},
  'optical_flow': {'decoder/output': _QUERY['decoder/output'], 'stem': f'{_INPUTS}.conv_after_patches'},
  'video_autoencoding': {
    'decoder/output': _QUERY['decoder/output'],
    'label_query': f'perceiver.decoder.modalities.label.decoder.{_POSITIONS}',
    **{
      ours.format(name): theirs.format(their_name)
      for name, their_name in (('audio', 'audio'), ('video', 'image'), ('label', 'label'))
      for ours, theirs in (
        ('{}_padding', _INPUTS + '.padding.{}'),
        ('{}_mask_token', _INPUTS + '.mask.{}'),
        ('{}_query_padding', 'perceiver.decoder.padding.{}'),
        ('{}_output', 'perceiver.output_postprocessor.modalities.{}.classifier'),
      )
    },
  },
}


def convert(state_dict: Mapping[str, np.ndarray], config: ConfigDict, template: tuple[Tree, Tree]) -> tuple[Tree, Tree]:
  """(params, state), float32 NumPy arrays in our trees, from the arrays of one of their models.

  Args:
    state_dict: {their name: array}, of any float dtype.
    config: what `read_config` makes of their config.
    template: (params, state) of arrays or `jax.ShapeDtypeStruct`s: what `init` of our model gives with
      is_training=True, also under `jax.eval_shape`.

  Raises:
    UserError: names the first ten entries that are missing, unknown, of another shape, or not of floats; or those
      that hold a NaN or an infinity.
  """
  state_dict = _without_prefix(state_dict)
  problems, used, converted = [], set(), {}
  trees: tuple[Tree, Tree] = ({}, {})
  for tree, wanted in zip(trees, template, strict=True):
    for module, leaves in wanted.items():
      tree[module] = {}
      for leaf, like in leaves.items():
        name = _their_name(config.task, module, leaf)
        found = state_dict.get(name)
        used.add(name)
        if leaf == 'counter':
          tree[module][leaf] = np.array(min(max(int(found or 0), _MANY_BATCHES), np.iinfo(np.int32).max), np.int32)
        elif found is None:
          problems.append(f'{name} is missing')
        elif np.shape(found) != _their_shape(leaf, like.shape):
          problems.append(f'{name} is {list(np.shape(found))}, not {list(_their_shape(leaf, like.shape))}')
        elif not jnp.issubdtype(found.dtype, jnp.floating):
          problems.append(f'{name} is of {found.dtype}, not of floats')
        else:
          turned = found.transpose(_axes(leaf, found.ndim, _TO_OURS)).reshape(like.shape)
          with np.errstate(over='ignore'):  # the infinities are told of
            tree[module][leaf] = converted[name] = np.array(turned, np.float32, order='C')
  problems += [f'{name} is unknown' for name in sorted(state_dict.keys() - used) if not name.endswith(_COUNTER)]
  problems = list(dict.fromkeys(problems))
  if problems:
    raise UserError(f'these parameters of Hugging Face do not fit their config: {weights.shortened(problems)}')
  weights.check_finite(converted, 'these parameters of Hugging Face')
  return trees


def _without_prefix(state_dict: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
  """Takes off what wrappers of PyTorch put before every name: `_orig_mod.` of compile, `module.` of DataParallel ..."""
  prefix = ''
  names = list(state_dict)
  while names and not any(name.startswith(_FIRST) for name in names):
    first = names[0].partition('.')[0] + '.'
    if first == names[0] + '.' or not all(name.startswith(first) for name in names):
      return state_dict
    prefix, names = prefix + first, [name.removeprefix(first) for name in names]
  if not prefix:
    return state_dict
  logging.warning('The names of these parameters begin with %s, which is left out.', prefix)
  return {name.removeprefix(prefix): array for name, array in state_dict.items()}


def to_state_dict(params: Tree, state: Tree, config: ConfigDict) -> dict[str, np.ndarray]:
  """What `load_state_dict(strict=True)` of their class takes, as NumPy arrays: the opposite of `convert`.

  Args:
    params: ours.
    state: ours; {} where a model has none.
    config: ours; `write_config` makes of it the config of their class.

  Raises:
    UserError: no class of theirs computes what this config does.
  """
  write_config(config)
  arrays = {}
  for tree in (params, state):
    for module, leaves in tree.items():
      for leaf, array in leaves.items():
        name = _their_name(config.task, module, leaf)
        if leaf == 'counter':
          arrays[name] = np.array(array, np.int64)
        elif leaf != 'hidden':             # what `average` is made of
          turned = np.asarray(array).transpose(_axes(leaf, np.ndim(array), _TO_THEIRS))
          arrays[name] = np.array(turned.reshape(_their_shape(leaf, np.shape(array))), np.float32, order='C')
  return arrays


def save(
  directory: str | os.PathLike, config: ConfigDict, params: Tree, state: Tree, *, class_names: Sequence[str] = (),
) -> None:
  """Writes a directory that their `from_pretrained` reads, with the same logits but in rows that a mask hides.

  Args:
    directory: made, with its parents.
    config: ours.
    params: ours.
    state: ours; {} where a model has none.
    class_names: of a classifier, in order; numbers stand for them where there are none.

  Raises:
    UserError: there is such a directory already, or it cannot be written; or no class of theirs computes the model.
  """
  config = config.copy_and_resolve_references()
  config.model.masked_rows = 'mean'        # theirs know no other
  arrays, values = to_state_dict(params, state, config), write_config(config, class_names)
  path = Path(directory)
  unfinished = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
  try:
    weights.remove_leftovers(path, 'tmp')
    unfinished.mkdir(parents=True)
    save_file(arrays, unfinished / 'model.safetensors', {'format': 'pt'})
    (unfinished / 'config.json').write_text(json.dumps(values, indent=2) + '\n')
    # Written for its owner alone, whatever the umask says.
    (unfinished / 'model.safetensors').chmod((unfinished / 'config.json').stat().st_mode)
    unfinished.rename(path)                # over nothing, or an empty directory
  except OSError as error:
    shutil.rmtree(unfinished, ignore_errors=True)
    raise UserError(f'cannot write {path}: {error.strerror or error}') from error


def _their_name(task: str, module: str, leaf: str) -> str:
  for pattern, theirs in _rules(task):
    if match := pattern.fullmatch(module):
      name = match.expand(theirs)
      return name.rpartition('.')[0] + _COUNTER if leaf == 'counter' else name + _LEAVES[leaf]
  raise UserError(f'{module}/{leaf} has no counterpart in the model of Hugging Face')


@functools.cache
def _rules(task: str) -> list[tuple[re.Pattern[str], str]]:
  blocks = {**_ENCODER, 'decoder/cross_attend': f'{_DECODERS.get(task, _DECODER)}.decoding_cross_attention'}
  modules = {
    'encoder': 'perceiver.embeddings',
    **_MODULES[task],
    **{
      f'{block}/{part}': f'{their_block}.{their_part}'
      for block, their_block in blocks.items() for part, their_part in _IN_A_BLOCK.items()
    },
  }
  return [(re.compile(ours), theirs) for ours, theirs in modules.items()]


def _axes(leaf: str, rank: int, of_convolution: tuple[int, ...]) -> tuple[int, ...]:
  """How to turn an array: a linear's and a convolution's weights, and nothing else."""
  if leaf != 'w':
    return tuple(range(rank))
  return of_convolution if rank == 4 else (1, 0)


def _their_shape(leaf: str, shape: tuple[int, ...]) -> tuple[int, ...]:
  if leaf in ('scale', 'offset', 'average', 'hidden'):
    return shape[-1:]                      # BatchNorm's have three axes of 1 before
  return tuple(shape[axis] for axis in _axes(leaf, len(shape), _TO_THEIRS))
