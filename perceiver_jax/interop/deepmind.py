"""The authors' released weights (google-deepmind/deepmind-research, perceiver): their names, and ours.

Both sides are Haiku trees, {module path: {leaf: array}}, of the same shapes: only names differ.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from perceiver_jax.interop import pystate
from perceiver_jax.runs import weights
from perceiver_jax.types import Tree, UserError

_TABLE = 'trainable_position_encoding:pos_embs'

# (of ours, of theirs); the first that matches a whole module path and leaf counts.
_BLOCK = (
  ('(.*)/attention/query:(.*)', r'\1/attention/linear:\2'),
  ('(.*)/attention/key:(.*)', r'\1/attention/linear_1:\2'),
  ('(.*)/attention/value:(.*)', r'\1/attention/linear_2:\2'),
  ('(.*)/attention/output:(.*)', r'\1/attention/linear_3:\2'),
  ('(.*)/mlp/hidden:(.*)', r'\1/mlp/linear:\2'),
  ('(.*)/mlp/output:(.*)', r'\1/mlp/linear_1:\2'),
  ('(.*)/(?:query|attention)_norm:(.*)', r'\1/layer_norm:\2'),
  ('(.*)/inputs_norm:(.*)', r'\1/layer_norm_1:\2'),
  ('(.*cross.*)/mlp_norm:(.*)', r'\1/layer_norm_2:\2'),
  ('(.*self.*)/mlp_norm:(.*)', r'\1/layer_norm_1:\2'),
)
_IMAGE = (
  ('query:table', rf'classification_decoder/~/basic_decoder/~/{_TABLE}'),
  ('positions:table', rf'image_preprocessor/~_build_network_inputs/{_TABLE}'),
  ('positions_projection:(.*)', r'image_preprocessor/~_build_network_inputs/position_encoding_projector/linear:\1'),
  ('stem:(.*)', r'image_preprocessor/~/conv2_d:\1'),
  ('stem/conv:(.*)', r'image_preprocessor/~/conv2_d_downsample/~/conv:\1'),
  ('stem/norm(.*)', r'image_preprocessor/~/conv2_d_downsample/~/batchnorm\1'),
)
_TEXT = (
  ('query:table', rf'basic_decoder/~/{_TABLE}'),
  ('positions:table', _TABLE),
  ('tokens:table', 'embed:embeddings'),
  ('output:b', 'embedding_decoder:bias'),
)
_FLOW = (
  ('stem:(.*)', r'image_preprocessor/patches_linear:\1'),
)
_VIDEO = (
  ('label_query:table', rf'classification_decoder/~/basic_decoder/~/{_TABLE}'),
  ('video_query_padding:table', 'multimodal_decoder/~decoder_query/image_padding:pos_embs'),
  ('(audio|label)_query_padding:table', r'multimodal_decoder/~decoder_query/\1_padding:pos_embs'),
  ('video_(padding|mask_token):table', r'multimodal_preprocessor/image_\1:pos_embs'),
  ('((?:audio|label)_(?:padding|mask_token)):table', r'multimodal_preprocessor/\1:pos_embs'),
  ('video_output:(.*)', r'projection_postprocessor/linear:\1'),
  ('audio_output:(.*)', r'audio_postprocessor/linear:\1'),
  ('label_output:(.*)', r'classification_postprocessor/linear:\1'),
)
# By task: the paths of its encoder and decoder, and what it has beside.
_MODELS = {
  'image_classification': ('perceiver_encoder', 'classification_decoder/~/basic_decoder', _IMAGE),
  'masked_lm': ('perceiver_encoder', 'basic_decoder', _TEXT),
  'optical_flow': ('perceiver_encoder', 'flow_decoder/~/basic_decoder', _FLOW),
  'video_autoencoding': ('encoder', 'multimodal_decoder/~/basic_decoder', _VIDEO),
}
# What the module paths of a released model begin with, and no other's before it in the table.
_SIGNS = {
  'video_autoencoding': 'multimodal_decoder',
  'optical_flow': 'flow_decoder',
  'masked_lm': 'embedding_decoder',
  'imagenet_conv': 'image_preprocessor/~/conv2_d_downsample',
  'imagenet_learned': 'image_preprocessor/~_build_network_inputs',
  'imagenet_fourier': 'classification_decoder',
}


def load(path: str | os.PathLike, config: ConfigDict, template: tuple[Tree, Tree]) -> tuple[Tree, Tree]:
  """(params, state) of a released file, under our names; nothing in the file is run.

  Args:
    path: a `.pystate` or `.pickle`: a tree of parameters, or {'params': ..., 'state': ...}.
    config: of the model that the file holds.
    template: (params, state) of that model, as `jax.ShapeDtypeStruct`s.

  Raises:
    UserError: no such file, or one that holds more than arrays; arrays that are not this model's: the first that are
      missing, unexpected or of another shape are named, and the model whose they seem to be; arrays of other numbers
      than floats, or of some that are not finite.
  """
  tree = pystate.read(path)
  if not isinstance(tree, dict) or not tree:
    raise UserError(f'{path} holds no tree of parameters')
  params, state = (tree['params'], tree.get('state') or {}) if 'params' in tree else (tree, {})
  return convert(params, state, config, template, where=str(path))


def convert(
  params: Mapping[str, Any], state: Mapping[str, Any], config: ConfigDict, template: tuple[Tree, Tree],
  where: str = 'the tree',
) -> tuple[Tree, Tree]:
  """The authors' `params` and `state` under our names, floats in float32; the rest as in `load`; errors say `where`."""
  if config.task not in _MODELS:
    raise UserError(f'the authors released no model of the task {config.task!r}')
  ours = {name: f'{kind} {theirs}' for kind, name, theirs in _names(config.task, template)}
  theirs = {
    f'{kind} {module}:{leaf}': (kind, module, leaf, value)
    for kind, tree in (('params', params), ('state', state)) for module, leaves in _modules(tree, where)
    for leaf, value in leaves.items()}
  back = {foreign: name for name, foreign in ours.items()}
  found: dict[str, Tree] = {'params': {}, 'state': {}}
  for foreign, (kind, module, leaf, value) in theirs.items():
    # What is unknown keeps its name, so that `check_fits` can tell of it.
    module, leaf = back[foreign].rsplit(':', 1) if foreign in back else (module, leaf)
    found[kind].setdefault(module, {})[leaf] = value
  asked, given = _likely(ours.values()), _likely(theirs)
  hint = f' looks like {given}, not {asked}: it' if given and asked != given else ''
  weights.check_fits(found['params'], found['state'], template, where + hint, num_shown=3)
  likes = weights.entries(*template)
  for kind, tree in found.items():
    for module, leaves in tree.items():
      for leaf, value in leaves.items():
        name = f'{kind}/{module}/{leaf}'
        leaves[leaf] = _as(likes[name], value, f'{where}: {name}')
  weights.check_finite(weights.entries(found['params'], found['state']), where)
  return found['params'], found['state']


