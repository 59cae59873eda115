"""The command `predict`: a trained model on a person's own files.

    python -m perceiver_jax.predict --model=NAME_or_DIR [--path=FILE] [--output=PICTURE.png] INPUT ...

Exit codes are those of `train`; see perceiver_jax/commands.py.
"""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Callable, Sequence

from absl import flags

from perceiver_jax.commands import answer, asks_for_help, show_text
from perceiver_jax.types import UserError


def predict(argv: Sequence[str] | None = None) -> int:
  """Predicts from INPUT: pictures; a text with [hidden words]; two frames; a clip and its WAV file.

  What the model says is printed; a picture of it goes to `--output`. Returns the exit code.
  """
  return answer(_read, argv)


def _read(argv: list[str]) -> Callable[[], int]:
  flag_values = flags.FlagValues()
  flags.DEFINE_string(
    'model', None, 'A released model (imagenet_fourier, imagenet_learned, imagenet_conv, masked_lm, optical_flow, '
    'video_autoencoding), or a directory: of Hugging Face, of a run, or of converted weights.', flag_values)
  flags.DEFINE_string('path', None, "Of a released model, the authors' file, if you have it.", flag_values)
  flags.DEFINE_string('output', None, 'Where a picture goes, .png; or the flow itself, .npy.', flag_values)
  if asks_for_help(argv):
    return functools.partial(show_text, f'{predict.__doc__}\n{flag_values.get_help()}')
  inputs = flag_values(argv)[1:]
  if not flag_values.model:
    raise UserError('--model is missing: which model? For example --model=imagenet_conv')
  if not inputs:
    raise UserError('nothing to predict from: name a file, or for a language model give a text with [hidden words]')
  return functools.partial(_predict, flag_values.model, flag_values.path, inputs, flag_values.output)


def _predict(model: str, path: str | None, inputs: Sequence[str], output: str | None) -> int:
  from perceiver_jax.inference.predictor import load

  predictor = load(model, path)
  presenter = importlib.import_module(f'perceiver_jax.present.{predictor.config.task}')
  return show_text(presenter.present(predictor, inputs, output))


if __name__ == '__main__':
  sys.exit(predict())
