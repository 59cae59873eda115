"""The commands `train` and `eval`: read the command line, introduce the task to the loop, and answer with an exit code.

    train.py --config=configs/x.py[:variant,...] --workdir=DIR [--config.key=value ...]
    eval.py --workdir=DIR

Exit codes: 0 done; 1 a mistake that its message says how to mend; 2 the same on the command line; 70 the run diverged;
75 it was interrupted and saved, run it again; 130 it was interrupted with nothing to save; 3 an error of ours, which
keeps its traceback.
"""

from __future__ import annotations

import functools
import importlib
import logging as std_logging
import os
import pkgutil
import sys
import traceback
from collections.abc import Callable, Sequence

from absl import flags, logging
from ml_collections import ConfigDict

# JAX and Haiku are imported once the command line is known to be right: a typo is answered at once.
from perceiver_jax import config_file, run_config
from perceiver_jax.types import NumericsError, Task, UserError

_CONFIG_HELP = (
  'The experiment: a config file, and after a colon the words of its variant (configs/digits.py:perceiver,debug). '
  'Any of its keys is set by --config.key=value.'
)


def train(argv: Sequence[str] | None = None) -> int:
  """Trains what `--config` describes and writes everything to `--workdir`. Returns the exit code."""
  return _answer(_read_train, argv)


def evaluate(argv: Sequence[str] | None = None) -> int:
  """Evaluates a checkpoint of `--workdir` under that run's own config. Returns the exit code."""
  return _answer(_read_evaluate, argv)


def _answer(read: Callable[[list[str]], Callable[[], int]], argv: Sequence[str] | None) -> int:
  try:
    try:
      work = read(list(sys.argv if argv is None else argv))
    except (UserError, flags.Error) as error:
      return _refuse(error, 2)
    return work()
  except UserError as error:
    return _refuse(error, 1)
  except NumericsError as error:
    return _refuse(error, 70)
  except KeyboardInterrupt:
    return 130
  except Exception:
    # Python's own exit code would be 1, which says that the user can mend it.
    traceback.print_exc()
    return 3


def _refuse(error: Exception, exit_code: int) -> int:
  print(f'error: {error}', file=sys.stderr)
  return exit_code


def _read_train(argv: list[str]) -> Callable[[], int]:
  flag_values = flags.FlagValues()
  flags.DEFINE_string('workdir', None, 'The folder of the run; made where missing, resumed where not.', flag_values)
  flags.DEFINE_boolean('print_config', False, 'Prints the config as the run would save it, and stops.', flag_values)
  flags.DEFINE_integer(
    'profile', 0, 'How many steps to trace into WORKDIR/profile; 0 traces none.', flag_values=flag_values, lower_bound=0
  )
  path, argv = _take_config(flag_values.read_flags_from_files(argv))
  if not path or _asks_for_help(argv):
    flags.DEFINE_string('config', None, _CONFIG_HELP, flag_values)
    if _asks_for_help(argv):
      return functools.partial(_show, f'{train.__doc__}\n{flag_values.get_help()}')
    _check_other_flags(argv, flag_values)
    raise UserError('--config is missing: which experiment? For example --config=configs/digits.py')
  config = config_file.load(path)
  _check_all_read(config_file.override(config, argv, flag_values))
  if flag_values.print_config:
    return functools.partial(_show, run_config.to_json(config))
  _check_workdir(flag_values.workdir)
  return functools.partial(_train, config, flag_values.workdir, flag_values.profile)


def _read_evaluate(argv: list[str]) -> Callable[[], int]:
  flag_values = flags.FlagValues()
  flags.DEFINE_string('workdir', None, 'The folder of the run.', flag_values)
  flags.DEFINE_enum('split', 'test', ['train', 'validation', 'test'], 'What to evaluate on.', flag_values)
  flags.DEFINE_enum('checkpoint', 'best', ['best', 'latest'], 'Which checkpoint.', flag_values)
  if _asks_for_help(argv):
    return functools.partial(_show, f'{evaluate.__doc__}\n{flag_values.get_help()}')
  if any(argument.startswith(('--config', '-config', '--noconfig')) for argument in argv):
    raise UserError('eval takes no --config: it reads the config.json that the run keeps in --workdir')
  _check_all_read(flag_values(argv))
  _check_workdir(flag_values.workdir)
  return functools.partial(_evaluate, flag_values.workdir, flag_values.split, flag_values.checkpoint)


