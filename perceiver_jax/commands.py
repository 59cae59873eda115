"""The commands `train` and `eval`: read the command line, introduce the task to the loop, and answer with an exit code.

    train.py --config=configs/x.py[:variant,...] --workdir=DIR [--config.key=value ...]
    eval.py --workdir=DIR
    eval.py --model=NAME_or_DIR [--path=FILE]

On several machines the same command is started on each: see `training.parallel.join`.

Exit codes: 0 done; 1 a mistake that its message says how to mend; 2 the same on the command line; 70 the run diverged;
75 it was interrupted and saved, or another of its processes died, run it again; 130 it was interrupted with nothing to
save; 3 an error of ours, which keeps its traceback.
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
from typing import TYPE_CHECKING, Any

from absl import flags, logging
from ml_collections import ConfigDict

# JAX and Haiku are imported once the command line is known to be right: a typo is answered at once.
from perceiver_jax import config_file, run_config
from perceiver_jax.compilation_cache import keep_compiled
from perceiver_jax.types import NumericsError, Task, UserError

if TYPE_CHECKING:
  from perceiver_jax.inference.source import Source

_CONFIG_HELP = (
  'The experiment: a config file, and after a colon the words of its variant (configs/digits.py:perceiver,debug). '
  'Any of its keys is set by --config.key=value.'
)


def train(argv: Sequence[str] | None = None) -> int:
  """Trains what `--config` describes and writes everything to `--workdir`. Returns the exit code."""
  return answer(_read_train, argv)


def evaluate(argv: Sequence[str] | None = None) -> int:
  """Evaluates a run, `--workdir`, or any model, `--model`, on the data of its own config. Returns the exit code."""
  return answer(_read_evaluate, argv)


def answer(read: Callable[[list[str]], Callable[[], int]], argv: Sequence[str] | None) -> int:
  """Runs a command and turns what it raises into a message on stderr. Returns the exit code.

  Args:
    read: (argv) -> the work, a function that returns the exit code; what it raises is a mistake on the command line.
    argv: the name of the program and its arguments; None for those of this process.
  """
  try:
    try:
      work = read(list(sys.argv if argv is None else argv))
    except (UserError, flags.Error) as error:
      return _refuse(error, 2)
    except RecursionError:  # absl, over a flag of a thousand letters that is none of its
      return _refuse(UserError('one of the arguments is no flag, and very long'), 2)
    return work()
  except (Exception, KeyboardInterrupt) as error:
    return _explain(error)


def _explain(error: BaseException) -> int:
  """Says on stderr what went wrong, and returns the exit code for it."""
  match error:
    case UserError():
      return _refuse(error, 1)
    case NumericsError():
      return _refuse(error, 70)
    case KeyboardInterrupt():
      return 130
    case _:
      # Python's own exit code would be 1, which says that the user can mend it.
      traceback.print_exception(error)
      return 3


def _refuse(error: BaseException, exit_code: int) -> int:
  print(f'error: {error}', file=sys.stderr, flush=True)
  return exit_code


def _define_processes(flag_values: flags.FlagValues) -> None:
  flags.DEFINE_string(
    'coordinator_address', None, 'HOST:PORT of process 0 of several, where no cluster says it.', flag_values)
  flags.DEFINE_integer(
    'num_processes', None, 'How many processes train together; 1 for this one alone, whatever cluster it is in.',
    flag_values=flag_values, lower_bound=1)
  flags.DEFINE_integer(
    'process_id', None, 'Which of them this is, from 0.', flag_values=flag_values, lower_bound=0)


def _processes(flag_values: flags.FlagValues) -> dict[str, Any]:
  """What the command line says of them; None for what it leaves to be found out."""
  return {name: flag_values[name].value for name in ('coordinator_address', 'num_processes', 'process_id')}


def _read_train(argv: list[str]) -> Callable[[], int]:
  flag_values = flags.FlagValues()
  flags.DEFINE_string('workdir', None, 'The folder of the run; made where missing, resumed where not.', flag_values)
  _define_processes(flag_values)
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
  config = config_file.load(path)
  check_all_read(config_file.override(config, argv, flag_values))
  if flag_values.print_config:
    return functools.partial(show_text, run_config.to_json(config))
  if not flag_values.workdir:
    raise UserError('--workdir is missing: the folder that holds the run, for example --workdir=runs/digits')
  return functools.partial(_train, config, flag_values.workdir, flag_values.profile, _processes(flag_values))


def _read_evaluate(argv: list[str]) -> Callable[[], int]:
  flag_values = flags.FlagValues()
  flags.DEFINE_string('workdir', None, 'The folder of a run.', flag_values)
  flags.DEFINE_enum('checkpoint', 'best', ['best', 'latest'], 'Which checkpoint of --workdir.', flag_values)
  flags.DEFINE_string(
    'model', None, 'In place of --workdir: a released model (imagenet_fourier, imagenet_learned, imagenet_conv), or a '
    'directory: of Hugging Face, of a run, or of converted weights.', flag_values)
  flags.DEFINE_string('path', None, "Of a released model, the authors' file, if you have it.", flag_values)
  flags.DEFINE_enum('split', 'test', ['train', 'validation', 'test'], 'What to evaluate on.', flag_values)
  flags.DEFINE_string(
    'data_name', None, 'What kind of data, in place of config.data.name: images for a folder of them.', flag_values)
  flags.DEFINE_string('data_path', None, 'Where the data lies, in place of config.data.path.', flag_values)
  flags.DEFINE_integer(
    'batch_size', None, 'Examples at a time, over all devices, in place of config.eval.batch_size. The result does not '
    'depend on it, memory does.', flag_values=flag_values, lower_bound=1)
  _define_processes(flag_values)
  if asks_for_help(argv):
    return functools.partial(show_text, f'{evaluate.__doc__}\n{flag_values.get_help()}')
  if any(argument.startswith(('--config', '-config', '--noconfig')) for argument in argv):
    raise UserError('eval takes no --config: it reads the config.json that the run keeps in --workdir')
  check_all_read(flag_values(argv))
  if flag_values.workdir and flag_values.model:
    raise UserError('--workdir and --model exclude each other: which of the two is to be evaluated?')
  with_workdir = ('checkpoint', *_processes(flag_values))
  for flag, other in (('path', 'model'), *((flag, 'workdir') for flag in with_workdir)):
    if flag_values[flag].present and not flag_values[other].value:
      raise UserError(f'--{flag} goes with --{other} alone')
  settings = {
    'data.name': flag_values.data_name, 'data.path': flag_values.data_path, 'eval.batch_size': flag_values.batch_size}
  if flag_values.model:
    return functools.partial(_evaluate_model, flag_values.model, flag_values.path, flag_values.split, settings)
  if not flag_values.workdir:
    raise UserError('--workdir or --model is missing: what is to be evaluated? For example --workdir=runs/digits')
  processes = _processes(flag_values)
  return functools.partial(
    _evaluate_workdir, flag_values.workdir, flag_values.checkpoint, flag_values.split, settings, processes)


def asks_for_help(argv: Sequence[str]) -> bool:
  """Whether the command line wants the list of flags and nothing else."""
  return not {'--help', '-help', '-h'}.isdisjoint(argv)


def take_config(argv: Sequence[str]) -> tuple[str | None, list[str]]:
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
    check_all_read(flag_values(argv))
  except flags.UnrecognizedFlagError as error:
    if not error.flagname.startswith(('config.', 'noconfig.')):
      raise


def check_all_read(arguments: Sequence[str]) -> None:
  """Raises UserError where something follows the name of the program: what parsing leaves is no flag."""
  if len(arguments) > 1:
    hint = f': did you mean --config={arguments[1]}?' if '.py' in arguments[1] else ''
    raise UserError(f'unexpected argument {arguments[1]!r}{hint}')


def show_text(text: str) -> int:
  """Prints it; returns the exit code 0."""
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


def _train(config: ConfigDict, workdir: str, profile_steps: int, processes: dict[str, Any]) -> int:
  _show_log()
  keep_compiled()
  run_config.check_ranges(config)  # the run asks again, but a task may fail at them in its own way
  task = make_task(config)
  from perceiver_jax.training import loop
  from perceiver_jax.training.together import together

  train_it = functools.partial(loop.train, config, workdir, task, profile_steps=profile_steps)
  exit_code = together(train_it, processes, config.peer_timeout_seconds, _explain)
  if names := _unreadable():
    print(f'Records that could not be read, and counted for nothing: {names}', file=sys.stderr)
  return exit_code


def _evaluate_workdir(
  workdir: str, checkpoint: str, split: str, settings: dict[str, Any], processes: dict[str, Any],
) -> int:
  keep_compiled()
  config = _with_settings(run_config.load(workdir), settings)
  task = make_task(config)
  from perceiver_jax.training.evaluate import evaluate_workdir
  from perceiver_jax.training.together import together

  def work() -> int:
    return _show_figures(evaluate_workdir(config, workdir, task, split=split, checkpoint=checkpoint))

  return together(work, processes, config.peer_timeout_seconds, _explain)


def _evaluate_model(model: str, path: str | None, split: str, settings: dict[str, Any]) -> int:
  keep_compiled()
  from perceiver_jax.inference.source import open_source

  source = open_source(model, path)
  if source.credit:
    print(f'{model}: weights by {source.credit}', file=sys.stderr)
  try:
    return _evaluate_source(source, split, settings)
  except UserError as error:
    if 'config.data.' not in str(error):
      raise
    # No --config is taken here, and the number of classes is the model's, whatever the data has.
    raise UserError(f'{error}\nWith eval.py --model: --data_path=... says where the data of this model lies, and '
                    '--data_name=images that they are a folder of pictures') from error


def _evaluate_source(source: Source, split: str, settings: dict[str, Any]) -> int:
  config = _with_settings(source.config, settings)
  task = make_task(config)
  from perceiver_jax.training.evaluate import evaluate_weights

  announce = functools.partial(print, 'Compiling the model, which takes a while ...', file=sys.stderr)
  return _show_figures(
    evaluate_weights(config, source.params, source.state, task, split=split, announce=announce))


def _with_settings(config: ConfigDict, settings: dict[str, Any]) -> ConfigDict:
  """The config with what the command line gives in place of its own values, by dotted key; None gives nothing."""
  for key, value in settings.items():
    if value is not None:
      section, _, name = key.rpartition('.')
      if name not in config[section]:
        raise UserError(f'the config of this model has no {key}: there is nothing to put {value!r} in place of')
      config[section][name] = value
  return config


def _show_figures(values: dict[str, float]) -> int:
  from perceiver_jax.training import parallel

  for name, value in values.items() if parallel.process_id() == 0 else ():
    print(f'{name}: {value if isinstance(value, int) else format(value, ".6g")}')
  if names := _unreadable():
    raise UserError(f'these figures leave out what could not be read: {names}')
  return 0


def _unreadable() -> str:
  """'2 (a.jpg, b.jpg)', or '' where everything could be read."""
  from perceiver_jax.data.pipeline import unreadable

  names = unreadable()
  return f'{len(names)} ({", ".join(names[:5])}{" ..." if len(names) > 5 else ""})' if names else ''


def make_task(config: ConfigDict) -> Task:
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
