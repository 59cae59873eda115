"""What a run tells: a bar for people, metrics.jsonl, TensorBoard, and wandb where asked for."""

from __future__ import annotations

import contextlib
import importlib
import itertools
import json
import math
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from perceiver_jax import metrics
from perceiver_jax.training import parallel, spikes
from perceiver_jax.types import Batch, History, Mean, Tree, UserError

QUIET_SECONDS = 10.0  # an evaluation that takes no longer shows no progress


class Window:
  """Metrics of the steps since the last report. They stay on the device until `totals` is asked for."""

  def __init__(self, saved: Mapping[str, Sequence[float]] | None = None):
    """saved: what `totals` returned in the run that this one resumes."""
    self._totals: dict[str, Mean] = {name: (pair[0], pair[1]) for name, pair in (saved or {}).items()}
    self._waiting: list[Tree] = []

  def add(self, means: Tree) -> None:
    """means: {name: (sum, weight)}, replicated over devices."""
    self._waiting.append(means)

  def totals(self) -> dict[str, Mean]:
    """{name: (sum, weight)}, added up in the order of the steps, so that an interruption does not change a digit."""
    for means in self._waiting:
      self._totals = metrics.add(self._totals, parallel.unreplicate(means))
    self._waiting = []
    return {name: (float(total), float(weight)) for name, (total, weight) in self._totals.items()}


class Log:
  """metrics.jsonl (always), TensorBoard (always), wandb (if asked for); a context manager.

  A line is one JSON object: `step`, metrics as `split/name`, times and rates as `speed/name`; null for NaN, infinity.
  """

  def __init__(self, workdir: str, config: ConfigDict, last_step: int, num_rewinds: int = 0):
    """Cuts the log back as `cut` does: it is then an uninterrupted run's, but for `speed/`.

    Raises UserError where the log is damaged or cannot be written, or wandb is missing.
    """
    self.path = os.path.join(workdir, 'metrics.jsonl')
    self._cut_lines(last_step, num_rewinds)
    self._curves = os.path.join(workdir, 'tensorboard')
    with _disk_errors(self._curves):
      self._events = _open_curves(self._curves, last_step)
    self._wandb = _start_wandb(workdir, config) if config.log.wandb else None

  def cut(self, last_step: int, num_rewinds: int) -> None:
    """Leaves what a run says up to `last_step`, and its first `num_rewinds` rewinds. It goes on from there."""
    self._cut_lines(last_step, num_rewinds)
    with _disk_errors(self._curves):
      _cut_curves(self._events, last_step)

  def _cut_lines(self, last_step: int, num_rewinds: int) -> None:
    kept = [
      line for line in read_history(os.path.dirname(self.path))
      if (line[spikes.NUMBER] <= num_rewinds if spikes.NUMBER in line else line['step'] <= last_step)]
    _write_atomically(self.path, ''.join(json.dumps(_finite(line)) + '\n' for line in kept))

  def write(self, step: int, values: dict[str, float]) -> None:
    """Appends one line, flushed: it is on disk when this returns, for TensorBoard too.

    Raises UserError where the disk is full, say; what cannot be written here would soon not be saved either.
    """
    with _disk_errors(self.path), open(self.path, 'a') as file:
      file.write(json.dumps(_finite({'step': step, **values})) + '\n')
    with _disk_errors(self._curves):
      _add_to_curves(self._events, step, values)
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


def summary(values: dict[str, float]) -> str:
  """The metrics among `values` in one line for people: 'test/loss 0.08, test/accuracy 0.98'."""
  return ', '.join(
    f'{name} {value:.4g}' for name, value in values.items() if name.startswith(('train/', 'validation/', 'test/')))


def _finite(values: dict[str, float]) -> dict[str, float | None]:
  return {name: value if math.isfinite(value) else None for name, value in values.items()}


@contextlib.contextmanager
def _disk_errors(path: str) -> Iterator[None]:
  try:
    yield
  except OSError as error:
    raise UserError(f'cannot write {path}: {error.strerror}') from error


def _write_atomically(path: str, text: str) -> None:
  with _disk_errors(path):
    with open(path + '.tmp', 'w') as file:
      file.write(text)
    os.replace(path + '.tmp', path)


def _open_curves(directory: str, last_step: int):
  """tensorboardX's writer of a new file, which voids what earlier ones say of steps beyond `last_step`."""
  hides_torch = 'torch' not in sys.modules
  if hides_torch:  # tensorboardX would import it where it is installed: seconds, for nothing
    sys.modules['torch'] = None  # type: ignore[assignment]
  try:
    from tensorboardX.event_file_writer import EventsWriter
  finally:
    if hides_torch:
      del sys.modules['torch']
  os.makedirs(directory, exist_ok=True)
  # Named by the second and by us, or a run that resumes within it would write over the file before.
  events = EventsWriter(os.path.join(directory, 'events'), f'.{os.getpid()}.{last_step}')
  _cut_curves(events, last_step)
  return events


