"""One experiment a file: `make(config) -> Task`. `config.task = 'x'` is `tasks/x.py`, 'mytasks.x' a module of yours."""

from __future__ import annotations

import importlib
import pkgutil
import sys

from ml_collections import ConfigDict

from perceiver_jax.config.values import nearest
from perceiver_jax.types import Task, UserError


def make_task(config: ConfigDict, *, may_import: bool = True) -> Task:
  """Makes the task that a config names.

  Args:
    config: `config.task` is the name of a file in this folder, or the dotted name of a module of the user's.
    may_import: False for a config that somebody else may have written: it must not choose what code is run, so a
      module of the user's serves only if it has been imported already.

  Raises:
    UserError: there is no such task, or it refuses the config.
  """
  name = config.get('task')
  if name in task_names():
    return importlib.import_module(f'perceiver_jax.tasks.{name}').make(config)
  if not isinstance(name, str) or '.' not in name:
    raise UserError(
      f'there is no task {name!r}. Did you mean {nearest(str(name), task_names())!r}? '
      f'perceiver_jax/tasks has: {", ".join(task_names())}; a module of yours is named with its package, mytasks.rings')
  if not may_import and name not in sys.modules:
    raise UserError(
      f'the config names the task {name}, a module that is not imported here. If you trust it, import it first, or say '
      f'so: load(..., task={name!r}), --task={name}')
  return import_task(name).make(config)


def import_task(name: str):
  """Imports the user's module of that dotted name. Raises UserError where there is none, or it makes no task."""
  if '' not in sys.path:
    sys.path.insert(0, '')  # as `python -m` does: a module beside the person who asks
  try:
    module = importlib.import_module(name)
  except ModuleNotFoundError as error:
    if error.name and name.startswith(error.name):
      raise UserError(f'there is no module {name} to be the task: is it in this folder, or installed?') from error
    raise
  if not callable(getattr(module, 'make', None)):
    raise UserError(f'{name} makes no task: it needs a function make(config) that returns a perceiver_jax.types.Task')
  return module


def task_names() -> list[str]:
  """Returns the names of the tasks in this folder."""
  return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name != 'assembly')
