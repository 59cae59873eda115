"""Opens a directory that TensorFlow Datasets (TFDS) has built: the version, its files, and what is said of broken ones.

  DIR/<name>/<version>/dataset_info.json, features.json, <name>-<split>.array_record-00000-of-00012 ...
"""

from __future__ import annotations

import json
import pathlib
import re
import resource
from collections.abc import Iterator, Sequence
from typing import Any

import tensorflow_datasets as tfds

from perceiver_jax.data.build import TARS
from perceiver_jax.types import UserError

BLOCK = 2**16                               # bytes; an array_record file that was written to its end is of whole ones
OTHER_FILES = 256                           # that a run has open beside the shards


def find(path: pathlib.Path) -> pathlib.Path:
  """Returns the version below DIR/<name>; a directory of a version stays."""
  if (path / 'dataset_info.json').is_file():
    return path
  if not path.is_dir():
    raise UserError(f'there is no directory {path}. {how_to_build(path)}')
  versions = sorted(each for each in path.iterdir()
                    if re.fullmatch(r'\d+\.\d+\.\d+', each.name) and (each / 'dataset_info.json').is_file())
  if len(versions) > 1:
    raise UserError(f'{path} holds {", ".join(each.name for each in versions)}: '
                    f'choose one of them, {versions[-1]} for example.')
  if not versions:
    inside = sorted(each.parent.parent for each in path.glob('*/*/dataset_info.json'))
    if inside:
      raise UserError(f'{path} is not itself a data set of TFDS, but {inside[0]} inside it is one.')
    unfinished = ', '.join(sorted(each.name for each in path.glob('incomplete.*')))
    found = f'only what an interrupted build left: {unfinished}' if unfinished else 'no data set of TFDS'
    built = path / 'imagenet2012' if any((path / tar).exists() for tar in TARS) else path
    raise UserError(f'in {path} there is {found}. {how_to_build(built)}')
  return versions[0]


def how_to_build(path: pathlib.Path) -> str:
  """Tells the command that makes DATA/NAME."""
  data = path.parent
  if path.name == 'imagenet2012':
    return f'To build it: put {" and ".join(TARS)} into {data}, then make imagenet DATA={data} (see docs/data.md)'
  return f'To build it: make imagenet NAME={path.name} DATA={data} (see docs/data.md)'


def open_directory(directory: pathlib.Path) -> tfds.core.DatasetBuilder:
  """Opens a version's directory. Raises UserError where TFDS cannot, or where features.json names code of others."""
  path = directory / 'features.json'
  try:
    foreign = [name for name in _class_names_in(json.loads(path.read_text()))
               if not str(name).startswith('tensorflow_datasets.')]
  except (OSError, ValueError, RecursionError) as error:
    raise UserError(f'{path} cannot be read: {error}. Copy the directory again, whole.') from error
  if foreign:                               # TFDS would import it
    raise UserError(f'{path} names code that is not of TFDS, {foreign[0]}: it is not read.')
  try:
    return tfds.builder_from_directory(directory)
  except Exception as error:                # TFDS trips over broken files in many ways
    said = str(error)[:200]
    raise UserError(f'{directory} cannot be opened by TFDS: {said!r}. Is it whole, and of images?') from error


def _class_names_in(value: Any) -> Iterator[Any]:
  """Yields each pythonClassName of a description of features."""
  if isinstance(value, dict):
    yield from (name for key, name in value.items() if key == 'pythonClassName')
  for each in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
    yield from _class_names_in(each)


def check_files(directory: pathlib.Path, info: tfds.core.DatasetInfo, split: str) -> None:
  """Raises UserError where a shard is missing or was cut off, or where a process may not open so many."""
  paths = [pathlib.Path(path) for path in info.splits[split].filepaths]
  sizes = {path.name: path.stat().st_size if path.exists() else None for path in paths}
  _refuse(directory, 'lacks', [name for name, size in sizes.items() if size is None], len(paths))
  cut_off = [name for name, size in sizes.items() if not size or size % BLOCK]
  _refuse(directory, 'has only a part of', cut_off, len(paths))
  # A reader keeps its file open, and training visits them all: imagenet2012 has as many as a process may often open.
  soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
  wanted = len(paths) + OTHER_FILES
  if soft < wanted:
    if hard < wanted:
      raise UserError(f'{split} of {directory} has {len(paths)} files, but a process may open {hard}: '
                      f'raise that to {wanted} (ulimit -n {wanted}, by root).')
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _refuse(directory: pathlib.Path, what: str, files: Sequence[str], num_files: int) -> None:
  """Raises UserError where there are such files."""
  if files:
    others = f' and {len(files) - 1} more of its {num_files} files' if len(files) > 1 else ''
    raise UserError(f'{directory} {what} {files[0]}{others}. Copy the directory again, whole.')
