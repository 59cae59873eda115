"""Starts fine-tuning from the weights of another model, as far as they fit the new one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from perceiver_jax.config.saved import load_config
from perceiver_jax.config.values import flatten
from perceiver_jax.runs import weights
from perceiver_jax.runs.checkpoint import load_weights, saved_steps
from perceiver_jax.types import Array, Tree, UserError

_NUM_SHOWN = 5  # names of what was taken: a model has hundreds

# Of an image its rows are the cells of a grid, of a text they are tokens.
_POSITIONS = 'params/positions/table'


class _Saved(NamedTuple):
  """A model to start from."""

  name: str
  config: ConfigDict | None                 # None where it is not there
  entries: dict[str, Any]                   # {'params/module path/leaf': NumPy array, 'state/...': NumPy array}


def init_from(config: ConfigDict, params: Tree, state: Tree) -> tuple[Tree, Tree]:
  """Fresh `params` and Haiku `state` with every entry whose name and shape those of a trained model share from there.

  Two exceptions. The table of positions of an image of another size is interpolated, see `resize_grid`. A module's
  parameters are taken together or not at all, and so is its state: half of a head, or an average without its counter,
  means nothing.

  What was taken is counted in the log, what was not is named, and so are the values of `config.model` that are others
  there: shapes do not show them. Dtypes stay those of `params` and `state`.

  Args:
    config: of the new model; `config.init_from` is the workdir of a run (its best checkpoint, the moving average where
      it kept one), its checkpoints directory, or a directory of converted weights.
    params: {module path: {leaf: array}}, as the state.
    state: {} for none.

  Raises:
    DamagedCheckpoint: a file of the run is missing or has changed.
    UserError: neither a run nor weights there, damaged weights, or not one parameter that fits.
  """
  saved = _read(config.init_from)
  wanted, found = weights.entries(params, state), saved.entries
  taken = _fitting(wanted, found)
  sides = _grids(config, wanted, found)
  values: dict[str, Array] = {**wanted, **{name: found[name] for name in taken}}
  if sides:
    values[_POSITIONS] = resize_grid(found[_POSITIONS], *sides)
  elif not any(name.startswith('params/') for name in taken):
    raise UserError(f'config.init_from: no parameter of {saved.name} has the name and shape of one of this model')
  _log(config, saved, wanted, taken, sides)

  def chosen(kind: str, tree: Tree) -> Tree:
    return {
      module: {leaf: np.asarray(values[f'{kind}/{module}/{leaf}'], array.dtype) for leaf, array in leaves.items()}
      for module, leaves in tree.items()}

  return chosen('params', params), chosen('state', state)


def resize_grid(table: Array, before: int, after: int) -> np.ndarray:
  """A table of positions for an image of another size: each channel is a picture, and resized as pictures are.

  Bicubic (Keys, a = -0.5), by the centres of cells: cell i of n covers [i / n, (i + 1) / n] of the image before and
  after. Beyond the edge there is nothing, and the weights of the cells that there are still add up to 1. A smaller
  table is sampled, not blurred (no anti-aliasing): a cell gets the position of the place where its centre is.

  Args:
    table: [before * before, C], row-major.
    before: cells along each side of the table.
    after: cells along each side of the result.

  Returns:
    [after * after, C] float32. Neither paper says how; this way is ours.
  """
  grid = jnp.asarray(table, jnp.float32).reshape(before, before, -1)
  resized = jax.image.resize(grid, (after, after, grid.shape[-1]), 'bicubic', antialias=False)
  return np.asarray(resized).reshape(after * after, -1)


def _read(path: str) -> _Saved:
  directory = Path(path)
  if (directory / weights.ARRAYS).exists():
    loaded = weights.load(directory)
    return _Saved(path, loaded.config, weights.entries(loaded.params, loaded.state))
  if not saved_steps(directory / 'checkpoints') and not saved_steps(directory):
    raise UserError(
      f'config.init_from={path} is neither a run (checkpoints/<step>/) nor converted weights ({weights.ARRAYS}).\n'
      'A file of the authors or a directory of Hugging Face is converted first: '
      'python -m perceiver_jax convert SOURCE DEST; --help says more')
  step, params, state = load_weights(directory)
  config = load_config(directory) if (directory / 'config.json').exists() else None
  return _Saved(f'step {step} of {path}', config, weights.entries(params, state))


def _fitting(wanted: Mapping[str, Any], found: Mapping[str, Any]) -> set[str]:
  """The names of what can be taken as it is."""
  same = {name for name in wanted.keys() & found.keys() if np.shape(wanted[name]) == np.shape(found[name])}
  torn = {_module(name) for name in wanted.keys() - same}
  return {name for name in same if _module(name) not in torn}


def _module(name: str) -> str:
  return name.rpartition('/')[0]


def _grids(config: ConfigDict, wanted: Mapping[str, Any], found: Mapping[str, Any]) -> tuple[int, int] | None:
  """The sides of the two square grids, if the table of positions is to be interpolated from one to the other.

  That it is one of cells, the config says: `model.position.kind` is 'learned' for an image. The positions of a text go
  by the same name, and may be as many as a square has, but its config has `data.max_length` in place of that section.
  """
  position = config.get('model', {}).get('position', {})
  if position.get('kind') != 'learned' or not (_POSITIONS in wanted and _POSITIONS in found):
    return None
  (before, *channels), (after, *new_channels) = np.shape(found[_POSITIONS]), np.shape(wanted[_POSITIONS])
  sides = math.isqrt(before), math.isqrt(after)
  if before == after or channels != new_channels or (sides[0]**2, sides[1]**2) != (before, after):
    return None
  return sides


def _log(
  config: ConfigDict, saved: _Saved, wanted: Mapping[str, Any], taken: set[str], sides: tuple[int, int] | None,
) -> None:
  """A line for each kind of thing that happened, with the names that it happened to; what starts anew comes last."""
  found = saved.entries
  resized = {_POSITIONS: '{0} x {0} to {1} x {1}'.format(*sides)} if sides else {}
  others = (wanted.keys() & found.keys()) - taken - resized.keys()
  reshaped = {name for name in others if np.shape(wanted[name]) != np.shape(found[name])}
  if different := _differences(config, saved.config):
    logging.warning('The config of that model is another, are these meant? %s', '; '.join(different))
  names = sorted(taken)
  if len(names) > _NUM_SHOWN:
    names[_NUM_SHOWN:] = ['...']
  if names:
    logging.info('Taken from %s (%d): %s', saved.name, len(taken), ', '.join(names))
  for what, lines in {
    'Taken for another size of the image': {f'{name} interpolated from {how}' for name, how in resized.items()},
    'Not used, not in this model': found.keys() - wanted.keys(),
    'Not taken, of another shape': {
      f'{name} {np.shape(found[name])} -> {np.shape(wanted[name])}' for name in reshaped},
    'Not taken, as the rest of its module does not fit': others - reshaped,
    'Not taken, not there': wanted.keys() - found.keys(),
  }.items():
    if lines:
      logging.info('%s (%d): %s', what, len(lines), ', '.join(sorted(lines)))


def _differences(config: ConfigDict, saved: ConfigDict | None) -> list[str]:
  before, now = flatten(saved or ConfigDict()), flatten(config)
  return [
    f'{key}: {before[key]!r} there, {now[key]!r} here' for key in sorted(before.keys() & now.keys())
    if key.startswith('model.') and before[key] != now[key]]
