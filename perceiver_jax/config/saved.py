"""The config that a run keeps in its folder, `config.json`: written once, read back exactly.

Numbers, booleans, text, None and tuples survive the round trip. JSON has no tuple: its arrays are read as tuples, and
so a list in a config comes back as one. A placeholder comes back as the value it held.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

from absl import logging
from ml_collections import ConfigDict

from perceiver_jax.config.values import flatten, tuples
from perceiver_jax.runs.files import write_atomically
from perceiver_jax.types import UserError

_ABSENT = object()
# Keys that say how or where, not what: a run may go on with other values, on other machines say.
_MAY_CHANGE = frozenset((
  'attention_impl', 'checkpoint.every_steps', 'checkpoint.keep_last', 'data.path', 'log.wandb', 'micro_batches',
  'peer_timeout_seconds', 'remat'))
def to_json(config: ConfigDict) -> str:
  """The text of config.json. Raises UserError where a value could not be read back."""
  for key, value in flatten(config).items():
    if not _is_plain(value):
      raise UserError(f'config.{key} is {value!r}; a config holds numbers, text, True, False, None and tuples of them')
  return json.dumps(config.to_dict(), indent=2) + '\n'


def save_config(config: ConfigDict, workdir: str | os.PathLike) -> None:
  """Writes `config.json` into `workdir`, which is made where missing; never half a file. Raises UserError."""
  path = Path(workdir) / 'config.json'
  text = to_json(config)
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, text)
  except OSError as error:
    raise UserError(f'cannot write {path}: {error.strerror}; choose a --workdir that can be written') from error


def load_config(workdir: str | os.PathLike) -> ConfigDict:
  """Returns the locked config that `save_config` wrote into `workdir`. Raises UserError if it cannot be read."""
  path = Path(workdir) / 'config.json'
  try:
    values = tuples(json.loads(path.read_text()))
    if not isinstance(values, dict):
      raise UserError(f'{path} is damaged: it holds no table of keys')
    for section in ('model', 'data'):
      if section in values and not isinstance(values[section], dict):
        raise UserError(f'{path} is damaged: {section} is {values[section]!r}, no table of keys')
    return ConfigDict(values).lock()
  except FileNotFoundError:
    raise UserError(f'{path} does not exist: {workdir} is not the workdir of a run') from None
  except OSError as error:
    raise UserError(f'cannot read {path}: {error.strerror}') from error
  except RecursionError:
    raise UserError(f'{path} is damaged: its tables are nested too deeply') from None
  except (TypeError, ValueError) as error:  # the former where a table stands in place of a value
    raise UserError(f'{path} is damaged: {error}') from error


def check_workdir(config: ConfigDict, workdir: str | os.PathLike, *, is_new: bool) -> None:
  """Raises UserError where a run of this config, which `is_new` or goes on, would destroy what is in `workdir`."""
  if is_new:
    if os.path.exists(os.path.join(workdir, 'config.json')) and 'num_steps' not in load_config(workdir):
      raise UserError(f'{workdir}/config.json is not one of ours and would be overwritten. Choose another --workdir')
  elif different := differences(load_config(workdir), config, leave_out=_MAY_CHANGE):
    shown = '; '.join(different[:5]) + ('; ...' if len(different) > 5 else '')
    raise UserError(
      f'{workdir} holds a run of another config: {shown}.\n'
      'Choose another --workdir, or give these keys the values that they have there')


def claim(config: ConfigDict, workdir: str | os.PathLike, *, is_new: bool) -> None:
  """Makes `workdir` the folder of this run: writes its config where the run `is_new`, else finds the same one there.

  Of the same one, keys that do not say what the run is may have other values, which take the place of the old ones.
  Raises UserError as `check_workdir` does, or where nothing can be written; what is there is then untouched.
  """
  check_workdir(config, workdir, is_new=is_new)
  changed = [] if is_new else differences(load_config(workdir), config)
  for change in changed:
    logging.info('%s. The run goes on so.', change)
  if is_new or changed:
    save_config(config, workdir)


def differences(saved: ConfigDict, current: ConfigDict, *, leave_out: Collection[str] = ()) -> list[str]:
  """One line per key whose value differs: 'optimizer.peak_lr: 0.002 in the workdir, 0.001 now'."""
  before, now = flatten(saved), flatten(current)
  return [
    f'{key}: {_show(before, key)} in the workdir, {_show(now, key)} now'
    for key in sorted((before.keys() | now.keys()) - set(leave_out))
    if before.get(key, _ABSENT) != now.get(key, _ABSENT)
  ]


def _show(flat: dict[str, Any], key: str) -> str:
  return repr(flat[key]) if key in flat else 'absent'


def _is_plain(value: Any) -> bool:
  if isinstance(value, dict):
    return all(isinstance(key, str) and _is_plain(inner) for key, inner in value.items())
  if isinstance(value, tuple):
    return all(_is_plain(inner) for inner in value)
  return value is None or isinstance(value, bool | int | float | str)
