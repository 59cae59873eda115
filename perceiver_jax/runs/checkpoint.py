"""Checkpoints: what a run needs to go on as if nothing had happened, and what evaluation and fine-tuning start from.

One checkpoint is one directory, named by its step:
  <step>/state/           the TrainState of one replica, written by Orbax, which does not notice a flipped bit
  <step>/checkpoint.json  so this holds the SHA-256 of every file of state/ and of itself; and extras and metrics

Both are written in `<step>.orbax-checkpoint-tmp`, which nobody reads, and which is renamed when whole: a kill at any
moment leaves whole checkpoints only. One without checkpoint.json counts as damaged.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging

from perceiver_jax.config.values import parse_best
from perceiver_jax.runs.files import disk_errors, plain_path, quiet_orbax, write_atomically
from perceiver_jax.runs.saved_state import STATE, check_fits, check_size, read_arrays, saved_tree
from perceiver_jax.types import TrainState, Tree, UserError

RECORD = 'checkpoint.json'


class DamagedCheckpoint(UserError):
  """A file of a checkpoint is missing, or is not what was written."""

  def __init__(self, checkpoint: Path, what: str) -> None:
    super().__init__(f'checkpoint {checkpoint} is damaged: {what}')


class Checkpoints:
  """The checkpoints of one run, as a context: written in the background, verified when they are read.

  The newest `keep_last` are kept, and the best. One is deleted only when the one that takes its place is whole.
  """

  def __init__(self, directory: str | Path, *, keep_last: int, best: str | None) -> None:
    """Makes the directory, and clears away what a killed save left there.

    Args:
      directory: for checkpoints and nothing else.
      keep_last: how many of the newest to keep, at least 1.
      best: which one is the best, 'lowest validation/loss' or 'highest validation/accuracy'; the newest of equals. A
        checkpoint without that figure, or with a NaN, is never the best. None: no checkpoint is the best.

    Raises:
      UserError: nothing can be written there, or keep_last < 1.
    """
    if keep_last < 1:
      raise UserError(f'checkpoint.keep_last is {keep_last}: a run must keep at least 1 checkpoint')
    self._directory = Path(directory).absolute()
    self._keep_last, self._best = keep_last, best
    self._scores, self._damaged = _scores(self._directory), set[int]()
    with disk_errors(f'cannot write checkpoints to {self._directory}'):
      self._directory.mkdir(parents=True, exist_ok=True)
      tempfile.TemporaryFile(dir=self._directory).close()
      for unfinished in self._directory.glob('*.orbax-checkpoint-tmp*'):
        shutil.rmtree(unfinished)  # by us: Orbax does it in a thread that fails where the process ends soon
    quiet_orbax()
    self._names = contextlib.ExitStack()
    plain = self._names.enter_context(plain_path(self._directory))
    _try_out(self._directory)
    self._manager = ocp.CheckpointManager(plain, options=ocp.CheckpointManagerOptions(
      preservation_policy=SimpleNamespace(should_preserve=self._should_keep),
      async_options=ocp.AsyncOptions(
        timeout_secs=10**9,                        # for ever: Orbax asks the clock, which may jump by hours
        post_finalization_callback=self._write_record,
        create_directories_asynchronously=False),  # should it fail, Orbax's threads would wait minutes for it
      create=False,
      multiprocessing_options=ocp.options.MultiprocessingOptions(primary_host=0, active_processes={0}),
      lightweight_initialize=True))                # reads no file, so that a damaged one hides no other checkpoint

  def __enter__(self) -> Checkpoints:
    return self

  def __exit__(self, *error: object) -> None:
    self.close()

  def save(self, step: int, state: TrainState, extras: dict[str, Any], metrics: Mapping[str, float] | None) -> None:
    """Waits for the save before it, copies its arguments, and writes them in the background.

    Saving a step again keeps the state that is there; `metrics`, if given, and `extras` then replace the old ones (for
    an evaluation that was interrupted, and made up for on resuming).

    Args:
      step: number of steps taken.
      state: host arrays, without a replica axis.
      extras: what JSON can hold. Keys become strings; floats come back exactly.
      metrics: {'split/name': value}; None if this step was not evaluated.

    Raises:
      UserError: this save, or the one before it, could not be written.
    """
    values = {name: float(value) for name, value in (metrics or {}).items()}
    record = json.loads(json.dumps({'extras': extras, 'metrics': values, 'best': self._best}))
    self.wait()
    path, exists = self._directory / str(step), step in self._manager.all_steps()
    if exists and step in self._damaged:
      self._manager.delete(step)
      exists = False
    self._damaged.discard(step)
    if exists and not metrics:
      return
    self._scores[step] = _score(record)
    with disk_errors(f'checkpoint {path} was not written; those before it are whole'):
      if exists:
        _replace_record(path, {**record, 'files': _read_record(path)['files']})
      else:
        self._saving = step, record
        arrays = ocp.args.PyTreeSave(jax.tree.map(np.asarray, state))
        self._manager.save(step, args=ocp.args.Composite(**{STATE: arrays}), force=True)

  def restore(self, step: int, template: TrainState) -> tuple[TrainState, dict[str, Any]]:
    """The state, as NumPy arrays, and the extras of one step.

    `template` is the tree that the state must be, of arrays or `jax.ShapeDtypeStruct`s.

    Raises:
      DamagedCheckpoint: a file is missing or has changed.
      UserError: a state unlike the template: every entry that differs is named.
    """
    self.wait()
    path = self._directory / str(step)
    extras = _verify(path)['extras']
    check_fits(path, template, saved_tree(path))
    return read_arrays(path, template), extras

  def restore_latest(self, template: TrainState) -> tuple[TrainState, dict[str, Any]] | None:
    """Restores the newest step that is whole, as `restore` does; returns None if nothing was saved.

    Damaged newer ones are named in a warning, no longer count, and are deleted once a newer checkpoint is whole.
    Raises UserError where all are damaged, or the state is unlike the template.
    """
    self.wait()
    damages = []
    for step in reversed(saved_steps(self._directory)):
      try:
        return self.restore(step, template)
      except DamagedCheckpoint as damage:
        damages.append(damage)
        self._damaged.add(step)
        logging.warning('%s. Trying the one before it.', damage)
    if damages:
      raise UserError(f'every checkpoint in {self._directory} is damaged. Delete them to start again. {damages[0]}')
    return None

  def best_step(self) -> int | None:
    """The step on disk that is the best, after waiting for a save under way; None if none has it."""
    self.wait()
    return _best({step: self._scores[step] for step in saved_steps(self._directory) if step not in self._damaged})

  def wait(self) -> None:
    """Returns when the save under way, if any, is whole; raises UserError if it could not be written."""
    with disk_errors(f'a checkpoint was not written to {self._directory}; those before it are whole'):
      self._manager.wait_until_finished()

  def close(self) -> None:
    """Waits as `wait` does, and ends Orbax's threads."""
    with self._names, contextlib.closing(self._manager):
      self.wait()

  def _should_keep(self, checkpoints: Sequence[Any], *, context: object) -> list[bool]:
    whole = sorted({checkpoint.step for checkpoint in checkpoints} - self._damaged)
    kept = {*whole[-self._keep_last:], _best({step: self._scores[step] for step in whole})}
    return [checkpoint.step in kept for checkpoint in checkpoints]

  def _write_record(self) -> None:
    """Orbax calls it between the last byte of state/ and the rename that makes a checkpoint of the directory."""
    step, record = self._saving
    path = self._directory / f'{step}.orbax-checkpoint-tmp'
    files = sorted(file for file in (path / STATE).rglob('*') if file.is_file())
    _replace_record(path, {**record, 'files': {str(file.relative_to(path)): _file_digest(file) for file in files}})


