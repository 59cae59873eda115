"""A config from a file, and the command line's overrides of it. What is wrong with either is one UserError.

A config file is Python with a function `get_config(variant='')` that returns an `ml_collections.ConfigDict`. It refuses
a variant by raising ValueError, whose message is shown as it is; any other exception is a fault of the file and is
shown with its line.
"""

from __future__ import annotations

import importlib.machinery
import os
import re
import sys
import traceback
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import ModuleType

from absl import flags
from ml_collections import ConfigDict, FieldReference, config_flags

from perceiver_jax.config.values import flatten, likeness, nearest
from perceiver_jax.types import UserError

_EXPECTED = {int: 'a whole number', float: 'a number', bool: 'true or false', str: 'text', tuple: 'a tuple'}
# What the field also says for our keys.
_SYNONYMS = {
  'learning_rate': 'peak_lr', 'lr': 'peak_lr', 'base_lr': 'peak_lr', 'wd': 'weight_decay', 'decay': 'weight_decay',
  'grad_clip': 'max_norm', 'clip': 'max_norm', 'clip_norm': 'max_norm', 'warmup': 'warmup_steps',
  'epochs': 'num_steps', 'num_epochs': 'num_steps', 'steps': 'num_steps', 'max_steps': 'num_steps',
  'train_steps': 'num_steps', 'bs': 'batch_size', 'batch': 'batch_size', 'accumulate': 'micro_batches',
  'depth': 'num_self_attends_per_block', 'num_layers': 'num_self_attends_per_block',
  'layers': 'num_self_attends_per_block', 'blocks': 'num_blocks', 'latents': 'num_latents', 'dim': 'latent_channels',
  'width': 'latent_channels', 'hidden_size': 'latent_channels', 'heads': 'num_self_heads',
  'num_heads': 'num_self_heads', 'dropout': 'dropout_prob', 'attention_dropout': 'attention_dropout_prob',
  'classes': 'num_classes', 'resolution': 'image_size', 'dataset': 'name', 'data_dir': 'path', 'ema': 'ema_decay',
  'dtype': 'precision', 'checkpoint': 'init_from', 'pretrained': 'init_from', 'random_seed': 'seed',
}
_OVERRIDE = re.compile(r'--?(?:no)?config\.([^=]*)')


def load(path_and_variant: str) -> ConfigDict:
  """The locked config of 'configs/digits.py' or 'configs/digits.py:perceiver'. Raises UserError."""
  name, _, variant = path_and_variant.partition(':')
  path = Path(name)
  if not os.path.isfile(path):              # which answers for a name that no file can have, too
    raise UserError(_no_such_file(path))
  try:
    module = _execute(path)
    arguments = [variant] if variant else []
    config = module.get_config(*arguments) if hasattr(module, 'get_config') else None
  except ValueError as error:
    raise UserError(f'{path}: {error}') from error
  except Exception as error:
    raise UserError(_fault(path, error)) from error
  if not isinstance(config, ConfigDict):
    raise UserError(f'{path} needs a function get_config(variant) that returns an ml_collections.ConfigDict')
  return config.lock()


def override(config: ConfigDict, argv: Sequence[str], flag_values: flags.FlagValues) -> list[str]:
  """Parses `argv` into `flag_values`, and each `--config.key=value` of it into `config`.

  Returns what is left of `argv`: the program's name and whatever is not a flag. Raises UserError on a key that the
  config does not have, naming the nearest that it has, and on a value of another type; flags.Error on any other flag.
  """
  keys = flatten(config)
  for match in filter(None, map(_OVERRIDE.match, argv)):
    _check_key(match[1], keys)
  argv = _without_unset(config, argv)
  config_flags.DEFINE_config_dict('config', config, flag_values=flag_values, sys_argv=[*argv])
  try:
    return flag_values(argv)
  except (MemoryError, RecursionError) as error:  # of absl in search of a similar name, of Python in reading a tuple
    raise UserError(f'too long, or nested too deeply: {max(argv, key=len)[:60]} ...') from error
  except ValueError as error:               # of --noconfig.key=value: absl says so, but as no flags.Error
    raise UserError(str(error)) from error
  except flags.IllegalFlagValueError as error:
    wrong = re.match(r'flag (--config\.([\w.]+)=.*?): ', str(error))
    if not wrong:
      raise
    section, _, leaf = wrong[2].rpartition('.')
    kind = (config[section] if section else config).get_type(leaf)
    now = config[wrong[2]]
    raise UserError(f'{wrong[1]}: expected {_EXPECTED[kind]} ({kind.__name__}); the config has {now!r}') from error