def _likely(names: Iterable[str]) -> str | None:
  """The released model that has modules of these names, 'params module/path:leaf', as far as they tell."""
  paths = [name.partition(' ')[2] for name in names]
  return next((model for model, sign in _SIGNS.items() if any(path.startswith(sign) for path in paths)), None)


def _as(like: Any, array: np.ndarray, what: str) -> np.ndarray:
  """The array in float32, or in the dtype of a counter."""
  kind, dtype = (jnp.floating, np.float32) if jnp.issubdtype(like.dtype, jnp.floating) else (jnp.integer, like.dtype)
  if not jnp.issubdtype(array.dtype, kind):
    raise UserError(f'{what} is of {array.dtype}, not of {"floats" if kind is jnp.floating else "integers"}')
  with np.errstate(over='ignore'):          # the infinities are told of
    return array.astype(dtype, copy=False)


def _modules(tree: Any, where: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
  if not isinstance(tree, Mapping):
    raise UserError(f'{where} holds no tree of parameters')
  for module, leaves in tree.items():
    if not isinstance(leaves, Mapping) or any(not isinstance(leaf, np.ndarray) for leaf in leaves.values()):
      raise UserError(f'{where} holds no arrays under {module!r}: it is no tree of parameters')
    yield module, leaves


def _names(task: str, template: tuple[Tree, Tree]) -> Iterator[tuple[str, str, str]]:
  """('params' or 'state', 'module/path:leaf' of ours, the same of theirs) of each entry."""
  for kind, tree in zip(('params', 'state'), template, strict=True):
    for module, leaves in tree.items():
      for leaf in leaves:
        yield kind, f'{module}:{leaf}', foreign_name(task, f'{module}:{leaf}')


def foreign_name(task: str, name: str) -> str:
  """The authors' 'module/path:leaf' of ours."""
  encoder, decoder, others = _MODELS[task]
  blocks = (
    ('encoder:latents', rf'{encoder}/~/{_TABLE}'),
    ('encoder/cross_attend_0/(.*)', rf'{encoder}/~/cross_attention/\1'),
    ('processor/self_attend_0/(.*)', rf'{encoder}/~/self_attention/\1'),
    (r'processor/self_attend_(\d+)/(.*)', rf'{encoder}/~/self_attention_\1/\2'),
    ('decoder/cross_attend/(.*)', rf'{decoder}/cross_attention/\1'),
    ('decoder/output:(.*)', rf'{decoder}/output:\1'),
  )
  return _renamed(_renamed(name, _BLOCK), (*others, *blocks))


def _renamed(name: str, rules: tuple[tuple[str, str], ...]) -> str:
  for pattern, replacement in rules:
    if match := re.fullmatch(pattern, name):
      return match.expand(replacement)
  return name