def _try_out(directory: Path) -> None:
  """Saves a few numbers in a directory and reads them back: a run must not find out at its end that this fails."""
  checkpoint = directory / f'trial.{os.getpid()}'
  here = ocp.options.MultiprocessingOptions(primary_host=0, active_processes={0}, barrier_sync_key_prefix='trial')
  handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=here)
  expected = {'numbers': np.arange(3)}
  try:
    with disk_errors(f'cannot write checkpoints to {directory}'), plain_path(checkpoint) as plain:
      checkpoint.mkdir(exist_ok=True)
      ocp.Checkpointer(handler, multiprocessing_options=here).save(plain / STATE, args=ocp.args.PyTreeSave(expected))
    if not np.array_equal(read_arrays(checkpoint, expected)['numbers'], expected['numbers']):
      raise UserError('it comes back with other numbers')
  except UserError as error:
    raise UserError(f'{directory} cannot hold checkpoints, choose another --workdir: {error}') from error
  finally:
    shutil.rmtree(checkpoint, ignore_errors=True)


def load_weights(
  path: str | Path, which: str = 'best', template: TrainState | None = None,
) -> tuple[int, Tree, Tree]:
  """Returns (step, params, state) of one checkpoint, as NumPy arrays, whatever its optimizer was. Writes nothing.

  `params` are the moving average where the run kept one; `state` is Haiku's.

  Args:
    path: a run's workdir, or its checkpoints directory.
    which: the latest, or the best by the run's own metric (the latest if none has it).
    template: if given, what params and state must look like, as in `Checkpoints.restore`; the rest of it is not used.

  Raises:
    DamagedCheckpoint: a file is missing or has changed.
    UserError: no checkpoint there, or weights unlike the template: every entry that differs is named.
  """
  directory = _find_checkpoints(path)
  best = _best(_scores(directory)) if which == 'best' else None
  checkpoint = directory / str(saved_steps(directory)[-1] if best is None else best)
  _verify(checkpoint)
  saved = saved_tree(checkpoint)
  if not isinstance(saved, dict) or not {'params', 'state', 'ema'} <= saved.keys():
    raise UserError(f'checkpoint {checkpoint} is not one of ours: it lacks params, state or ema')
  params = 'params' if saved['ema'] is None else 'ema'
  saved = {params: saved[params], 'state': saved['state']}
  if template is not None:
    check_fits(checkpoint, {params: template.params, 'state': template.state}, saved)
  check_size(checkpoint, saved)
  arrays = read_arrays(checkpoint, saved)
  return int(checkpoint.name), arrays[params], arrays['state']


