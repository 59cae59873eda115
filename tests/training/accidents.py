"""train.py with an accident, as a program: `accidents.py WHAT SPLIT STEP HOURS --config=... --workdir=...`

WHAT happens while the batch of that step of that split is read:
  SIGTERM, SIGINT, SIGKILL   the process sends itself this signal; where SPLIT is compilation, while it compiles
  fill                       the disk of the workdir is filled up by a file beside it, `filler`
  limit                      the system takes no file of more than a few bytes any more, as if the disk were full
  memory                     the thread that reads it has no memory left
  second                     train.py is started on the same workdir; what came of it is in `second.json` beside it
HOURS, unless 0, are what the clock jumps forwards and back, from the first import on.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import pathlib
import resource
import signal
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]


def main(argv: list[str]) -> int:
  program, what, split, step, hours, *arguments = argv
  if int(hours):
    _let_the_clock_jump(3600 * int(hours))
  from perceiver_jax.commands.train import train

  if what == 'memory':
    _run_out_of_memory(split, int(step))
  else:
    _interrupt_reading(what, split, int(step), arguments)
  return train([program, *arguments])


def _let_the_clock_jump(seconds: int) -> None:
  now, now_ns, calls = time.time, time.time_ns, itertools.count()

  def ahead() -> int:
    return seconds if next(calls) % 6 < 3 else 0

  time.time = lambda: now() + ahead()
  time.time_ns = lambda: now_ns() + ahead() * 10**9


def _interrupt_reading(what: str, split: str, step: int, arguments: list[str]) -> None:
  from perceiver_jax.data import pipeline
  from perceiver_jax.tasks import image_classification
  from perceiver_jax.training.experiment import NUM_TRIED

  make = image_classification.make

  def make_with_accident(config):
    task = make(config)

    def forward(batch, *, is_training, **options):
      # Parameters are made with one example, and shapes are tried with a few.
      if split == 'compilation' and is_training and len(batch['mask']) not in (1, NUM_TRIED):
        _happen(what, arguments)
      return task.forward(batch, is_training=is_training, **options)

    return task._replace(forward=forward)

  image_classification.make = make_with_accident
  batches = pipeline.batches

  def batches_with_accident(dataset, name, *, first_step=0, **options):
    for index, batch in enumerate(batches(dataset, name, first_step=first_step, **options), first_step):
      if (name, index) == (split, step):
        _happen(what, arguments)
      yield batch

  pipeline.batches = batches_with_accident


def _happen(what: str, arguments: list[str]) -> None:
  beside = next(pathlib.Path(argument.partition('=')[2]) for argument in arguments if '--workdir' in argument).parent
  if what == 'fill':
    _fill(beside / 'filler')
  elif what == 'limit':
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
  elif what == 'second':
    second = subprocess.run(
      [sys.executable, str(ROOT / 'train.py'), *arguments], capture_output=True, text=True, check=False)
    (beside / 'second.json').write_text(json.dumps([second.returncode, second.stdout, second.stderr]))
  else:
    os.kill(os.getpid(), getattr(signal, what))


def _fill(path: pathlib.Path) -> None:
  with path.open('wb', buffering=0) as file:
    for size in (2**16, 1):
      try:
        while file.write(bytes(size)):
          pass
      except OSError:  # no space left for so many
        pass


def _run_out_of_memory(split: str, step: int) -> None:
  from perceiver_jax.data import digits
  from perceiver_jax.data.order import order

  records = digits.records

  @dataclasses.dataclass(frozen=True)
  class Source(digits.ArraySource):
    def __getitem__(self, index):
      if index == order(0, 0, len(self))[8 * step]:  # of seed 0 and batches of 8
        raise MemoryError('no room for this record')
      return super().__getitem__(index)

  def records_with_accident(config, name):
    source = records(config, name)
    return Source(**vars(source)) if name == split else source

  digits.records = records_with_accident


if __name__ == '__main__':
  sys.exit(main(sys.argv))
