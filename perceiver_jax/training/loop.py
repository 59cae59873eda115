"""The run: trains a task in a workdir, resumes where it was left, and ends with the figures of the best checkpoint."""

from __future__ import annotations

import contextlib
import functools
import math
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, TextIO

import jax
from absl import logging
from ml_collections import ConfigDict

from perceiver_jax import metrics
from perceiver_jax.config.values import check, parse_best
from perceiver_jax.processes import parallel
from perceiver_jax.processes.interruption import INTERRUPTED, Agreement, Interruption
from perceiver_jax.runs.workdir import FINISHED_MARK, Workdir, check_same_config, last_line_if_finished
from perceiver_jax.training.evaluate import evaluate, predictor
from perceiver_jax.training.experiment import Experiment, build, open_split, open_splits
from perceiver_jax.training.init_from import init_from
from perceiver_jax.training.profile import profiler
from perceiver_jax.training.progress import Progress, Window, summary
from perceiver_jax.training.step import averaged, evaluate_batch
from perceiver_jax.types import NumericsError, Task, TrainState, Tree, UserError, blank_batch

if TYPE_CHECKING:
  from perceiver_jax.data.dataset import Dataset

FINISHED = 0  # exit code


def due(step: int, every: int, last: int) -> bool:
  """Whether something done every `every` steps, and after the last, is to be done when `step` steps have been taken."""
  return step == last or (step > 0 and step % every == 0)


class Run(NamedTuple):
  """Holds what the parts of one run share."""

  config: ConfigDict
  workdir: Workdir
  task: Task
  train_set: Dataset
  eval_sets: dict[str, Dataset]             # {split: ...}, of config.eval.splits and final_splits
  experiment: Experiment
  interruption: Interruption
  is_ending: Agreement


def train(config: ConfigDict, workdir: str, task: Task, *, profile_steps: int = 0) -> int:
  """Trains to `config.num_steps`, or to the first SIGINT or SIGTERM, and returns the exit code.

  Several processes (see training/parallel.py) do it together, and all return the same code.

  Args:
    config: what `configs/` describes.
    workdir: the folder of the run. One that holds checkpoints of the same config is resumed, bit for bit. Process 0
      alone needs it.
    task: what to train.
    profile_steps: how many steps, after the first two, to trace into `workdir`/profile; 0 traces none.

  Raises:
    UserError: the config, the task or the workdir cannot be used.
    NumericsError: `config.max_skipped` updates in a row were not finite, or the last figures are not. What was saved
      stays.
  """
  check(config)
  experiment = build(config, task)
  check_same_config(config)
  parallel.check_batch_size(config.batch_size, config.micro_batches)
  # Before anything is written, and before there is a thread that would outlive a refusal.
  last_line = last_line_if_finished(config, workdir)
  if last_line:
    _say(f'{workdir} has finished already: {summary(last_line)}')
    _check_figures(last_line)
    return FINISHED
  train_set = open_split(config, task, 'train', is_training=True)
  eval_sets = open_splits(config, task, (*config.eval.splits, *config.eval.final_splits))
  template = jax.eval_shape(experiment.init)
  _check_best(config, task, experiment, template, eval_sets)
  _read_first_batches(config, eval_sets)
  with Interruption() as interruption, Workdir(config, workdir, template) as folder:
    make = functools.partial(_new_state, config, experiment)
    with interruption.at_once():
      state, extras = folder.first_state(make)
    if int(state.step):
      _say(f'Resuming at step {int(state.step)} of {config.num_steps}.', file=sys.stderr)
    folder.open_log(int(state.step))
    folder.write_class_names(train_set.class_names)
    run = Run(
      config, folder, task, train_set, eval_sets, experiment, interruption, Agreement(interruption))
    if int(state.step) < config.num_steps:
      _say('Compiling the training step ...', file=sys.stderr)
    step = _take_steps(run, state, extras, profile_steps)
    folder.wait()
    exit_code = INTERRUPTED if run.is_ending.reached else _finish(run)
    if exit_code == INTERRUPTED:
      _say(f'Stopped by {run.is_ending.cause} and saved. The same command resumes at step {step}.')
  return exit_code


def _say(text: str, file: TextIO | None = None) -> None:
  """Prints it, in one of the processes."""
  if parallel.process_id() == 0:
    print(text, file=file, flush=True)


def _check_best(
  config: ConfigDict, task: Task, experiment: Experiment, template: TrainState, eval_sets: dict[str, Dataset],
) -> None:
  """Raises UserError where `checkpoint.best` names nothing that is measured: it would show after hours of training."""
  best = parse_best(config.checkpoint.best)
  if best is None or task.scores is not None:  # whose names nobody knows yet
    return
  names = []
  for split in config.eval.splits:
    batch = blank_batch(eval_sets[split].spec, 1)
    means, _ = jax.eval_shape(
      functools.partial(evaluate_batch, task, experiment.apply), template.params, template.state, batch)
    names += [f'{split}/{name}' for name in means]
  if best[1] not in names:
    raise UserError(
      f'checkpoint.best={config.checkpoint.best!r}: {best[1]} is not measured; there are {", ".join(names)}')


def _read_first_batches(config: ConfigDict, eval_sets: dict[str, Dataset]) -> None:
  """Reads a batch of each split: a fault of the test data should not show after hours of training."""
  from perceiver_jax.data import pipeline

  size = parallel.round_up(config.eval.batch_size)
  for split, dataset in eval_sets.items():
    with contextlib.closing(pipeline.batches(
        dataset, split, batch_size=size, is_training=False, rows=parallel.rows(size))) as batches:
      next(batches)


