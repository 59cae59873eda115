"""A config and its weights as one function, from a batch to outputs, compiled once per shape."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from perceiver_jax.data import byte_tokenizer
from perceiver_jax.tasks import make_task
from perceiver_jax.types import ALWAYS, Batch, Spec, Task, Tree, UserError, blank_batch, to_array


class Model(NamedTuple):
  """Holds a config, its weights, and the function that runs them."""

  config: ConfigDict
  params: Tree
  state: Tree
  run: Callable[..., dict[str, Any]]  # (batch, *, capture=False) -> the task's outputs, as NumPy arrays


def template(config: ConfigDict) -> tuple[Tree, Tree]:
  """Returns (params, state) of the config's model, as `jax.ShapeDtypeStruct`s: nothing is computed."""
  return template_of(make_task(config, may_import=False))


def template_of(task: Task) -> tuple[Tree, Tree]:
  """Returns (params, state) of a task's model, as `jax.ShapeDtypeStruct`s."""
  init = hk.transform_with_state(task.forward).init
  return jax.eval_shape(
    lambda key, batch: init(key, _with_typed_keys(batch), is_training=True),
    jax.ShapeDtypeStruct((2,), np.uint32), blank_batch(task.inputs, 1))


def build(config: ConfigDict, params: Tree, state: Tree) -> Model:
  """Returns the model on the default device, in float32 or whatever dtype the weights have.

  Its `run` takes in a batch whatever `np.asarray` takes, and raises UserError for one that is not what the task takes.
  """
  task = make_task(config, may_import=False)
  apply = hk.transform_with_state(task.forward).apply
  params, state = jax.device_put((params, state))

  @functools.partial(jax.jit, static_argnames='capture')
  def compiled(params: Tree, state: Tree, batch: Batch, capture: bool) -> dict[str, Any]:
    return apply(params, state, None, _with_typed_keys(batch), is_training=False, capture=capture)[0]

  def run(batch: Batch, *, capture: bool = False) -> dict[str, Any]:
    arrays = _checked(task.inputs, batch)
    try:
      return jax.tree.map(np.asarray, compiled(params, state, arrays, capture))
    except AssertionError as error:         # chex's, while tracing: two entries whose shapes do not fit each other
      shapes = ', '.join(f'{name} {list(arrays[name].shape)}' for name in batch)
      raise UserError(f'the inputs do not fit each other or the model, {shapes}: {error}') from error

  return Model(config, params, state, run)


def _with_typed_keys(batch: Batch) -> dict[str, Any]:
  return {**batch, 'key': jax.random.wrap_key_data(jnp.asarray(batch['key']), impl='threefry2x32')}


def _checked(spec: Spec, batch: Any) -> dict[str, np.ndarray]:
  """Returns the batch as arrays, with a mask and keys. Raises UserError for what is not what the task takes."""
  required = [name for name, field in spec.items() if not field.is_optional]
  if not isinstance(batch, Mapping):
    raise UserError(f'a batch is a dict of arrays by name, {", ".join(required)}, not {type(batch).__name__}')
  if unknown := sorted(str(name) for name in batch if name not in {*spec, *ALWAYS}):
    raise UserError(f'this model has no input {unknown[0]!r}; it takes {", ".join(required)}')
  arrays = {}
  for name, value in batch.items():
    arrays[name] = to_array(name, value)
    if arrays[name].dtype.kind in 'OSUMmc':
      raise UserError(f'{name} is of {arrays[name].dtype}, but a model takes real numbers')
    if arrays[name].shape[:1] == (0,):
      raise UserError(f'{name} is {list(arrays[name].shape)}: the batch is empty; give it one example at least')
  for name, field in spec.items():
    x = arrays.get(name)
    if field.bound and x is not None and x.dtype.kind not in 'iu':
      raise UserError(f'{name} are integers, not {x.dtype}')
    # JAX would take the nearest row of a table.
    if field.bound and x is not None and x.size and not 0 <= x.min() <= x.max() < field.bound:
      raise UserError(f'{name} are from {x.min()} to {x.max()}; this model knows 0 to {field.bound - 1}')
  size = next((len(arrays[name]) for name in required if name in arrays and arrays[name].ndim), 1)
  return {**{name: x for name, x in blank_batch({}, size).items() if name not in arrays}, **arrays}


def ask(model: Model, batch: Batch, *, capture: bool = False) -> dict[str, Any]:
  """Runs the model for a person. Raises UserError for outputs that are not finite."""
  outputs = model.run(batch, capture=capture)
  for name, values in outputs.items():
    if name != 'captured' and not np.isfinite(values).all():
      raise UserError(
        f'the model answered with numbers that are not finite ({name}): its weights are damaged, or come from a run '
        'that diverged; fetch, convert or train them again')
  return outputs


def as_image(image: Any, what: str) -> np.ndarray:
  """Returns an image, [H, W, 3] uint8, by its path, an array or PIL's, gray or with a transparency, which is left out.

  Raises UserError for any other array, or a file that is no picture.
  """
  if isinstance(image, str | os.PathLike):
    from perceiver_jax.data.files import read_image

    return read_image(image)
  if hasattr(image, 'convert'):
    from perceiver_jax.data.files import pixels

    return pixels(image)
  given = to_array(what, image)
  array = given[..., None] if given.ndim == 2 else given
  if array.ndim != 3 or array.shape[-1] not in (1, 3, 4) or 0 in array.shape:
    raise UserError(f'{what} is [height, width, 3], not {list(given.shape)}')
  if array.dtype != np.uint8:
    raise UserError(f'{what} is uint8, 0 to 255, not {array.dtype}: multiply by 255 and round what is in 0..1')
  return np.broadcast_to(array[..., :3], (*array.shape[:2], 3))


def most_probable(
  logits: np.ndarray, class_names: Sequence[str] | None, top_k: int | None = None,
) -> tuple[tuple[str, ...], np.ndarray, np.ndarray]:
  """The classes of logits [E], most probable first.

  Args:
    logits: [E].
    class_names: of all classes; by number where None.
    top_k: how many to return, at least 1; all where None, or where there are no more.

  Returns:
    Names, probabilities [k] float32 and indices [k] int.

  Raises:
    UserError: another number of names than of classes, or `top_k` below 1.
  """
  if class_names is not None and len(class_names) != len(logits):
    raise UserError(f'there are {len(class_names)} class_names, but the model has {len(logits)} classes')
  if top_k is not None and top_k < 1:
    raise UserError(f'top_k is {top_k}; it must be at least 1')
  probabilities = np.asarray(jax.nn.softmax(logits))
  best = np.argsort(-probabilities, kind='stable')[:top_k]
  names = tuple(class_names[i] if class_names else f'class {i}' for i in best)
  return names, probabilities[best], best


def check_text(model: Model, text: Any) -> None:
  """Raises UserError if `text` is none, or the model does not read bytes."""
  vocab_size = model.config.data.vocab_size
  if vocab_size != byte_tokenizer.VOCAB_SIZE:
    raise UserError(
      f'this model reads a vocabulary of {vocab_size} tokens, and only bytes, {byte_tokenizer.VOCAB_SIZE}, can be made '
      'here: make the tokens yourself, and give them to `logits`')
  if not isinstance(text, str):
    raise UserError(f'a text is a str, not {type(text).__name__}')
