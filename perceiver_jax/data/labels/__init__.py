"""Reads names of classes, a line each, in the order of the labels that a model was trained on.

  imagenet.txt     ILSVRC-2012: a WordNet name for each of its 1,000 synsets, in the order of their ids
  kinetics700.txt  Kinetics-700-2020: its 700 actions, in alphabetical order
"""

from __future__ import annotations

from pathlib import Path

from ml_collections import ConfigDict

from perceiver_jax.types import UserError


def class_names(data: ConfigDict) -> tuple[str, ...] | None:
  """Returns the names that a config's `data.class_names` gives the classes; None where it names no file.

  The lists above belong to one number of classes: with another one they are not used either.

  Raises:
    UserError: a file of your own that cannot be read, or holds another number of names than there are classes.
  """
  name = data.get('class_names')
  if not name:
    return None
  if name in packaged():
    names = _read(Path(__file__).parent / f'{name}.txt')
    return names if len(names) == data.num_classes else None
  try:
    names = _read(Path(name).expanduser())
  except OSError as error:
    raise UserError(f'data.class_names is {name!r}, which cannot be read: {error.strerror or error}') from error
  except ValueError as error:
    raise UserError(f'data.class_names is {name!r}, which is no text in UTF-8: {error}. Save it as UTF-8') from error
  if len(names) != data.num_classes:
    raise UserError(f'data.class_names: {name} has {len(names)} names, a line each, '
                    f'but data.num_classes is {data.num_classes}')
  return names


def packaged() -> list[str]:
  """Returns the names of the lists above: 'imagenet' ..."""
  return sorted(path.stem for path in Path(__file__).parent.glob('*.txt'))


def _read(path: Path) -> tuple[str, ...]:
  """Returns the lines of a text that may begin with a byte order mark; blank lines and outer spaces are left out."""
  lines = (line.strip() for line in path.read_text(encoding='utf-8-sig').split('\n'))
  return tuple(line for line in lines if line)
