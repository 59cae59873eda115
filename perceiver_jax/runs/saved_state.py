"""Reads what Orbax wrote of a state, its tree and its arrays, or says in one line why it cannot.

The checksums match, but the writer is untrusted.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from perceiver_jax.runs.files import plain_path
from perceiver_jax.runs.weights import shortened
from perceiver_jax.types import Tree, UserError

STATE = 'state'                             # its folder in that of a checkpoint

_MAX_UNFOLDED, _MAX_REPEATS = 2**28, 16     # [bytes] and times what a file holds, of weights that compress well


def saved_tree(checkpoint: Path) -> Tree:
  """Returns the saved tree, with shapes and dtypes in place of arrays, dicts for named tuples. Raises UserError."""
  with _foreign_errors(checkpoint):
    with plain_path(checkpoint) as plain:
      tree = ocp.PyTreeCheckpointHandler().metadata(plain / STATE).tree
    if strange := [name for name, leaf in _entries(tree).items() if not hasattr(leaf, 'dtype')]:
      raise ValueError(f'{strange[0]} is no array')
    return tree


def read_arrays(checkpoint: Path, template: Tree) -> Tree:
  """Reads those saved entries that `template` has, as NumPy arrays, in its tree. Raises UserError."""
  args = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), template)
  with _foreign_errors(checkpoint), plain_path(checkpoint) as plain:
    return ocp.PyTreeCheckpointHandler().restore(
      plain / STATE, args=ocp.args.PyTreeRestore(item=template, restore_args=args, partial_restore=True))


def check_size(checkpoint: Path, saved: Tree) -> None:
  """Raises UserError where a small file says that it holds a large array, which would be allocated."""
  with _foreign_errors(checkpoint):
    num_bytes = sum(math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize for leaf in jax.tree.leaves(saved))
  on_disk = sum(file.stat().st_size for file in (checkpoint / STATE).rglob('*') if file.is_file())
  if num_bytes > _MAX_UNFOLDED + _MAX_REPEATS * on_disk:
    raise UserError(f'checkpoint {checkpoint} unfolds {on_disk} bytes to {num_bytes}, which no weights do')


def check_fits(checkpoint: Path, template: Tree, saved: Tree) -> None:
  """Raises UserError. Orbax itself casts a wrong dtype without a word, and a partial restore skips what is extra."""
  expected, found = (
    {name: f'{np.dtype(leaf.dtype).name}{list(leaf.shape)}' for name, leaf in _entries(tree).items()}
    for tree in (template, saved))
  differences = [
    f'{name} is {found.get(name, "missing")}, expected {expected.get(name, "nothing")}'
    for name in sorted(expected.keys() | found.keys()) if expected.get(name) != found.get(name)]
  if differences:
    raise UserError(f'checkpoint {checkpoint} does not fit this model and optimizer: {shortened(differences)}')


@contextlib.contextmanager
def _foreign_errors(checkpoint: Path) -> Iterator[None]:
  """Turns any error of Orbax over intact files that may not be ours into a UserError."""
  try:
    yield
  except Exception as error:  # which may be any
    said = str(error).splitlines() or ['']
    raise UserError(f'checkpoint {checkpoint} cannot be read, though its digests fit: '
                    f'{type(error).__name__}: {said[0][:200]}') from error


def _entries(tree: Tree) -> dict[str, Any]:
  """Returns {'params/module/name': leaf}, in the order of the tree's leaves."""
  leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
  return {jax.tree_util.keystr(path, simple=True, separator='/'): leaf for path, leaf in leaves}
