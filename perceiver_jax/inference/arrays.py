"""Runs a model of any task on a batch of arrays: what `predict` does where a task has no file of its own here."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from perceiver_jax.inference.model import Model
from perceiver_jax.types import Batch, UserError

if TYPE_CHECKING:
  from perceiver_jax.inference.predictor import Predictor

SUFFIXES = ('.npz',)


def predict(model: Model, batch: Batch, *, capture: bool = False) -> dict[str, Any]:
  """Returns the task's outputs for a batch, as NumPy arrays.

  Args:
    model: of any task.
    batch: {name: [B, ...]}, the task's inputs.
    capture: also return attention maps and latents, in 'captured'.
  """
  return model.run(batch, capture=capture)


def present(predictor: Predictor, inputs: Sequence[str], output: str | None) -> Iterator[str]:
  """Reads a batch from an `.npz` file, tells the shape of each output, and writes them to `output`, an `.npz` file."""
  if len(inputs) != 1 or not inputs[0].endswith('.npz'):
    raise UserError('a model of this task reads one .npz file, which holds its batch by name: '
                    'np.savez("batch.npz", points=points)')
  outputs = predictor.run(_read(inputs[0]))
  yield '\n'.join(f'{name}: {x.dtype} {list(x.shape)}' for name, x in outputs.items())
  if output:
    try:
      np.savez(output, **outputs)
    except OSError as error:
      raise UserError(f'cannot write {output}: {error.strerror}') from error


def _read(path: str) -> dict[str, np.ndarray]:
  try:
    with np.load(path, allow_pickle=False) as arrays:
      return dict(arrays)
  except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
    raise UserError(f'cannot read {path}: it is no .npz file of plain arrays ({error})') from error
