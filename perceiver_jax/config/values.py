"""Looks at the values of a config: flattens them, changes them, checks ranges and words."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ml_collections import ConfigDict

from perceiver_jax.runs.files import check_local
from perceiver_jax.types import UserError

# The words that a key may hold; checked when a config is read, before anything is traced.
CHOICES: Mapping[str, tuple[str, ...]] = {
  'attention_impl': ('auto', 'dense', 'factored', 'chunked'),
  'remat': ('none', 'dots', 'layers'),
  'optimizer.name': ('lamb', 'adamw', 'sgd'),
  'optimizer.schedule': ('constant_cosine', 'warmup_cosine', 'step_decay'),
  'data.permutation': ('none', 'joint', 'pixels'),
  'data.mixing': ('none', 'half_and_half'),
  'model.backbone': ('perceiver', 'resnet50', 'resnet20', 'vit', 'transformer'),
  'model.cross_attends': ('interleaved', 'start'),
  'model.gelu': ('tanh', 'exact'),
  'model.head': ('query', 'pool'),
  'model.masked_rows': ('zero', 'mean'),
  'model.position.kind': ('fourier', 'learned', 'none'),
  'model.position.spacing': ('linear', 'log'),
  'model.stem.kind': ('pixels', 'patches', 'conv1x1', 'conv'),
  'model.stem.normalisation': ('symmetric', 'imagenet'),
  'model.stem.padding': ('same', 'symmetric'),
}
# The range of a number, by the last word of its key. The first pattern that matches counts.
_RANGES: tuple[tuple[str, str, Callable[[float], bool]], ...] = (
  ('num_blocks|warmup_steps|weight_decay|max_norm|peak_lr|init_scale', 'at least 0', lambda x: x >= 0),
  ('label_smoothing|constant_share', 'from 0 to 1', lambda x: 0 <= x <= 1),
  ('seed', 'from 0 to 2 ** 32 - 1: JAX would take another one', lambda x: 0 <= x < 2**32),
  ('ema_decay|.*_prob', 'at least 0 and less than 1', lambda x: 0 <= x < 1),
  ('num_.*|.*_steps|.*_seconds|.*_size|.*channels|.*widening|keep_last|micro_batches|max_skipped',
   'at least 1', lambda x: x >= 1),
)


def flatten(config: ConfigDict) -> dict[str, Any]:
  """Returns every value by its dotted key, {'optimizer.peak_lr': 0.002}; placeholders resolved, lists as tuples."""
  flat = {}
  for key, value in config.items():
    if isinstance(value, ConfigDict):
      flat.update({f'{key}.{inner}': leaf for inner, leaf in flatten(value).items()})
    else:
      flat[key] = tuples(value)
  return flat


def changed(config: ConfigDict, values: Mapping[str, Any]) -> ConfigDict:
  """Returns a locked copy with other values, given by dotted key."""
  copy = ConfigDict(config.to_dict())
  copy.update_from_flattened_dict(values)
  return copy.lock()


def check(config: ConfigDict) -> None:
  """Raises UserError for a number out of its range (a probability of 1.5) or a word that a key does not know."""
  for key, value in flatten(config).items():
    if key.rpartition('.')[2] in ('path', 'init_from'):
      check_local(f'config.{key}', value)
      if value == '':
        raise UserError(f'config.{key} is empty, as from a variable of the shell that is not set: '
                        'give it a path, or leave it out')
    if key in CHOICES and value not in CHOICES[key]:
      words = CHOICES[key]
      guess = f'; did you mean {nearest(value, words)!r}?' if isinstance(value, str) else ';'
      raise UserError(f'{key} is {value!r}{guess} It is one of {", ".join(words)}')
    for pattern, range_, is_in_range in _RANGES if isinstance(value, int | float) else ():
      if re.fullmatch(pattern, key.rpartition('.')[2]):
        if not is_in_range(value):
          raise UserError(f'{key} is {value}; it must be {range_}')
        break


def parse_best(text: str | None) -> tuple[str, str] | None:
  """Returns ('lowest', 'validation/loss') for config.checkpoint.best='lowest validation/loss'; None for None.

  Raises UserError for a text of another form.
  """
  if text in (None, 'None'):                # the latter from the command line
    return None
  direction, _, name = text.partition(' ')
  if direction not in ('lowest', 'highest') or not re.fullmatch(r'[^\s/]+/\S+', name):
    raise UserError(f"checkpoint.best is {text!r}; write it like 'lowest validation/loss' or 'highest "
                    "validation/accuracy'; None keeps the last checkpoint as the best")
  return direction, name


def nearest(word: str, words: Iterable[str]) -> str:
  """Returns the one of `words` that looks most like `word`."""
  return max(words, key=lambda other: likeness(word, other))


def likeness(a: str, b: str) -> float:
  """Returns how alike two words look, from 0 to 1."""
  return difflib.SequenceMatcher(None, a, b).ratio()


def tuples(value: Any) -> Any:
  """Returns the value with every list in it as a tuple."""
  if isinstance(value, dict):
    return {key: tuples(inner) for key, inner in value.items()}
  return tuple(tuples(inner) for inner in value) if isinstance(value, list | tuple) else value
