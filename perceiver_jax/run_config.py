"""The config that a run keeps in its folder, `config.json`: written once, read back exactly.

Numbers, booleans, text, None and tuples survive the round trip. JSON has no tuple: its arrays are read as tuples, and
so a list in a config comes back as one. A placeholder comes back as the value it held.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from absl import logging
from ml_collections import ConfigDict

from perceiver_jax.types import UserError

_ABSENT = object()
# Keys that say how or where, not what: a run may go on with other values, on other machines say.
_MAY_CHANGE = frozenset((
  'attention', 'checkpoint.every_steps', 'checkpoint.keep_last', 'data.path', 'log.wandb', 'micro_batches',
  'peer_timeout_seconds', 'remat', 'rewind.max_rewinds'))
# What the last word of a key says of its value; the first that matches counts.
_RANGES: tuple[tuple[str, str, Callable[[float], bool]], ...] = (
  ('factor', 'more than 1', lambda x: x > 1),
  ('num_blocks|max_rewinds|warmup_steps|weight_decay|max_norm|peak_lr|init_scale', 'at least 0', lambda x: x >= 0),
  ('ema_decay|label_smoothing|constant_share', 'from 0 to 1', lambda x: 0 <= x <= 1),
  ('.*_prob', 'at least 0 and less than 1', lambda x: 0 <= x < 1),
  ('num_.*|.*_steps|.*_seconds|.*_size|.*channels|.*widening|keep_last|micro_batches|max_skipped',
   'at least 1', lambda x: x >= 1),
)
# Keys that older runs lack: one that stands beside it, the key, and the value with which a run does what it did then.
_LATER: tuple[tuple[str, str, Any], ...] = (
  ('data.permutation', 'data.mixing', 'none'),
  ('optimizer.schedule', 'optimizer.constant_share', 0.5),
  ('model.position.kind', 'model.position.init_scale', 0.02),
  ('precision', 'attention', 'dense'),
  ('precision', 'remat', 'none'),
  ('precision', 'peer_timeout_seconds', 60.0),
  ('precision', 'rewind.factor', None),
  ('precision', 'rewind.max_rewinds', 3),
)


def flatten(config: ConfigDict) -> dict[str, Any]:
  """Every value by its dotted key, {'optimizer.peak_lr': 0.002}; placeholders resolved, lists as tuples."""
  flat = {}
  for key, value in config.items():
    if isinstance(value, ConfigDict):
      flat.update({f'{key}.{inner}': leaf for inner, leaf in flatten(value).items()})
    else:
      flat[key] = _tuples(value)
  return flat


def check_ranges(config: ConfigDict) -> None:
  """Raises UserError for a number that cannot be what its name says: a count of 0, a probability of 1.5."""
  for key, value in flatten(config).items():
    for pattern, range_, is_in_range in _RANGES if isinstance(value, int | float) else ():
      if re.fullmatch(pattern, key.rpartition('.')[2]):
        if not is_in_range(value):
          raise UserError(f'{key} is {value}; it must be {range_}')
        break


def to_json(config: ConfigDict) -> str:
  """The text of config.json. Raises UserError where a value could not be read back."""
  for key, value in flatten(config).items():
    if not _is_plain(value):
      raise UserError(f'config.{key} is {value!r}; a config holds numbers, text, True, False, None and tuples of them')
  return json.dumps(config.to_dict(), indent=2) + '\n'


def save(config: ConfigDict, workdir: str | os.PathLike) -> None:
  """Writes `config.json` into `workdir`, which is made where missing; never half a file. Raises UserError."""
  path = Path(workdir) / 'config.json'
  text = to_json(config)
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f'config.json.{os.getpid()}.tmp')
    unfinished.write_text(text)
    unfinished.replace(path)
  except OSError as error:
    raise UserError(f'cannot write {path}: {error.strerror}; choose a --workdir that can be written') from error


def load(workdir: str | os.PathLike) -> ConfigDict:
  """The locked config that `save` wrote into `workdir`; keys that are younger than the file have the value of then.

  Raises UserError where there is none, or it cannot be read.
  """
  path = Path(workdir) / 'config.json'
  try:
    values = _tuples(json.loads(path.read_text()))
    if not isinstance(values, dict):
      raise UserError(f'{path} is damaged: it holds no table of keys')
    for section in ('model', 'data'):
      if section in values and not isinstance(values[section], dict):
        raise UserError(f'{path} is damaged: {section} is {values[section]!r}, no table of keys')
    return _completed(ConfigDict(values)).lock()
  except FileNotFoundError:
    raise UserError(f'{path} does not exist: {workdir} is not the workdir of a run') from None
  except OSError as error:
    raise UserError(f'cannot read {path}: {error.strerror}') from error
  except RecursionError:
    raise UserError(f'{path} is damaged: its tables are nested too deeply') from None
  except (TypeError, ValueError) as error:  # the former where a table stands in place of a value
    raise UserError(f'{path} is damaged: {error}') from error


def _completed(config: ConfigDict) -> ConfigDict:
  """With the keys that are younger. Raises TypeError where a value stands in place of a section, or the reverse."""
  flat = flatten(config)
  for beside, key, value in _LATER:
    if beside in flat and key not in flat:
      section, _, leaf = key.rpartition('.')
      if section and '.' not in section and section not in config:
        config[section] = ConfigDict()
      (config[section] if section else config)[leaf] = value
  return config


def check_workdir(config: ConfigDict, workdir: str | os.PathLike, *, is_new: bool) -> None:
  """Raises UserError where a run of this config, which `is_new` or goes on, would destroy what is in `workdir`."""
  if is_new:
    if os.path.exists(os.path.join(workdir, 'config.json')) and 'num_steps' not in load(workdir):
      raise UserError(f'{workdir}/config.json is not one of ours and would be overwritten. Choose another --workdir')
  elif different := differences(load(workdir), config, leave_out=_MAY_CHANGE):
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
  changed = [] if is_new else differences(load(workdir), config)
  for change in changed:
    logging.info('%s. The run goes on so.', change)
  if is_new or changed:
    save(config, workdir)


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


def _tuples(value: Any) -> Any:
  if isinstance(value, dict):
    return {key: _tuples(inner) for key, inner in value.items()}
  return tuple(_tuples(inner) for inner in value) if isinstance(value, list | tuple) else value


def _is_plain(value: Any) -> bool:
  if isinstance(value, dict):
    return all(isinstance(key, str) and _is_plain(inner) for key, inner in value.items())
  if isinstance(value, tuple):
    return all(_is_plain(inner) for inner in value)
  return value is None or isinstance(value, bool | int | float | str)
