"""Runs a command: reads its command line, does its work, and answers with an exit code.

Exit codes: 0 done; 1 a mistake that its message says how to correct; 2 the same on the command line; 70 the run
diverged; 75 it was interrupted and saved, or another of its processes died: run it again; 130 it was interrupted with
nothing to save; 3 an error of ours, which keeps its traceback.
"""

from __future__ import annotations

import logging as std_logging
import os
import sys
import traceback
from collections.abc import Callable, Sequence

from absl import flags, logging
from ml_collections import ConfigDict

from perceiver_jax.runs.files import check_local
from perceiver_jax.types import NumericsError, UserError

TASK_HELP = 'The dotted module of your own task, which is imported: a config of a model may not choose what is run.'


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
    if not __debug__:                       # asserts, of Haiku, chex and ours, hold the program together
      raise UserError('python -O leaves out checks that this program needs: run it without -O and PYTHONOPTIMIZE')
    return work()
  except (Exception, KeyboardInterrupt) as error:
    return explain(error)


def explain(error: BaseException) -> int:
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


def check_all_read(arguments: Sequence[str]) -> None:
  """Raises UserError where something follows the name of the program: what parsing leaves is no flag."""
  if len(arguments) > 1:
    hint = f': did you mean --config={arguments[1]}?' if '.py' in arguments[1] else ''
    raise UserError(f'unexpected argument {arguments[1]!r}{hint}')


def source_and_dest(arguments: Sequence[str]) -> tuple[str, str]:
  """Returns the two paths that follow the name of the program. Raises UserError for other than two, or an address."""
  if len(arguments) != 3:
    raise UserError(f'SOURCE and DEST are needed; {len(arguments) - 1} arguments are given')
  _, source, dest = arguments
  check_local('SOURCE', source)
  check_local('DEST', dest)
  return source, dest


def show_text(text: str) -> int:
  """Prints it; returns the exit code 0."""
  try:
    print(text.rstrip(), flush=True)
  except BrokenPipeError:  # `| head` has seen enough; Python would complain again on exit
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
  return 0


def show_log() -> None:
  """Shows everybody's warnings, and what we have to say; Orbax alone would say a hundred things a save."""
  flags.FLAGS.mark_as_parsed()  # absl would complain of being used too early
  logging.use_absl_handler()
  logging.set_verbosity(logging.INFO)
  logging.get_absl_handler().addFilter(
    lambda record: record.levelno > std_logging.INFO or 'perceiver_jax' in record.pathname)


def set_xla_flags(config: ConfigDict) -> None:
  """Sets what XLA reads when JAX first meets a device; call it before anything of JAX is imported."""
  if config.deterministic:
    os.environ['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} --xla_gpu_deterministic_ops=true'.strip()


def unreadable_records() -> str:
  """Returns '2 (a.jpg, b.jpg)' for records that could not be read, or '' where all could."""
  from perceiver_jax.data.pipeline import unreadable

  names = unreadable()
  return f'{len(names)} ({", ".join(names[:5])}{" ..." if len(names) > 5 else ""})' if names else ''