def _asks_for_help(argv: Sequence[str]) -> bool:
  return not {'--help', '-help', '-h'}.isdisjoint(argv)


def _take_config(argv: Sequence[str]) -> tuple[str | None, list[str]]:
  """Splits `--config=VALUE`, or `--config VALUE`, from the rest; of several the last counts, as for any flag."""
  value, others = None, []
  arguments = iter(argv)
  for argument in arguments:
    flag, equals, given = argument.partition('=')
    if flag in ('--config', '-config'):
      value = given if equals else next(arguments, None)
    else:
      others.append(argument)
  return value, others


def _check_other_flags(argv: Sequence[str], flag_values: flags.FlagValues) -> None:
  """Where --config is missing: what is there instead may be --config misspelt."""
  try:
    _check_all_read(flag_values(argv))
  except flags.UnrecognizedFlagError as error:
    if not error.flagname.startswith(('config.', 'noconfig.')):
      raise


def _check_all_read(arguments: Sequence[str]) -> None:
  if len(arguments) > 1:
    hint = f': did you mean --config={arguments[1]}?' if '.py' in arguments[1] else ''
    raise UserError(f'unexpected argument {arguments[1]!r}{hint}')


def _check_workdir(workdir: str | None) -> None:
  if not workdir:
    raise UserError('--workdir is missing: the folder that holds the run, for example --workdir=runs/digits')


def _show(text: str) -> int:
  try:
    print(text.rstrip(), flush=True)
  except BrokenPipeError:  # `| head` has seen enough; Python would complain again on exit
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
  return 0


def _show_log() -> None:
  """Shows everybody's warnings, and what we have to say; Orbax alone would say a hundred things a save."""
  flags.FLAGS.mark_as_parsed()  # absl would complain of being used too early
  logging.use_absl_handler()
  logging.set_verbosity(logging.INFO)
  logging.get_absl_handler().addFilter(
    lambda record: record.levelno > std_logging.INFO or 'perceiver_jax' in record.pathname)


def _train(config: ConfigDict, workdir: str, profile_steps: int) -> int:
  _show_log()
  run_config.check_ranges(config)  # the run asks again, but a task may fail at them in its own way
  task = _make_task(config)
  from perceiver_jax.training import loop

  return loop.train(config, workdir, task, profile_steps=profile_steps)


def _evaluate(workdir: str, split: str, checkpoint: str) -> int:
  config = run_config.load(workdir)
  task = _make_task(config)
  from perceiver_jax.training.evaluate import evaluate_workdir

  values = evaluate_workdir(config, workdir, task, split=split, checkpoint=checkpoint)
  for name, value in values.items():
    print(f'{name}: {value:.6g}')
  return 0


def _make_task(config: ConfigDict) -> Task:
  """`tasks/<config.task>.make(config)`. Raises UserError where there is no such file."""
  if config.deterministic:
    # Read when JAX first meets a device, so before anything of it is imported.
    os.environ['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} --xla_gpu_deterministic_ops=true'.strip()
  tasks = importlib.import_module('perceiver_jax.tasks')
  names = sorted(module.name for module in pkgutil.iter_modules(tasks.__path__))
  if config.task not in names:
    raise UserError(
      f'there is no task {config.task!r}. Did you mean {config_file.nearest(config.task, names)!r}?\n'
      f'perceiver_jax/tasks has: {", ".join(names)}'
    )
  return importlib.import_module(f'perceiver_jax.tasks.{config.task}').make(config)
