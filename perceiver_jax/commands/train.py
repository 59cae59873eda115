"""The command `train`: trains an experiment in the folder of a run.

    train.py --config=configs/x.py[:variant,...] --workdir=DIR [--config.key=value ...]

On several machines the same command is started on each: see `processes.parallel.join`.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from absl import flags
from ml_collections import ConfigDict

# JAX and Haiku are imported once the command line is known to be right: a typo is answered at once.
from perceiver_jax.commands.answer import (
  answer,
  asks_for_help,
  check_all_read,
  explain,
  set_xla_flags,
  show_log,
  show_text,
  take_config,
  unreadable_records,
)
from perceiver_jax.commands.compilation_cache import keep_compiled
from perceiver_jax.commands.processes import define_processes, processes
from perceiver_jax.config import overrides
from perceiver_jax.config.saved import to_json
from perceiver_jax.config.values import check
from perceiver_jax.runs.files import check_local
from perceiver_jax.types import History, UserError

_CONFIG_HELP = (
  'The experiment: a config file, and after a colon the words of its variant (configs/digits.py:perceiver,debug). '
  'Any of its keys is set by --config.key=value.'
)


def train(argv: Sequence[str] | None = None) -> int:
  """Trains what `--config` describes and writes everything to `--workdir`. Returns the exit code."""
  return answer(_read, argv)


def _read(argv: list[str]) -> Callable[[], int]:
  flag_values = flags.FlagValues()
  flags.DEFINE_string('workdir', None, 'The folder of the run; made where missing, resumed where not.', flag_values)
  define_processes(flag_values)
  flags.DEFINE_boolean('print_config', False, 'Prints the config as the run would save it, and stops.', flag_values)
  flags.DEFINE_integer(
    'profile', 0, 'How many steps to trace into WORKDIR/profile; 0 traces none.', flag_values=flag_values, lower_bound=0
  )
  path, argv = take_config(flag_values.read_flags_from_files(argv))
  if not path or asks_for_help(argv):
    flags.DEFINE_string('config', None, _CONFIG_HELP, flag_values)
    if asks_for_help(argv):
      return functools.partial(show_text, f'{train.__doc__}\n{flag_values.get_help()}')
    _check_other_flags(argv, flag_values)
    raise UserError('--config is missing: which experiment? For example --config=configs/digits.py')
  config = overrides.load(path)
  check_all_read(overrides.override(config, argv, flag_values))
  if flag_values.print_config:
    return functools.partial(show_text, to_json(config))
  if not flag_values.workdir:
    raise UserError('--workdir is missing: the folder that holds the run, for example --workdir=runs/digits')
  check_local('--workdir', flag_values.workdir)
  check(config)
  _check_apart(flag_values.workdir, config.get('data', {}).get('path'))
  return functools.partial(_train, config, flag_values.workdir, flag_values.profile, processes(flag_values))


def _check_apart(workdir: str, data: str | None) -> None:
  """Raises UserError for a run that would be written among its own data."""
  if data and os.path.isdir(data) and os.path.realpath(workdir) == os.path.realpath(data):
    raise UserError(f'--workdir={workdir} holds the data; give the run a folder of its own, for example '
                    f'--workdir=runs/{os.path.basename(os.path.realpath(data))}')


def _check_other_flags(argv: Sequence[str], flag_values: flags.FlagValues) -> None:
  """Checks the other flags where --config is missing: it may be misspelt."""
  try:
    check_all_read(flag_values(argv))
  except flags.UnrecognizedFlagError as error:
    if not error.flagname.startswith(('config.', 'noconfig.')):
      raise


def _train(config: ConfigDict, workdir: str, profile_steps: int, processes: dict[str, Any]) -> int:
  show_log()
  keep_compiled()
  check(config)
  set_xla_flags(config)
  from perceiver_jax.processes.together import together
  from perceiver_jax.tasks import make_task
  from perceiver_jax.training import loop

  task = make_task(config)
  task = task._replace(draw=task.draw or _draw_curves)
  train_it = functools.partial(loop.train, config, workdir, task, profile_steps=profile_steps)
  exit_code = together(train_it, processes, config.peer_timeout_seconds, explain)
  if names := unreadable_records():
    print(f'Records that could not be read, and were left out: {names}', file=sys.stderr)
  return exit_code


def _draw_curves(predict: Callable[..., Any], history: History, path: str) -> None:
  """Draws the curves of a run whose task draws nothing itself."""
  from perceiver_jax import visualize

  visualize.curves_picture(path, history)
