"""The command `eval`: evaluates a run, or any trained model, on the data of its config.

    eval.py --workdir=DIR
    eval.py --model=NAME_or_DIR [--path=FILE]
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from absl import flags
from ml_collections import ConfigDict

from perceiver_jax.commands.answer import (
  answer,
  asks_for_help,
  check_all_read,
  explain,
  set_xla_flags,
  show_text,
  unreadable_records,
)
from perceiver_jax.commands.compilation_cache import keep_compiled
from perceiver_jax.commands.processes import define_processes, processes
from perceiver_jax.config.saved import load_config
from perceiver_jax.runs.files import check_local
from perceiver_jax.types import UserError

if TYPE_CHECKING:
  from perceiver_jax.inference.source import Source


def evaluate(argv: Sequence[str] | None = None) -> int:
  """Evaluates a run, `--workdir`, or any model, `--model`, on the data of its own config. Returns the exit code."""
  return answer(_read, argv)


def _read(argv: list[str]) -> Callable[[], int]:
  flag_values = flags.FlagValues()
  flags.DEFINE_string('workdir', None, 'The folder of a run.', flag_values)
  flags.DEFINE_enum('checkpoint', 'best', ['best', 'latest'], 'Which checkpoint of --workdir.', flag_values)
  flags.DEFINE_string(
    'model', None, 'In place of --workdir: a released model (imagenet_fourier, imagenet_learned, imagenet_conv; '
    'masked_lm, optical_flow and video_autoencoding have no data to be evaluated on yet), or a directory: of Hugging '
    'Face, of a run, or of converted weights.', flag_values)
  flags.DEFINE_string('path', None, "Of a released model, the authors' file, if you have it.", flag_values)
  flags.DEFINE_string(
    'split', None, 'What to evaluate on; by default config.eval.final_splits, so test for most.', flag_values)
  flags.DEFINE_string(
    'data_name', None, 'What kind of data, in place of config.data.name: images for a folder of them.', flag_values)
  flags.DEFINE_string('data_path', None, 'Where the data lies, in place of config.data.path.', flag_values)
  flags.DEFINE_integer(
    'batch_size', None, 'Examples at a time, over all devices, in place of config.eval.batch_size. The result does not '
    'depend on it, memory does.', flag_values=flag_values, lower_bound=1)
  define_processes(flag_values)
  if asks_for_help(argv):
    return functools.partial(show_text, f'{evaluate.__doc__}\n{flag_values.get_help()}')
  if any(argument.startswith(('--config', '-config', '--noconfig')) for argument in argv):
    raise UserError('eval takes no --config: it reads the config.json that the run keeps in --workdir')
  check_all_read(flag_values(argv))
  for name in ('workdir', 'model', 'path', 'data_path'):
    check_local(f'--{name}', flag_values[name].value)
  if flag_values.workdir and flag_values.model:
    raise UserError('--workdir and --model exclude each other: which of the two is to be evaluated?')
  which_process = processes(flag_values)
  with_workdir = ('checkpoint', *which_process)
  for flag, other in (('path', 'model'), *((flag, 'workdir') for flag in with_workdir)):
    if flag_values[flag].present and not flag_values[other].value:
      raise UserError(f'--{flag} goes with --{other} alone')
  settings = {
    'data.name': flag_values.data_name, 'data.path': flag_values.data_path, 'eval.batch_size': flag_values.batch_size}
  if flag_values.model:
    return functools.partial(_evaluate_model, flag_values.model, flag_values.path, flag_values.split, settings)
  if not flag_values.workdir:
    raise UserError('--workdir or --model is missing: what is to be evaluated? For example --workdir=runs/digits')
  return functools.partial(
    _evaluate_workdir, flag_values.workdir, flag_values.checkpoint, flag_values.split, settings, which_process)


def _evaluate_workdir(
  workdir: str, checkpoint: str, split: str | None, settings: dict[str, Any], processes: dict[str, Any],
) -> int:
  keep_compiled()
  config = _with_settings(load_config(workdir), settings)
  set_xla_flags(config)
  from perceiver_jax.processes.together import together
  from perceiver_jax.tasks import make_task
  from perceiver_jax.training.evaluate import evaluate_workdir

  task = make_task(config)

  def work() -> int:
    return _show_figures(evaluate_workdir(config, workdir, task, splits=_splits(config, split), checkpoint=checkpoint))

  return together(work, processes, config.peer_timeout_seconds, explain)


def _evaluate_model(model: str, path: str | None, split: str | None, settings: dict[str, Any]) -> int:
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


def _evaluate_source(source: Source, split: str | None, settings: dict[str, Any]) -> int:
  config = _with_settings(source.config, settings)
  from perceiver_jax.tasks import make_task
  from perceiver_jax.training.evaluate import evaluate_weights

  task = make_task(config)

  announce = functools.partial(print, 'Compiling the model, which takes a while ...', file=sys.stderr)
  return _show_figures(
    evaluate_weights(config, source.params, source.state, task, splits=_splits(config, split), announce=announce))


def _splits(config: ConfigDict, split: str | None) -> tuple[str, ...]:
  return (split,) if split else tuple(config.eval.final_splits)


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
  from perceiver_jax.processes import parallel

  for name, value in values.items() if parallel.process_id() == 0 else ():
    print(f'{name}: {value if isinstance(value, int) else format(value, ".6g")}')
  if names := unreadable_records():
    raise UserError(f'these figures leave out what could not be read: {names}')
  return 0
