"""`load`: a trained model, wherever it comes from, ready to answer."""

from __future__ import annotations

import functools
import importlib
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from perceiver_jax.inference import model as models
from perceiver_jax.inference.source import open_source


class Predictor(NamedTuple):
  """A trained model.

  `predict` takes what a person has, one at a time: inference/<config.task>.py says what, and what it returns.
  `logits` takes a batch in the layout of the model's source: for Hugging Face's directories what the PyTorch forward
  takes, by name (`pixel_values=`, `inputs=`, `attention_mask=`), for all others the batch of the task, by name
  (`image=`, `tokens=` and `valid=`, `frames=`; uint8, or float that is normalised already). It returns logits in that
  layout, as NumPy arrays.
  `run` takes a batch of the task and returns its outputs, with `capture=True` attention maps and latents among them.
  """

  config: ConfigDict
  params: Any
  state: Any
  predict: Callable[..., Any]
  logits: Callable[..., Any]
  run: Callable[..., dict[str, Any]]
  credit: str  # whose weights they are, and their licence; '' for your own


def load(name: str | Path, path: str | Path | None = None) -> Predictor:
  """A released model, or one from a directory.

  Args:
    name: one of the released models, imagenet_fourier, imagenet_learned, imagenet_conv, masked_lm, optical_flow and
      video_autoencoding; or a directory: of Hugging Face's `save_pretrained`, of a run of ours (its best checkpoint),
      or of converted weights.
    path: of a released model, the authors' file; without it, it is downloaded once.

  Raises:
    UserError: no such model, a file that does not fit it, or no connection and no file.

  Says on stderr whose weights they are, where these have a licence.
  """
  source = open_source(name, path)
  if source.credit:
    print(f'{name}: weights by {source.credit}', file=sys.stderr)
  model = models.build(source.config, source.params, source.state)
  module = importlib.import_module(f'perceiver_jax.inference.{source.config.task}')
  predict, batch_of, logits_of = functools.partial(module.predict, model), source.batch_of, source.logits_of
  if 'class_names' in inspect.signature(module.predict).parameters:
    predict = functools.partial(predict, class_names=source.class_names)
  return Predictor(
    config=source.config,
    params=model.params,
    state=model.state,
    predict=predict,
    logits=lambda **inputs: logits_of(model.run(batch_of(inputs))),  # not of `source`, which holds weights on the host
    run=model.run,
    credit=source.credit,
  )
