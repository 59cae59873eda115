"""Finds a model: a released one by its name, or a directory: of Hugging Face, of a run of ours, or converted."""

from __future__ import annotations

import contextlib
import functools
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from perceiver_jax.config.saved import load_config
from perceiver_jax.config.values import changed, check, flatten
from perceiver_jax.inference.model import template
from perceiver_jax.interop import deepmind, huggingface, huggingface_config, huggingface_inputs, torch_file, zoo
from perceiver_jax.processes.parallel import check_device
from perceiver_jax.runs import weights
from perceiver_jax.tasks import import_task
from perceiver_jax.types import Batch, Tree, UserError


class Source(NamedTuple):
  """A model's config and weights, and how its source lays out inputs and answers."""

  config: ConfigDict
  params: Tree
  state: Tree
  batch_of: Callable[[dict[str, Any]], Batch]   # the source's inputs, by name -> a batch of ours
  logits_of: Callable[[dict[str, Any]], Any]    # our outputs -> the source's logits
  class_names: tuple[str, ...] | None = None
  credit: str = ''                              # whose weights they are, and their licence


# How the keys end that multiply to a number of layers.
_DEPTHS = ('.num_blocks', '.num_self_attends_per_block', '.num_cross_attends')
_MAX_LAYERS = 10_000
_MAX_SIZE = 2**16                           # pixels along a side


def open_source(name: str | Path, path: str | Path | None = None, task: str | None = None) -> Source:
  """Returns the source of `load`; see there. Raises UserError where there is no device, before a file is blamed."""
  check_device()
  if isinstance(name, str) and name in zoo.MODELS:  # a Path is a directory, whatever it is called
    return _released(name, path)
  if task is not None:
    import_task(task)
  directory = Path(name)
  if path is not None:
    raise UserError(f'{name!r} is no released model, so `path` means nothing; those are: {", ".join(zoo.MODELS)}')
  if directory.is_file():
    raise UserError(
      f'{directory} is a file, neither a released model nor a directory: name the model that it holds, '
      f'load(NAME, path={str(directory)!r}) or --model=NAME --path={directory}; NAME is one of {", ".join(zoo.MODELS)}')
  if not directory.is_dir():
    raise UserError(f'{name!r} is neither a released model ({", ".join(zoo.MODELS)}) nor a directory')
  with _naming(directory):
    if 'architectures' in _config_json(directory):
      return _huggingface(directory)
    if (directory / 'checkpoints').is_dir():
      return _run(directory, task)
    if weights.is_weights(directory):
      return _ours(directory, task)
  raise UserError(
    f'{directory} holds no model: neither one of Hugging Face (a config.json with `architectures`), nor a run of ours '
    '(checkpoints/), nor converted weights (weights.safetensors, by perceiver_jax.convert)')


def _config_json(directory: Path) -> dict[str, Any]:
  try:
    values = json.loads((directory / 'config.json').read_text())
  except (OSError, ValueError):
    return {}
  except RecursionError:
    raise UserError(f'{directory}/config.json is damaged: it is nested too deeply') from None
  return values if isinstance(values, dict) else {}


def _released(name: str, path: str | Path | None) -> Source:
  if path is not None and Path(path).is_dir():
    raise UserError(f"{path} is a directory, and `path` is the authors' file: leave out {name}, and give the directory "
                    f'alone, load({str(path)!r}) or --model={path}')
  config = zoo.config(name)
  params, state = deepmind.load(path or zoo.fetch(name), config, template(config))
  credit = f'{zoo.MODELS[name].credit}, {zoo.MODELS[name].licence}'
  return Source(config, params, state, *_native(), _packaged_names(config), credit)


def _huggingface(directory: Path) -> Source:
  config, architecture = huggingface_config.read_config(directory), huggingface_config.architecture_of(directory)
  params, state = huggingface.convert(torch_file.read(directory), config, _template(config, directory))
  return Source(
    config, params, state,
    functools.partial(huggingface_inputs.inputs_of, config, architecture),
    functools.partial(huggingface_inputs.logits_of, config, architecture),
    huggingface_config.class_names(directory))


def _run(directory: Path, task: str | None) -> Source:
  from perceiver_jax.runs.checkpoint import load_weights
  from perceiver_jax.runs.workdir import read_class_names

  config = _of_task(load_config(directory), task)
  _, params, state = load_weights(directory)
  weights.check_fits(params, state, _template(config, directory), str(directory))
  return Source(config, params, state, *_native(), read_class_names(directory) or _packaged_names(config))


def _ours(directory: Path, task: str | None) -> Source:
  loaded = weights.load(directory)
  loaded = loaded._replace(config=_of_task(loaded.config, task))
  weights.check_fits(loaded.params, loaded.state, _template(loaded.config, directory), str(directory))
  return Source(
    loaded.config, loaded.params, loaded.state, *_native(),
    tuple(loaded.metadata.get('class_names', '').splitlines()) or _packaged_names(loaded.config),
    loaded.metadata.get('licence', ''))


@contextlib.contextmanager
def _naming(directory: Path) -> Iterator[None]:
  """Names the directory in every error."""
  try:
    yield
  except RecursionError:
    raise UserError(f'{directory}: its config.json is damaged: it is nested too deeply') from None
  except UserError as error:
    if str(directory) in str(error):
      raise
    raise UserError(f'{directory}: {error}') from error


def _of_task(config: ConfigDict, task: str | None) -> ConfigDict:
  """Returns the config with the task that a person names, if one is named: a module may have moved."""
  return config if task is None else changed(config, {'task': task})


def _template(config: ConfigDict, directory: Path) -> tuple[Tree, Tree]:
  """Returns the `template` of a config that somebody else may have written."""
  check(config)
  counts = [max(value, 1) for key, value in flatten(config).items()
            if key.endswith(_DEPTHS) and type(value) is int]
  if math.prod(counts) > _MAX_LAYERS:       # which would be built one by one, for ever
    raise UserError(f'the config of {directory} describes a model of {math.prod(counts)} layers; at most {_MAX_LAYERS}')
  if sizes := [key for key, value in flatten(config).items()
               if key.startswith('data.') and key.endswith('_size') and type(value) is int and value > _MAX_SIZE]:
    raise UserError(f'the config of {directory} describes no model that can be built: {sizes[0]} is beyond {_MAX_SIZE}')
  try:
    return template(config)
  except (ArithmeticError, AssertionError, AttributeError, LookupError, MemoryError, TypeError, ValueError) as error:
    raise UserError(f'the config of {directory} describes no model that can be built: '
                    f'{" ".join(str(error).split()) or type(error).__name__:.300}') from error


def _packaged_names(config: ConfigDict) -> tuple[str, ...] | None:
  """Returns the names of the classes out of the package; reads no file that a foreign config names."""
  from perceiver_jax.data import labels

  return labels.class_names(config.data) if config.data.get('class_names') in labels.packaged() else None


def _native() -> tuple[Callable[..., Batch], Callable[..., Any]]:
  """The inputs are a batch already, and one output stands alone."""
  return dict, lambda outputs: next(iter(outputs.values())) if len(outputs) == 1 else outputs
