"""Names of classes, a line each, in the order of the labels that the released models were trained on.

  imagenet.txt     ILSVRC-2012: a WordNet name for each of its 1,000 synsets, in the order of their ids
  kinetics700.txt  Kinetics-700-2020: its 700 actions, in alphabetical order
"""

from __future__ import annotations

from pathlib import Path

from ml_collections import ConfigDict

from perceiver_jax.types import UserError


def class_names(config: ConfigDict) -> tuple[str, ...] | None:
  """The names of a config's classes; None where it names no file, or one of another number of classes.

  Raises:
    UserError: `data.class_names` names a file that cannot be read.
  """
  name = config.data.get('class_names')
  if not name:
    return None
  path = Path(__file__).parent / f'{name}.txt'
  try:
    lines = (path if path.exists() else Path(name)).read_text(encoding='utf-8').splitlines()
  except (OSError, ValueError) as error:
    raise UserError(f'data.class_names is {name!r}, which cannot be read: {error}') from error
  return tuple(lines) if len(lines) == config.data.num_classes else None