def _without_unset(config: ConfigDict, argv: Sequence[str]) -> list[str]:
  """Sets to None each placeholder that `--config.key=None` names, and returns the rest of `argv`.

  absl would read None as a number, or as the text 'None'.
  """
  rest = []
  for argument in argv:
    key, _, value = argument.lstrip('-').removeprefix('config.').partition('=')
    section, _, leaf = key.rpartition('.')
    if value == 'None' and _OVERRIDE.match(argument):
      fields = dict((config[section] if section else config).items(preserve_field_references=True))
      if isinstance(fields.get(leaf), FieldReference):
        config.update_from_flattened_dict({key: None})
        continue
    rest.append(argument)
  return rest


def _nearest_key(wrong: str, keys: Iterable[str]) -> str:
  """By the field's other words for it, the whole dotted key and its last part: a forgotten section is found too."""
  leaf = wrong.rpartition('.')[2]
  meant = [key for key in keys if key.rpartition('.')[2] == _SYNONYMS.get(leaf)]
  if meant:
    return meant[0]
  return max(keys, key=lambda key: likeness(wrong, key) + likeness(leaf, key.rpartition('.')[2]))


def _check_key(key: str, keys: Iterable[str]) -> None:
  inside = [other for other in keys if other.startswith(f'{key}.')]
  if inside:
    raise UserError(f'--config.{key} is a section; set its keys one by one: {", ".join(inside)}')
  if key not in keys:
    raise UserError(f'the config has no key {key!r}. Did you mean --config.{_nearest_key(key, keys)}?')


def _execute(path: Path) -> ModuleType:
  # `from configs import images` means the file beside this config.
  folder = str(path.resolve().parent.parent)
  if path.resolve().parent.name == 'configs' and folder not in sys.path:
    sys.path.insert(0, folder)
  loader = importlib.machinery.SourceFileLoader('config_file', str(path))
  module = ModuleType(loader.name)
  loader.exec_module(module)
  return module


def _no_such_file(path: Path) -> str:
  folders = [path.parent, Path('configs'), Path(__file__).parents[1] / 'configs']
  folder = next((folder for folder in folders if _config_files(folder)), None)
  if folder is None:
    return f'there is no config file {path}'
  files = _config_files(folder)
  near = folder / nearest(path.name, files)
  return f'there is no config file {path}. Did you mean {near}?\n{folder} has: {", ".join(files)}'


def _config_files(folder: Path) -> list[str]:
  return sorted(file.name for file in folder.glob('*.py') if _offers_config(file)) if os.path.isdir(folder) else []


def _offers_config(file: Path) -> bool:
  if not file.is_file() or not os.access(file, os.R_OK):
    return False
  return 'def get_config(' in file.read_text(errors='replace')


def _fault(path: Path, error: Exception) -> str:
  if isinstance(error, SyntaxError):
    return f'{error.filename}, line {error.lineno}: {error.msg}'
  frames = traceback.extract_tb(error.__traceback__)
  frame = next((frame for frame in reversed(frames) if Path(frame.filename).resolve() == path.resolve()), frames[-1])
  text = ' '.join(str(error).replace('\\n', ' ').split())
  text = text if len(text) < 200 else f'{text[:90]} ... {text[-90:]}'
  return f'{frame.filename}, line {frame.lineno}: {type(error).__name__}: {text}'
