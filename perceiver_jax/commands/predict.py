"""The command `predict`: a trained model on a person's own files.

    python -m perceiver_jax predict --model=NAME_or_DIR [--path=FILE] [--output=PICTURE.png] INPUT ...

Exit codes are those of `train`; see commands/answer.py.
"""

from __future__ import annotations

import functools
import io
import os
import sys
from collections.abc import Callable, Sequence

from absl import flags

from perceiver_jax.commands.answer import TASK_HELP, answer, asks_for_help, show_text
from perceiver_jax.commands.compilation_cache import keep_compiled
from perceiver_jax.runs.files import check_local
from perceiver_jax.types import UserError


def predict(argv: Sequence[str] | None = None) -> int:
  """Predicts from INPUT: pictures; a text with [hidden words]; two frames; a clip and its WAV file.

  What the model says is printed; then a picture of it goes to `--output`. Returns the exit code.
  """
  return answer(_read, argv)


def _read(argv: list[str]) -> Callable[[], int]:
  flag_values = flags.FlagValues()
  flags.DEFINE_string(
    'model', None, 'A released model (imagenet_fourier, imagenet_learned, imagenet_conv, masked_lm, optical_flow, '
    'video_autoencoding), or a directory: of Hugging Face, of a run, or of converted weights.', flag_values)
  flags.DEFINE_string('path', None, "Of a released model, the authors' file, if you have it.", flag_values)
  flags.DEFINE_string('task', None, TASK_HELP, flag_values)
  flags.DEFINE_string(
    'output', None, 'Where a picture goes, .png; or the flow itself, .npy; or the outputs of your task, .npz.',
    flag_values)
  if asks_for_help(argv):
    return functools.partial(show_text, f'{predict.__doc__}\n{flag_values.get_help()}')
  inputs = flag_values(argv)[1:]
  if not flag_values.model:
    raise UserError('--model is missing: which model? For example --model=imagenet_conv')
  if not inputs:
    raise UserError('nothing to predict from: name a file, or for a language model give a text with [hidden words]')
  for name in ('model', 'path', 'output'):
    check_local(f'--{name}', flag_values[name].value)
  if flag_values.output is not None:
    _check_output(flag_values.output, [*inputs, flag_values.path or ''])
  return functools.partial(_predict, flag_values.model, flag_values.path, inputs, flag_values.output, flag_values.task)


def _check_output(output: str, others: Sequence[str]) -> None:
  """Raises UserError for what cannot be written, or is to be read: before anything is waited for."""
  folder = os.path.dirname(output) or '.'
  if os.path.isdir(output):
    raise UserError(f'--output={output} is a directory; name a file in it, ending in .png')
  if not output.endswith(('.png', '.npy', '.npz')):
    raise UserError(f'--output={output} ends neither in .png, a picture, nor in .npy or .npz, arrays')
  if not os.path.isdir(folder):
    raise UserError(f'--output={output}: there is no directory {folder}; make it first')
  if not os.access(folder, os.W_OK | os.X_OK) or (os.path.exists(output) and not os.access(output, os.W_OK)):
    raise UserError(f'--output={output} cannot be written: permission denied')
  for path in others:
    if os.path.exists(output) and os.path.exists(path) and os.path.samefile(output, path):
      raise UserError(f'--output={output} is the file {path}, which is to be read; name another')


def _predict(model: str, path: str | None, inputs: Sequence[str], output: str | None, task: str | None) -> int:
  keep_compiled()
  import jax

  from perceiver_jax.inference.predictor import load, task_module

  if isinstance(sys.stdout, io.TextIOWrapper):  # an answer that the terminal cannot show is better than none
    sys.stdout.reconfigure(errors='backslashreplace')
  predictor = load(model, path, task=task)
  presenter = task_module(predictor.config.task)
  if output is not None and not output.endswith(presenter.SUFFIXES):
    possible = f'end it in {" or ".join(presenter.SUFFIXES)}' if presenter.SUFFIXES else 'leave it out'
    raise UserError(f'--output={output} is not what a model of {predictor.config.task} can write; {possible}')
  print(
    f'{model}: {predictor.num_parameters:,} parameters on {jax.devices()[0].device_kind}; the first answer takes '
    'longer, as the model is compiled', file=sys.stderr, flush=True)
  for text in presenter.present(predictor, inputs, output):
    show_text(text)
  if output is not None:
    print(f'written to {output}', file=sys.stderr)
  return 0

