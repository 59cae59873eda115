"""The command `convert`: weights of the authors, of Hugging Face or of a run, into a directory that runs nothing.

    python -m perceiver_jax convert SOURCE DEST [--model=NAME] [--to=perceiver_jax|huggingface]

Exit codes are those of `train`; see commands/answer.py.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path

from absl import flags

from perceiver_jax.commands.answer import TASK_HELP, answer, asks_for_help, show_text, source_and_dest
from perceiver_jax.types import UserError


def convert(argv: Sequence[str] | None = None) -> int:
  """Converts SOURCE, a directory of Hugging Face or of a run, or with `--model` a file of the authors', to DEST.

  DEST becomes a directory that `--model`, `--config.init_from` and `perceiver_jax.load` read; or, with
  `--to=huggingface`, one that `from_pretrained` reads. Returns the exit code.
  """
  return answer(_read, argv)


def _read(argv: list[str]) -> Callable[[], int]:
  flag_values = flags.FlagValues()
  flags.DEFINE_string('model', None, "Which released model SOURCE, the authors' file, holds.", flag_values)
  flags.DEFINE_enum('to', 'perceiver_jax', ['perceiver_jax', 'huggingface'], 'The format of DEST.', flag_values)
  flags.DEFINE_string('task', None, TASK_HELP, flag_values)
  if asks_for_help(argv):
    return functools.partial(show_text, f'{convert.__doc__}\n{flag_values.get_help()}')
  source, dest = source_and_dest(flag_values(argv))
  return functools.partial(_convert, source, dest, flag_values.model, flag_values.to, flag_values.task)


def _convert(source_path: str, dest: str, model: str | None, to: str, task: str | None) -> int:
  from perceiver_jax.inference.source import open_source
  from perceiver_jax.interop import huggingface
  from perceiver_jax.runs import weights

  if model is None and Path(source_path).is_file():
    raise UserError(f'{source_path} is a file: which released model does it hold? For example --model=imagenet_conv')
  if model is not None and Path(source_path).is_dir():
    raise UserError(f'{source_path} is a directory, which says itself what model it holds: leave out --model')
  source = open_source(model or source_path, source_path if model else None, task)
  if to == 'huggingface':
    huggingface.save(dest, source.config, source.params, source.state, class_names=source.class_names or ())
  else:
    weights.save(
      dest, source.config, source.params, source.state, source=model or Path(source_path).name, licence=source.credit,
      class_names=source.class_names or ())
  of_task = f' --task={source.config.task}' if '.' in source.config.task else ''
  return show_text(f'{dest} holds the model; try: python -m perceiver_jax predict --model={dest}{of_task} INPUT')