def _cut_curves(events, last_step: int) -> None:
  from tensorboardX.proto.event_pb2 import Event, SessionLog

  events.write_event(Event(step=last_step + 1, session_log=SessionLog(status=SessionLog.START)))
  events.flush()


def _add_to_curves(events, step: int, values: Mapping[str, float]) -> None:
  """Not by tensorboardX's own thread: should it die of a full disk, its queue fills, and the run waits for ever."""
  from tensorboardX.proto.event_pb2 import Event
  from tensorboardX.proto.summary_pb2 import Summary

  points = [Summary.Value(tag=name, simple_value=value) for name, value in values.items() if math.isfinite(value)]
  events.write_event(Event(wall_time=time.time(), step=step, summary=Summary(value=points)))
  events.flush()


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
  _write_atomically(path, f'{run.id}\n')
  return run


def _is_terminal() -> bool:
  """Whether a bar would be seen. Some terminals (of containers, of CI) say that they are 0 columns wide."""
  return (parallel.process_id() == 0 and sys.stderr.isatty()
          and os.get_terminal_size(sys.stderr.fileno()).columns > 0)


def _open_bar(**options) -> tqdm:
  bar = tqdm(dynamic_ncols=True, disable=not _is_terminal(), **options)
  bar._time = time.monotonic  # a clock that is set back by an hour would stop the bar for that hour
  bar.unpause()
  return bar


class Progress:
  """A bar on a terminal, plain lines elsewhere: step, total, ETA, examples/s, loss; a context manager."""

  def __init__(self, first_step: int, num_steps: int, batch_size: int):
    self._batch_size = batch_size
    self._bar = _open_bar(total=num_steps, initial=first_step, unit='step')
    self._time, self._step = time.monotonic(), first_step

  def advance(self) -> None:
    """One more step was started."""
    self._bar.update()

  def restart_clock(self, step: int) -> None:
    """Leaves what came before, the compilation, out of the rate."""
    self._time, self._step = time.monotonic(), step

  def report(self, step: int, values: dict[str, float]) -> dict[str, float]:
    """Shows the window that ends at `step`; returns its rates as {'speed/name': per second}.

    There is none, {}, where the clock has seen no step: the first step of a process compiles, and is not timed.
    """
    now, num_steps = time.monotonic(), step - self._step
    words = [f'{name} {values[f"train/{name}"]:.4g}' for name in ('loss', 'accuracy') if f'train/{name}' in values]
    rates, eta = {}, []
    if num_steps:
      seconds_per_step = (now - self._time) / num_steps
      rate = self._batch_size / seconds_per_step
      rate_per_device = rate / parallel.num_devices()
      rates = {'speed/examples_per_second': rate, 'speed/examples_per_second_per_device': rate_per_device}
      per_device = f' ({rate_per_device:,.0f} a device)' if parallel.num_devices() > 1 else ''
      words.insert(0, f'{rate:,.0f} examples/s{per_device}')
      minutes, seconds = divmod(round((self._bar.total - step) * seconds_per_step), 60)
      eta = [f'ETA {minutes}:{seconds:02d}']
    self._time, self._step = now, step
    self._bar.set_postfix_str(', '.join(words))
    if self._bar.disable:
      self.say(', '.join([f'step {step}/{self._bar.total}', *eta, *words]))
    return rates

  @contextlib.contextmanager
  def paused(self) -> Iterator[None]:
    """Leaves the time of something else (an evaluation) out of the rate."""
    start = time.monotonic()
    yield
    self._time += time.monotonic() - start

  def say(self, text: str) -> None:
    """Prints a line without tearing the bar, in one of the processes."""
    if parallel.process_id() == 0:
      self._bar.write(text, file=sys.stderr)
      sys.stderr.flush()

  def __enter__(self) -> Progress:
    return self

  def __exit__(self, *error: object) -> None:
    self._bar.close()


def counted(batches: Iterator[Batch], split: str) -> Iterator[Batch]:
  """Passes batches on, and tells how many examples are through: a bar on a terminal, elsewhere lines, ever more seldom.

  The clock starts after the first batch, which compiles. How many there will be, nobody knows: there is no ETA.
  """
  num_examples = 0
  for batch in itertools.islice(batches, 1):
    yield batch
    num_examples = int(np.count_nonzero(batch['mask']))
  num_first, start, next_seconds = num_examples, time.monotonic(), QUIET_SECONDS
  with _open_bar(
    desc=split, initial=num_first, unit=' examples', unit_scale=True, delay=QUIET_SECONDS, leave=False) as bar:
    for batch in batches:
      yield batch
      num_new = int(np.count_nonzero(batch['mask']))
      bar.update(num_new)
      num_examples += num_new
      seconds = time.monotonic() - start
      if bar.disable and seconds >= next_seconds and parallel.process_id() == 0:
        rate = (num_examples - num_first) / seconds
        print(f'{split}: {num_examples:,} examples, {rate:,.0f} examples/s', file=sys.stderr, flush=True)
        next_seconds = 2 * seconds
