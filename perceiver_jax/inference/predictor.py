"""Loads a trained model, wherever it comes from, ready to answer."""

from __future__ import annotations

import functools
import importlib
import inspect
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from perceiver_jax.inference import model as models
from perceiver_jax.inference.source import open_source
from perceiver_jax.runs.files import check_local
from perceiver_jax.tasks import make_task
from perceiver_jax.types import UserError


class Predictor(NamedTuple):
  """A trained model.

  `predict` takes what a person has, one at a time: inference/<config.task>.py says what, and what it returns.
  `logits` takes a batch in the layout of the model's source: for Hugging Face's directories what the PyTorch forward
  takes, by name (`pixel_values=`, `inputs=`, `attention_mask=`), for all others the batch of the task, by name
  (`image=`, `tokens=` and `valid=`, `frames=`; uint8, or float that is normalised already). It returns logits in that
  layout, as NumPy arrays.
  `run` takes a batch of the task and returns its outputs, with `capture=True` attention maps and latents among them.
  In a batch may be whatever `np.asarray` takes, of one example at least.
  """

  config: ConfigDict
  params: Any
  state: Any
  predict: Callable[..., Any]
  logits: Callable[..., Any]
  run: Callable[..., dict[str, Any]]
  credit: str  # whose weights they are, and their licence; '' for your own

  @property
  def num_parameters(self) -> int:
    """Returns the number of trained numbers."""
    return sum(leaf.size for leaf in jax.tree.leaves(self.params))

  def __repr__(self) -> str:
    """A line; the arrays would fill screens."""
    credit = f', weights by {self.credit}' if self.credit else ''
    return f'Predictor({self.config.task}, {self.num_parameters:,} parameters{credit})'


def load(name: str | Path, path: str | Path | None = None, *, task: str | None = None) -> Predictor:
  """A released model, or one from a directory.

  Args:
    name: one of the released models, imagenet_fourier, imagenet_learned, imagenet_conv, masked_lm, optical_flow and
      video_autoencoding; or a directory: of Hugging Face's `save_pretrained`, of a run of ours (its best checkpoint),
      or of converted weights.
    path: of a released model, the authors' file; without it, it is downloaded once.
    task: the dotted module of your own task, which is imported: a directory's config alone may not choose what is run.

  Raises:
    UserError: no such model, no name or path at all, a file that does not fit it, or no connection and no file.

  Says on stderr whose weights they are, where these have a licence.
  """
  _check_path('the name of a model', name)
  check_local('the model', name)
  check_local('path', path)
  if path is not None:
    _check_path('path', path)
  source = open_source(name, path, task)
  if source.credit:
    print(f'{name}: weights by {source.credit}', file=sys.stderr)
  model = models.build(source.config, source.params, source.state)
  module = task_module(source.config.task)
  predict = functools.partial(module.predict, model)
  if 'class_names' in inspect.signature(module.predict).parameters:
    predict = functools.partial(predict, class_names=source.class_names)
  return Predictor(
    config=source.config,
    params=model.params,
    state=model.state,
    predict=predict,
    logits=_logits(model, source.batch_of, source.logits_of),
    run=model.run,
    credit=source.credit,
  )


def task_module(task: str) -> ModuleType:
  """Returns inference/<task>.py; inference/arrays.py where the task has no file of its own there."""
  folder = Path(__file__).parent
  name = task if (folder / f'{task}.py').is_file() else 'arrays'
  return importlib.import_module(f'perceiver_jax.inference.{name}')


def _logits(model: models.Model, batch_of: Callable[..., Any], logits_of: Callable[..., Any]) -> Callable[..., Any]:
  """Returns `Predictor.logits`; it holds no `Source`, which has weights on the host."""
  def logits(*args: Any, **inputs: Any) -> Any:
    if args:
      names = ', '.join(f'{name}=' for name in make_task(model.config, may_import=False).inputs)
      raise UserError(
        f'logits takes its inputs by name: {names}; of a model of Hugging Face what its PyTorch forward takes, '
        'inputs= or pixel_values=, say')
    return logits_of(model.run(batch_of(inputs)))

  return logits


def _check_path(what: str, value: Any) -> None:
  """Raises UserError for what cannot be a path, whether or not there is something."""
  if not isinstance(value, str | Path) or not str(value):
    raise UserError(f'{what} is a str or a Path, and not empty; it is {value!r:.60}')
  try:
    os.stat(value)
  except (FileNotFoundError, NotADirectoryError):
    pass
  except (OSError, ValueError) as error:     # too long, not to be looked at, with a null character
    raise UserError(f'{what}, {str(value)!r:.60}, is no path: {getattr(error, "strerror", error)}') from error
