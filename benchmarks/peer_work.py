"""What every implementation is asked to do, and other people's, imported from where the user has them.

Nothing of ours needs theirs. JAX is not imported here: a process that runs Torch shall not pay for it.
"""

from __future__ import annotations

import importlib
import pathlib
import sys
import types
from typing import Any, NamedTuple

from perceiver_jax.types import UserError

_SITE = 'pip install --no-deps --target=SITE perceiver-pytorch einops, and --peers_site=SITE'
_TEST = 'pip install -r requirements-test.txt'
HOW = {'perceiver_pytorch': _SITE, 'einops': _SITE, 'torch': _TEST, 'transformers': _TEST}


class Work(NamedTuple):
  """The same for all; `what` is one of WHATS. Flow has a size of its own, and no blocks."""

  what: str
  batch: int = 1
  size: int = 224                          # pixels of a side
  num_bands: int = 64                      # of a position, per axis
  num_latents: int = 512
  latent_channels: int = 1024
  num_heads: int = 8                       # of self-attends
  num_blocks: int = 8                      # of v1, each after a cross-attend; of io, all after the one
  num_layers: int = 6                      # self-attends of a block
  num_classes: int = 1000
  remat: str = 'dots'                      # of ours: what the backward pass of io and v1 computes again
  flow_size: tuple[int, int] = (128, 192)
  flow_channels: int = 64                  # of an element, without its position
  num_flow_latents: int = 2048
  flow_latent_channels: int = 512

  @property
  def kind(self) -> str:
    """'io', 'v1', 'flow_encoder' or 'flow_decoder'."""
    return self.what.rpartition('_')[0]

  @property
  def is_step(self) -> bool:
    return self.what.endswith('_step')

  @property
  def num_cross_attends(self) -> int:
    return self.num_blocks if self.kind == 'v1' else 1


KINDS = ('io', 'v1', 'flow_encoder', 'flow_decoder')
WHATS = tuple(f'{kind}_{pass_}' for kind in KINDS for pass_ in ('forward', 'step'))
# Who has which; Hugging Face's model reads its inputs once, and only the authors are measured on flow.
OFFERS = {
  'ours': KINDS, 'official': KINDS, 'huggingface': ('io',), 'perceiver_pytorch': ('io', 'v1'),
  'perceiver_io': ('io', 'v1')}


class Folders(NamedTuple):
  """Where the user has what is not installed; None: nowhere."""

  official: str | None = None      # a clone of google-deepmind/deepmind-research
  perceiver_io: str | None = None  # a clone of krasserm/perceiver-io
  peers_site: str | None = None    # packages


class Official(NamedTuple):
  """The modules of the authors' code."""

  perceiver: Any
  position_encoding: Any
  io_processors: Any


def module(name: str, *folders: str | None) -> Any:
  """Imports it, from a clone among `folders`, else from what is installed, else from a site. Raises UserError."""
  for folder in filter(None, folders):
    # A clone comes first, as `perceiver` is also the name of packages; a site last, as it may hold another Torch.
    if folder not in sys.path:
      sys.path.insert(0 if (pathlib.Path(folder) / 'perceiver').exists() else len(sys.path), folder)
  try:
    return importlib.import_module(name)
  except ImportError as error:
    missing = (error.name or name).partition('.')[0]
    how = HOW.get(missing, f'pip install {missing}')
    raise UserError(f'cannot import {name}: {error}. To have it: {how}') from error


def official(folders: Folders) -> Official:
  """The authors' modules. Raises UserError."""
  _check(folders.official, '--official', 'google-deepmind/deepmind-research', 'perceiver/io_processors.py')
  names = ('perceiver', 'position_encoding', 'io_processors')
  return Official(*(module(f'perceiver.{name}', folders.official, folders.peers_site) for name in names))


def perceiver_io(folders: Folders) -> Any:
  """`perceiver.model.core` of perceiver-io, without fairscale: what it would do with it is off here. UserError."""
  _check(folders.perceiver_io, '--perceiver_io', 'krasserm/perceiver-io', 'perceiver/model/core/modules.py')
  stub = types.ModuleType('fairscale.nn')
  stub.checkpoint_wrapper = None  # type: ignore[attr-defined]
  sys.modules.setdefault('fairscale', types.ModuleType('fairscale'))
  sys.modules.setdefault('fairscale.nn', stub)
  return module('perceiver.model.core', folders.perceiver_io, folders.peers_site)


def _check(clone: str | None, flag: str, repository: str, file: str) -> None:
  if clone is None or not (pathlib.Path(clone) / file).exists():
    raise UserError(f'{clone} has no {file}: {flag} is a clone, git clone https://github.com/{repository}')
