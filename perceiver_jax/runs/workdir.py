"""The folder of a run. Process 0 alone reads and writes it, and tells the others what they need to know of it."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from perceiver_jax.config.saved import check_workdir, claim
from perceiver_jax.config.values import flatten
from perceiver_jax.processes import parallel
from perceiver_jax.runs.checkpoint import Checkpoints, saved_steps
from perceiver_jax.runs.files import disk_errors, write_atomically
from perceiver_jax.runs.lock import lock
from perceiver_jax.runs.log import Log, read_history
from perceiver_jax.types import History, TrainState, Tree, UserError

CLASS_NAMES = 'class_names.json'
FINISHED_MARK = 'run/finished'               # in the last line of the log of a run that has finished


def check_same_config(config: ConfigDict) -> None:
  """Raises UserError in a process whose config is not that of process 0; where the data lies may differ."""
  mine = {key: repr(value) for key, value in flatten(config).items() if key != 'data.path'}
  _, first = parallel.from_first(lambda: (None, mine))
  different = [f'{key}: {first.get(key, "absent")} there, {mine.get(key, "absent")} here'
               for key in sorted(first.keys() | mine.keys()) if first.get(key) != mine.get(key)]
  if different:
    raise UserError(f'process {parallel.process_id()} was started with another config than process 0: {different[0]}')


def last_line_if_finished(config: ConfigDict, path: str) -> dict[str, float] | None:
  """The final figures, where the folder holds a finished run of this config; writes nothing.

  Raises UserError where it holds another one's, or a damaged log.
  """
  def read() -> tuple[None, dict[str, float] | None]:
    history = read_history(path)
    is_finished = bool(history) and FINISHED_MARK in history[-1]
    check_workdir(config, path, is_new=not is_finished and _is_new(path))
    return None, history[-1] if is_finished else None

  return parallel.from_first(read)[1]


class Workdir:
  """A run's own folder, as a context; in processes other than 0 it writes nothing, and waits to be told."""

  def __init__(self, config: ConfigDict, path: str, template: TrainState) -> None:
    """template: what the state must look like."""
    self.path = path
    self._config, self._template = config, template
    self._open = contextlib.ExitStack()
    self._checkpoints: Checkpoints | None = None
    self._log: Log | None = None

  def __enter__(self) -> Workdir:
    """Raises UserError where the folder cannot be written, or another run is at it."""
    if parallel.process_id() == 0:
      with contextlib.ExitStack() as stack:
        stack.enter_context(lock(self.path))
        claim(self._config, self.path, is_new=_is_new(self.path))
        self._checkpoints = stack.enter_context(Checkpoints(
          _checkpoints(self.path), keep_last=self._config.checkpoint.keep_last,
          best=self._config.checkpoint.best))
        self._open = stack.pop_all()
    return self

  def __exit__(self, *error: Any) -> bool | None:
    return self._open.__exit__(*error)

  def first_state(self, make: Callable[[], tuple[TrainState, dict[str, Any]]]) -> tuple[TrainState, dict[str, Any]]:
    """The state and the extras with which the run goes on: the newest checkpoint's, or those that `make` returns."""
    def read() -> tuple[Tree, dict[str, Any]]:
      assert self._checkpoints
      return self._checkpoints.restore_latest(self._template) or make()

    return parallel.from_first(read, self._template)

  def best_state(self) -> tuple[TrainState, int]:
    """The state of the best checkpoint, of the last where none is, and its step."""
    def read() -> tuple[Tree, int]:
      assert self._checkpoints
      best = self._checkpoints.best_step()
      if best is None:  # every evaluation gave NaN
        best = self._config.num_steps
      return self._checkpoints.restore(best, self._template)[0], best

    return parallel.from_first(read, self._template)

  def open_log(self, last_step: int) -> None:
    """Begins to write the log, cut back to `last_step`."""
    if parallel.process_id() == 0:
      self._log = self._open.enter_context(Log(self.path, self._config, last_step))

  def write(self, step: int, values: dict[str, float]) -> None:
    """Writes a line of the log, as `Log.write`."""
    if self._log:
      self._log.write(step, values)

  def save(self, step: int, state: TrainState, extras: dict[str, Any], metrics: Mapping[str, float] | None) -> None:
    """Saves a state on devices, as `Checkpoints.save` does one on the host."""
    if self._checkpoints:
      self._checkpoints.save(step, parallel.unreplicate(state), extras, metrics)

  def write_class_names(self, names: Sequence[str]) -> None:
    """Writes the names of the classes, for `predict`; keeps those that are there, nothing where there are none."""
    path = Path(self.path, CLASS_NAMES)
    if parallel.process_id() == 0 and names and not path.exists():
      with disk_errors(f'cannot write {path}'):
        write_atomically(path, json.dumps(list(names), ensure_ascii=False, indent=0))

  def wait(self) -> None:
    """Waits for the save under way, as `Checkpoints.wait`."""
    if self._checkpoints:
      self._checkpoints.wait()

  def history(self) -> History:
    """The log up to now, in process 0."""
    return read_history(self.path)


def read_class_names(path: str | os.PathLike) -> tuple[str, ...] | None:
  """Returns the names of a run's classes; None where it wrote none. Raises UserError for a damaged file."""
  try:
    names = json.loads(Path(path, CLASS_NAMES).read_text(encoding='utf-8'))
  except FileNotFoundError:
    return None
  except (OSError, ValueError) as error:
    raise UserError(f'{Path(path, CLASS_NAMES)} cannot be read: {error}') from error
  if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
    raise UserError(f'{Path(path, CLASS_NAMES)} is damaged: it is no list of names')
  return tuple(names)


def _checkpoints(path: str) -> Path:
  return Path(path, 'checkpoints')


def _is_new(path: str) -> bool:
  return not saved_steps(_checkpoints(path))