def _new_state(config: ConfigDict, experiment: Experiment) -> tuple[TrainState, dict]:
  """Makes the state of a run without a checkpoint: from its seed, or from `config.init_from`."""
  state = experiment.init()
  if config.init_from:
    params, model_state = init_from(config, state.params, state.state)
    state = state._replace(params=params, state=model_state, ema=None if state.ema is None else params)
  return state, {'window': {}, 'evaluated': False}


def _take_steps(run: Run, state: TrainState, extras: dict, profile_steps: int) -> int:
  """Trains from `state` to the last step or an interruption, saved either way. Returns the number of steps taken."""
  from perceiver_jax.data import pipeline

  config, last, first = run.config, run.config.num_steps, int(state.step)
  step, evaluated, window = first, extras['evaluated'], Window(extras['window'])
  state = parallel.replicate(state)
  with (
    contextlib.closing(pipeline.batches(
      run.train_set, 'train', batch_size=config.batch_size, is_training=True, seed=config.seed, first_step=first,
      rows=parallel.rows(config.batch_size))) as batches,
    Progress(first, last, config.batch_size) as progress,
    profiler(run.workdir.path, first, profile_steps if parallel.process_id() == 0 else 0) as before_step,
  ):
    while True:
      # Figures come before the checkpoint of the same step: that is how it knows whether it is the best.
      values = None
      if due(step, config.eval.every_steps, last) and not evaluated:
        with progress.paused():
          values = _evaluate(run, averaged(state), state.state, config.eval.splits)
        evaluated = values is not None
        if values is not None:
          run.workdir.write(step, values)
          progress.say(f'step {step}: {summary(values)}')
          if (best := parse_best(config.checkpoint.best)) and best[1] not in values:
            logging.warning('checkpoint.best: %s was not measured; there are %s', best[1], ', '.join(values))
      is_ending = run.is_ending()
      # Every evaluated step is saved, or the best could not be kept.
      is_new = step > first and (due(step, config.checkpoint.every_steps, last) or is_ending)
      if is_new or values is not None:
        extras = {'window': window.totals(), 'evaluated': evaluated}
        run.workdir.save(step, state, extras, values)
      if step == last or is_ending:
        return step
      before_step(step)
      batch = parallel.shard(next(batches))
      with run.interruption.at_once() if step == first else contextlib.nullcontext():  # the first call compiles
        state, means = run.experiment.train_step(state, batch)
      step, evaluated = step + 1, False
      window.add(means)
      progress.advance()
      if step == first + 1:
        jax.block_until_ready(means)
        progress.restart_clock(step)
      if due(step, config.log.every_steps, last):
        values = {f'train/{name}': value for name, value in metrics.divide(window.totals()).items()}
        window = Window()
        run.workdir.write(step, {**values, **progress.report(step, values)})
        _check_numerics(state, config.max_skipped)


def _evaluate(run: Run, params: Tree, state: Tree, splits: Sequence[str]) -> dict[str, float] | None:
  """Returns the figures of some splits, {'split/name': value}; None if it was interrupted."""
  values: dict[str, float] = {}
  for split in splits:
    found = evaluate(
      run.task, run.experiment, params, state, split, run.eval_sets[split],
      batch_size=run.config.eval.batch_size, interrupted=run.is_ending)
    if found is None:
      return None
    values |= found.values
  return values


def _check_numerics(state: TrainState, max_skipped: int) -> None:
  num_skipped = int(parallel.unreplicate(state.num_skipped))
  if num_skipped >= max_skipped:
    raise NumericsError(
      f'the last {num_skipped} updates were not finite (NaN or infinite) and were skipped; the run stops.\n'
      'Lower optimizer.peak_lr, or look at the data. Checkpoints from before are intact.')


def _check_figures(line: dict[str, float]) -> None:
  """Raises NumericsError where a run that took all its steps has diverged; `line` is the last of its log."""
  for name, value in line.items():
    if name.endswith('/loss') and not math.isfinite(value):
      raise NumericsError(
        f'{name} is {value} by the checkpoint of step {line["checkpoint/best_step"]:.0f}: the run diverged.\n'
        'Lower optimizer.peak_lr, or look at the data, and train into another --workdir.')


def _finish(run: Run) -> int:
  """Evaluates the best checkpoint on the final splits, draws, and writes the line that says: the run has finished."""
  state, best = run.workdir.best_state()
  params, model_state = parallel.replicate((averaged(state), state.state))
  values = _evaluate(run, params, model_state, run.config.eval.final_splits)
  if values is None:
    return INTERRUPTED
  line = {**values, 'checkpoint/best_step': float(best), FINISHED_MARK: 1.0}
  if parallel.process_id() == 0:
    _draw(run, state, line)
  run.workdir.write(run.config.num_steps, line)
  _say(f'Finished {run.config.num_steps} steps: {summary(values)}, by the checkpoint of step {best}. '
       f'Everything is in {run.workdir.path}')
  _check_figures(line)
  return FINISHED


def _draw(run: Run, state: TrainState, line: dict[str, float]) -> None:
  """The picture of the run, of which `line` is to be the last of its log. A failure is logged, and is no more."""
  if not run.task.draw:
    return
  path = os.path.join(run.workdir.path, 'summary.png')
  try:
    predict = predictor(run.experiment, averaged(state), state.state)
    run.task.draw(predict, [*run.workdir.history(), {'step': run.config.num_steps, **line}], path)
  except Exception:  # whatever it is, it is worth less than the figures of a run
    logging.warning('%s could not be drawn; the run is complete without it', path, exc_info=True)
