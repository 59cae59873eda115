"""Trained weights on disk, in a format that any program can read and that runs nothing: a directory of two files.

  config.json          the config of the model, as a run's folder holds it
  weights.safetensors  its arrays, named `params/<module path>/<leaf>` and `state/<module path>/<leaf>`

Haiku's trees are {module path: {leaf: array}}. A module path has slashes, a leaf has none: it follows the last one. The
header of the arrays holds texts: {'format': 'perceiver_jax', 'version': '1', 'source': ..., 'licence': ...}.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp  # which makes NumPy know bfloat16
import numpy as np
from ml_collections import ConfigDict
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from perceiver_jax.config.saved import load_config, to_json
from perceiver_jax.types import Tree, UserError

CONFIG = 'config.json'
ARRAYS = 'weights.safetensors'
_FORMAT, _VERSION = 'perceiver_jax', '1'
_LONGEST_HEADER = 100_000_000               # [bytes]; safetensors reads none that is longer
_NUM_SHOWN = 10


class Weights(NamedTuple):
  """Holds what `load` returns."""

  config: ConfigDict                        # locked
  params: Tree                              # {module path: {leaf: NumPy array}}, as the state
  state: Tree                               # {} where a model has none
  metadata: dict[str, str]                  # the texts of the header; 'class_names' a line each


def save(
  directory: str | os.PathLike, config: ConfigDict, params: Tree, state: Tree, *, source: str = '', licence: str = '',
  class_names: Sequence[str] = (),
) -> None:
  """Writes a directory of weights in one move: a kill at any moment leaves a whole one, or none.

  Weights that are there already are replaced. A kill just then may leave them as `.<name>.<process>.old` beside it,
  until the next save.

  Args:
    directory: made where missing, with its parents.
    config: as `save_config` takes it.
    params: {module path: {leaf: array}}, of NumPy or JAX arrays; every dtype is kept, bfloat16 too.
    state: the same; {} for none.
    source: where the weights come from, for people.
    licence: what they may be used for, for people.
    class_names: of a classifier whose config names no file of them, in order.

  Raises:
    UserError: the directory holds something else, or cannot be written; or an entry that no such file can hold.
  """
  directory = Path(directory).resolve()
  text = to_json(config)
  arrays = {name: _array(name, leaf) for name, leaf in entries(params, state).items()}
  header = {'format': _FORMAT, 'version': _VERSION, 'source': source, 'licence': licence}
  header |= {'class_names': '\n'.join(class_names)} if class_names else {}
  unfinished, old = (directory.with_name(f'.{directory.name}.{os.getpid()}.{word}') for word in ('tmp', 'old'))
  try:
    _check_replaceable(directory)
    remove_leftovers(directory, 'tmp')
    unfinished.mkdir(parents=True, exist_ok=True)
    (unfinished / CONFIG).write_text(text)
    save_file(arrays, unfinished / ARRAYS, header)
    # Written for its owner alone, whatever the umask says.
    (unfinished / ARRAYS).chmod((unfinished / CONFIG).stat().st_mode)
    if (directory / ARRAYS).exists():
      directory.rename(old)
    unfinished.rename(directory)
  except (OSError, SafetensorError) as error:
    raise UserError(f'cannot write weights to {directory}: {error}') from error
  finally:
    shutil.rmtree(unfinished, ignore_errors=True)
  shutil.rmtree(old, ignore_errors=True)
  remove_leftovers(directory, 'old')        # not before: they may have been the only whole ones


def load(directory: str | os.PathLike) -> Weights:
  """The weights that `save` wrote, as NumPy arrays.

  Raises:
    UserError: no weights there; a damaged file, a foreign one, or one of another version; numbers that are not finite.
  """
  for name in (ARRAYS, CONFIG):
    if not (Path(directory) / name).is_file():
      raise UserError(f'{directory} holds no weights: there is no {name} in it')
  path = Path(directory) / ARRAYS
  try:
    with safe_open(path, framework='np') as file:
      metadata = file.metadata() or {}
      _check_header(path, metadata)
      arrays = file.get_tensors()
  # The last two for a dtype, and a number of axes, that NumPy lacks.
  except (OSError, SafetensorError, AttributeError, ValueError) as error:
    raise UserError(f'{path} is damaged, or is no safetensors file: {error}') from error
  trees: dict[str, dict[str, dict[str, np.ndarray]]] = {'params': {}, 'state': {}}
  for name in sorted(arrays):
    module, _, leaf = name.rpartition('/')
    kind, _, module = module.partition('/')
    if kind not in trees or not module or not leaf:
      raise UserError(f'{path} is damaged: it holds {name!r}, which names neither a parameter nor a state')
    trees[kind].setdefault(module, {})[leaf] = arrays[name]
  check_finite(arrays, str(path))
  return Weights(load_config(directory), trees['params'], trees['state'], metadata)


def is_weights(directory: str | os.PathLike) -> bool:
  """Says whether a directory holds weights of ours. Reads their header only, so that `load` may still find damage."""
  try:
    with (Path(directory) / ARRAYS).open('rb') as file:
      size = int.from_bytes(file.read(8), 'little')
      header = json.loads(file.read(size)) if size <= _LONGEST_HEADER else {}
  except (OSError, ValueError, RecursionError):
    return False
  metadata = header.get('__metadata__') if isinstance(header, dict) else None
  return isinstance(metadata, dict) and metadata.get('format') == _FORMAT


def check_fits(
  params: Tree, state: Tree, template: tuple[Tree, Tree], where: str, num_shown: int = _NUM_SHOWN,
) -> None:
  """Raises one UserError that names the entries which are missing, unexpected or of another shape; dtypes may differ.

  Args:
    params: {module path: {leaf: array}}, what there is.
    state: the same.
    template: (params, state) as they must be, of arrays or `jax.ShapeDtypeStruct`s: what `init` of
      `hk.transform_with_state` gives, also under `jax.eval_shape`.
    where: what they are, for the message: 'the weights in runs/digits'.
    num_shown: how many entries the message names; it counts all.
  """
  found, expected = (
    {name: list(np.shape(leaf)) for name, leaf in entries(*trees).items()} for trees in ((params, state), template))
  differences = [
    f'{name} is missing' if name not in found else
    f'{name} is unexpected' if name not in expected else
    f'{name} is {found[name]}, expected {expected[name]}'
    for name in sorted(expected.keys() | found.keys()) if expected.get(name) != found.get(name)]
  if differences:
    raise UserError(f'{where} does not fit this model: {shortened(differences, num_shown)}')


def check_finite(arrays: Mapping[str, np.ndarray], where: str) -> None:
  """Raises one UserError that names the first few of `arrays`, {name: array}, with a NaN or an infinity in them."""
  damaged = [
    name for name, array in arrays.items()
    if jnp.issubdtype(array.dtype, jnp.inexact) and not np.isfinite(array).all()]
  if damaged:
    verb = 'hold' if len(damaged) > 1 else 'holds'
    raise UserError(f'{where}: {shortened(damaged, 3)} {verb} numbers that are not finite: the file is damaged')


def remove_leftovers(directory: Path, word: str) -> None:
  """Removes what killed processes left beside `directory`, `.<name>.<process>.<word>`; not that of one which lives."""
  pattern = re.compile(rf'\.{re.escape(directory.name)}\.(\d{{1,9}})\.{word}')
  for path in directory.parent.iterdir() if directory.parent.is_dir() else ():
    if (match := pattern.fullmatch(path.name)) and not _lives(int(match[1])):
      shutil.rmtree(path, ignore_errors=True)


def entries(params: Tree, state: Tree) -> dict[str, Any]:
  """Names the leaves of Haiku's trees as a file does: {'params/module path/leaf': leaf, 'state/...': leaf}.

  Raises:
    UserError: a name that could not be read back.
  """
  named: dict[str, Any] = {}
  for kind, tree in (('params', params), ('state', state)):
    for module, leaves in tree.items():
      if not module or not isinstance(leaves, Mapping) or any(not leaf or '/' in leaf for leaf in leaves):
        raise UserError(f'{kind}/{module} must be a module path with named leaves, and their names without a slash')
      named |= {f'{kind}/{module}/{leaf}': value for leaf, value in leaves.items()}
  return named


def shortened(items: Sequence[str], num_shown: int = _NUM_SHOWN) -> str:
  """Returns the first `num_shown` items as a text, and how many more there are."""
  rest = len(items) - num_shown
  return '; '.join(items[:num_shown]) + (f'; and {rest} more, {len(items)} in all' if rest > 0 else '')


def _lives(process: int) -> bool:
  try:
    os.kill(process, 0)
  except ProcessLookupError:
    return False
  except OSError:                           # somebody else's
    return True
  return True


def _array(name: str, leaf: Any) -> np.ndarray:
  array = np.asarray(leaf, order='C')       # the format has no strides
  if array.dtype.hasobject:
    raise UserError(f'{name} is a {type(leaf).__name__}, not an array')
  return array


def _check_replaceable(directory: Path) -> None:
  if not directory.exists():
    return
  others = sorted({child.name for child in directory.iterdir()} - {CONFIG, ARRAYS})
  if others or (any(directory.iterdir()) and not is_weights(directory)):
    raise UserError(
      f'{directory} holds something else ({(others or [CONFIG])[0]}), which would be lost. Choose another directory')


def _check_header(path: Path, metadata: Mapping[str, str]) -> None:
  if metadata.get('format') != _FORMAT:
    raise UserError(f'{path} is not one of ours: its header does not say "format": "{_FORMAT}"')
  if metadata.get('version') != _VERSION:
    raise UserError(
      f'{path} is of version {metadata.get("version")!r}, and this program reads {_VERSION!r}: '
      'use the program that wrote it, or a newer one')