def _find_checkpoints(path: str | Path) -> Path:
  for directory in (Path(path).absolute() / 'checkpoints', Path(path).absolute()):
    if saved_steps(directory):
      return directory
  raise UserError(f'no checkpoint in {path}: expected a workdir, with checkpoints/<step>/ in it, or that directory')


def saved_steps(directory: Path) -> list[int]:
  """Steps that have a directory, whole or damaged, in order. The name of an unfinished one is no number."""
  return sorted(int(child.name) for child in directory.glob('*') if child.name.isdecimal() and child.is_dir())


def _scores(directory: Path) -> dict[int, float]:
  scores = dict.fromkeys(saved_steps(directory), -math.inf)
  for step in scores:
    with contextlib.suppress(DamagedCheckpoint):
      scores[step] = _score(_read_record(directory / str(step)))
  return scores


def _score(record: Mapping[str, Any]) -> float:
  """The larger the better; -inf where the metric is missing or NaN."""
  direction, name = parse_best(record['best']) or ('highest', '')
  value = record['metrics'].get(name, math.nan)
  value = -value if direction == 'lowest' else value
  return -math.inf if math.isnan(value) else value


def _best(scores: Mapping[int, float]) -> int | None:
  score, step = max(((score, step) for step, score in scores.items()), default=(-math.inf, None))
  return step if score > -math.inf else None


def _file_digest(path: Path) -> str:
  with path.open('rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()


def _record_digest(record: Mapping[str, Any]) -> str:
  return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _replace_record(checkpoint: Path, record: Mapping[str, Any]) -> None:
  """Writes checkpoint.json in one move: a kill leaves the old one or the new one."""
  write_atomically(checkpoint / RECORD, json.dumps({**record, 'sha256': _record_digest(record)}, indent=2))


def _read_record(checkpoint: Path) -> dict[str, Any]:
  try:
    record = json.loads((checkpoint / RECORD).read_bytes())
  except (OSError, ValueError, RecursionError) as error:
    raise DamagedCheckpoint(checkpoint, f'{RECORD} cannot be read ({error})') from error
  if not isinstance(record, dict) or record.pop('sha256', None) != _record_digest(record):
    raise DamagedCheckpoint(checkpoint, f'{RECORD} has changed since it was written')
  if not _is_record(record):
    raise DamagedCheckpoint(checkpoint, f'{RECORD} is not as we write it, though its own digest fits')
  return record


def _is_record(record: dict[str, Any]) -> bool:
  match record:
    case {'extras': dict(), 'metrics': dict(metrics), 'best': str() | None, 'files': dict(files)}:
      return all(type(value) is float for value in metrics.values()) and all(map(_is_of_state, files))
  return False


def _is_of_state(name: str) -> bool:
  path = PurePosixPath(name)
  return path.parts[:1] == (STATE,) and '..' not in path.parts


def _verify(checkpoint: Path) -> dict[str, Any]:
  """The record of a checkpoint whose files are all as they were written."""
  record = _read_record(checkpoint)
  for name, digest in record['files'].items():
    try:
      file = checkpoint / name
      changed = (file.exists() and not file.is_file()) or _file_digest(file) != digest  # a device has no end
    except OSError as error:
      raise DamagedCheckpoint(checkpoint, f'{name} cannot be read ({error.strerror})') from error
    if changed:
      raise DamagedCheckpoint(checkpoint, f'{name} has changed since it was written')
  return record
