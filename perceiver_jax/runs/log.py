"""The log of a run: metrics.jsonl, TensorBoard, and wandb where asked for."""

from __future__ import annotations

import contextlib
import importlib
import json
import math
import os
from collections.abc import Iterator

from ml_collections import ConfigDict

from perceiver_jax.runs.curves import add_to_curves, open_curves
from perceiver_jax.runs.files import write_atomically
from perceiver_jax.types import History, UserError


class Log:
  """metrics.jsonl (always), TensorBoard (always), wandb (if asked for); a context manager.

  A line is one JSON object: `step`, metrics as `split/name`, times and rates as `speed/name`; null for NaN, infinity.
  """

  def __init__(self, workdir: str, config: ConfigDict, last_step: int):
    """Cuts the log back to `last_step`: it is then an uninterrupted run's, but for `speed/`.

    Raises UserError where the log is damaged or cannot be written, or wandb is missing.
    """
    self.path = os.path.join(workdir, 'metrics.jsonl')
    kept = [line for line in read_history(workdir) if line['step'] <= last_step]
    with _disk_errors(self.path):
      write_atomically(self.path, ''.join(json.dumps(_finite(line)) + '\n' for line in kept))
    self._curves = os.path.join(workdir, 'tensorboard')
    with _disk_errors(self._curves):
      self._events = open_curves(self._curves, last_step)
    self._wandb = _start_wandb(workdir, config) if config.log.wandb else None

  def write(self, step: int, values: dict[str, float]) -> None:
    """Appends one line, flushed: it is on disk when this returns, for TensorBoard too.

    Raises UserError where the disk is full, say; what cannot be written here would soon not be saved either.
    """
    with _disk_errors(self.path), open(self.path, 'a') as file:
      file.write(json.dumps(_finite({'step': step, **values})) + '\n')
    with _disk_errors(self._curves):
      add_to_curves(self._events, step, values)
    if self._wandb:
      self._wandb.log(values, step=step)

  def __enter__(self) -> Log:
    return self

  def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
    with contextlib.suppress(OSError):  # of what was refused already; everything else is on disk
      self._events.close()
    if self._wandb:
      self._wandb.finish(exit_code=int(kind is not None))


def read_history(workdir: str) -> History:
  """The lines of a workdir's metrics.jsonl, [] if it has none. A last one cut short by a kill is left out.

  Raises UserError where it cannot be read, or a line is damaged.
  """
  path = os.path.join(workdir, 'metrics.jsonl')
  try:
    with open(path, errors='replace') as file:
      lines = file.read().split('\n')[:-1]  # what follows the last newline was never finished
  except (FileNotFoundError, NotADirectoryError):
    return []
  except OSError as error:
    raise UserError(f'cannot read {path}, the log of the run: {error.strerror}') from error
  return [_read_line(workdir, number, line) for number, line in enumerate(lines, start=1)]


def _read_line(workdir: str, number: int, line: str) -> dict[str, float]:
  try:
    values = json.loads(line)
    return {'step': values['step'], **{name: math.nan if value is None else value for name, value in values.items()}}
  except (ValueError, AttributeError, TypeError, KeyError) as error:
    raise UserError(
      f'{workdir}/metrics.jsonl, line {number} is damaged: {line[:60]!r}. Mend or delete that line.') from error


def _finite(values: dict[str, float]) -> dict[str, float | None]:
  return {name: value if math.isfinite(value) else None for name, value in values.items()}


@contextlib.contextmanager
def _disk_errors(path: str) -> Iterator[None]:
  try:
    yield
  except OSError as error:
    raise UserError(f'cannot write {path}: {error.strerror}') from error


def _start_wandb(workdir: str, config: ConfigDict):
  """wandb's run of this workdir: a new one the first time, and the same from then on."""
  try:
    wandb = importlib.import_module('wandb')
  except ImportError as error:
    raise UserError('log.wandb is set, but wandb is not installed: pip install wandb, or leave it off') from error
  name = os.path.basename(os.path.abspath(workdir))
  # Kept, not made of the path: a workdir may be moved, and another machine may have one of the same path.
  path = os.path.join(workdir, 'wandb_id.txt')
  try:
    with open(path) as file:
      run_id = file.read().strip() or None
  except FileNotFoundError:
    run_id = None
  run = wandb.init(dir=workdir, id=run_id, name=name, config=config.to_dict(), resume='allow')
  with _disk_errors(path):
    write_atomically(path, f'{run.id}\n')
  return run
