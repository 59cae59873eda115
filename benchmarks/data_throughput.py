"""How many ImageNet pictures a core makes ready for training, ours against tf.data, and where the time goes.

  python -m benchmarks.data_throughput                          writes benchmarks/results/data_throughput.json
  python -m benchmarks.data_throughput --tf_python=PYTHON       that of an environment with TensorFlow

Both read the same made-up photographs, on the same core, in turns: ours as train.py reads imagenet2012, with one
thread; tf.data as in tf_data.py. A figure is pictures by seconds of the processor, not of the clock, so that what else
runs on the machine counts for little; a ratio is of two passes one right after the other. Medians, minima, maxima.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import dataclasses
import functools
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import cv2
import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from benchmarks import photos, record
from benchmarks.timing import Figure, figure
from perceiver_jax.data import pipeline, tfds_images
from perceiver_jax.data.augmentation import random_crop, resize
from perceiver_jax.data.dataset import Dataset, Example
from perceiver_jax.data.randaugment import rand_augment
from perceiver_jax.data.tfds_images import decode
from perceiver_jax.types import UserError

ROOT = pathlib.Path(__file__).resolve().parent.parent
SIZE = 224
STAGES = ('read and parse', 'decode', 'crop and flip', 'RandAugment', 'resize')
REST = 'order, check, stack'
PACKAGES = ('numpy', 'opencv-python-headless', 'scipy', 'grain', 'array_record', 'tensorflow-datasets')
# Perceiver IO on ImageNet (2107.14795, appendix A.1): a step takes two pictures an example, for MixUp and CutMix.
STEPS_PER_SECOND, BATCH_SIZE, NUM_DEVICES, PICTURES_PER_EXAMPLE = 4.85, 1024, 64, 2
DEVICES_PER_HOST = 4                        # as of a v4-8

Measure = Callable[[], tuple[int, float]]   # makes one pass -> (pictures, seconds of the processor)


# Ours.


@dataclasses.dataclass(frozen=True)
class Staged:
  """The records of a data set and what its `prepare` does to them, by the same functions, each stage timed."""

  source: Any                            # a TfdsSource
  seconds: dict[str, float]              # a defaultdict

  def __len__(self) -> int:
    return len(self.source)

  def __getitem__(self, index: int) -> Example:
    start = time.thread_time()
    record = self.source.records[index]
    start = self._lap('read and parse', start)
    image = decode(record['image'], 3)
    self._lap('decode', start)
    return {'image': image, 'label': np.array(record['label'], np.int32)}

  def name(self, index: int) -> str:
    return self.source.name(index)

  def prepare(self, example: Example, *, random: np.random.Generator, position: int, step: int) -> Example:
    image, start = example['image'], time.thread_time()
    top, left, height, width = random_crop(image.shape[0], image.shape[1], random)
    part = image[top:top + height, left:left + width]
    if random.integers(2):
      part = cv2.flip(part, 1)
    start = self._lap('crop and flip', start)
    part = rand_augment(part, random, num_layers=4, magnitude=5)
    start = self._lap('RandAugment', start)
    part = resize(part, SIZE)
    self._lap('resize', start)
    return {**example, 'image': part}

  def _lap(self, stage: str, start: float) -> float:
    now = time.thread_time()
    self.seconds[stage] += now - start
    return now


@contextlib.contextmanager
def training(dataset: Dataset, batch_size: int) -> Iterator[Measure]:
  """Training batches of one thread, which reads ahead: so what it finished during a pass is counted."""
  count: collections.Counter[str] = collections.Counter()

  def counted(record: Example, **context: Any) -> Example:
    example = dataset.prepare(record, **context)
    count['images'] += 1
    return example

  batches = pipeline.batches(
    dataset._replace(prepare=counted), 'train', batch_size=batch_size, is_training=True, num_threads=1)

  def measure() -> tuple[int, float]:
    before, start = count['images'], time.process_time()
    while count['images'] < before + len(dataset.source):
      next(batches)
    result = count['images'] - before, time.process_time() - start
    _wait_for_rest(count)
    return result

  with contextlib.closing(batches):
    yield measure


def _wait_for_rest(count: collections.Counter[str]) -> None:
  before = None
  while count['images'] != before:
    before = count['images']
    time.sleep(0.1)


def evaluation(dataset: Dataset, batch_size: int) -> tuple[int, float]:
  start = time.process_time()
  batches = pipeline.batches(dataset, 'test', batch_size=batch_size, is_training=False, num_threads=1)
  num_images = sum(int(batch['mask'].sum()) for batch in batches)
  return num_images, time.process_time() - start


# tf.data.


@contextlib.contextmanager
def tf_data(python: str, records: pathlib.Path, batch_size: int) -> Iterator[tuple[Callable[[str], Measure], str]]:
  """(kind -> measure, TensorFlow's version), of tf_data.py, which runs until the end of the context."""
  command = [python, str(ROOT / 'benchmarks' / 'tf_data.py'), str(records), str(batch_size)]
  process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

  assert process.stdin and process.stdout   # both piped
  to, answers = process.stdin, process.stdout

  def answer() -> dict[str, Any]:
    line = answers.readline()
    if not line:
      raise UserError(f'{" ".join(command)} ended with exit code {process.wait()}; it says why above.')
    return json.loads(line)

  def ask(kind: str) -> tuple[int, float]:
    to.write(f'{kind}\n')
    to.flush()
    reply = answer()
    return reply['images'], reply['seconds']

  with process:                             # closes stdin, which ends it, and waits
    yield (lambda kind: lambda: ask(kind)), answer()['tensorflow']


# Measuring.


@contextlib.contextmanager
def one_core() -> Iterator[None]:
  """Keeps to one core, with what is started inside, where the system can (Linux); OpenCV starts no threads."""
  num_threads = cv2.getNumThreads()
  cv2.setNumThreads(1)
  before = os.sched_getaffinity(0) if hasattr(os, 'sched_getaffinity') else set()
  if before:
    os.sched_setaffinity(0, {max(before)})
  try:
    yield
  finally:
    cv2.setNumThreads(num_threads)
    if before:
      os.sched_setaffinity(0, before)


def in_turns(measures: dict[str, Measure], repeats: int) -> dict[str, list[float]]:
  """{name: pictures a second, a number per repeat}, after a pass of each that does not count."""
  rates: dict[str, list[float]] = {name: [] for name in measures}
  for repeat in tqdm(range(-1, repeats), desc='passes', unit='round'):
    for name, measure in measures.items():
      num_images, seconds = measure()
      if repeat >= 0:
        rates[name].append(num_images / seconds)
  return rates


def rows(rates: dict[str, list[float]]) -> list[dict[str, Any]]:
  """One row per pipeline; 'tf_data' and 'ratio' (of two passes next to each other) are None without TensorFlow."""
  table = []
  for name in ('training', 'evaluation'):
    ours, theirs = rates[name], rates.get(f'{name}, tf.data')
    ratios = [one / other for one, other in zip(ours, theirs, strict=True)] if theirs else None
    table.append({
      'pipeline': name, 'ours': figure(ours), 'tf_data': theirs and figure(theirs), 'ratio': ratios and figure(ratios)})
  return table


def shares(seconds: Mapping[str, float], total: float) -> dict[str, float]:
  """Of the whole time, by stage; they add to 1."""
  known = {stage: seconds[stage] / total for stage in STAGES}
  return known | {REST: 1 - sum(known.values())}


def needs(images_per_core_second: float) -> dict[str, float]:
  """What the paper's rate, that of NUM_DEVICES, asks of a host of DEVICES_PER_HOST."""
  images = STEPS_PER_SECOND * BATCH_SIZE / NUM_DEVICES * PICTURES_PER_EXAMPLE
  return {
    'pictures_per_second_per_device': images, 'pictures_per_second_per_host': DEVICES_PER_HOST * images,
    'cores_per_host': DEVICES_PER_HOST * images / images_per_core_second}


def run(num_photos: int, batch_size: int, repeats: int, tf_python: str) -> dict[str, Any]:
  """Measures all; what is written as JSON."""
  with contextlib.ExitStack() as stack:
    stack.enter_context(one_core())
    directory = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory())) / 'photos'
    files = [photos.jpeg(photos.photo(seed)) for seed in tqdm(range(num_photos), desc='photographs')]
    photos.write_set(directory, files)
    config = ConfigDict({'path': str(directory), 'image_size': SIZE, 'num_channels': 3, 'num_classes': 1})
    train, test = (tfds_images.load(config, split, is_training=split == 'train') for split in ('train', 'test'))
    measures = {
      'training': stack.enter_context(training(train, batch_size)),
      'evaluation': lambda: evaluation(test, batch_size),
    }
    versions = {}
    if pathlib.Path(tf_python).exists():
      [records] = directory.glob('photos-train.*')
      ask, versions['tensorflow'] = stack.enter_context(tf_data(tf_python, records, batch_size))
      # Each right after ours of the same kind.
      measures = {name: each for kind, measure in measures.items()
                  for name, each in ((kind, measure), (f'{kind}, tf.data', ask(kind)))}
    rates = in_turns(measures, repeats)
    by_stage = stage_shares(train, batch_size, repeats)
  result = record.surroundings(PACKAGES)
  result['versions'] |= versions
  table = rows(rates)
  return result | {
    'settings': {'photos': num_photos, 'mean_bytes': round(statistics.mean(map(len, files))), 'batch_size': batch_size,
                 'repeats': repeats, 'size': SIZE, 'unit': 'pictures per second of one core'},
    'rows': table, 'shares': by_stage, 'needs': needs(table[0]['ours']['median'])}


def stage_shares(dataset: Dataset, batch_size: int, repeats: int) -> dict[str, float]:
  """Of the training pipeline's time, over all passes but the first."""
  staged = Staged(dataset.source, collections.defaultdict(float))
  with training(dataset._replace(source=staged, prepare=staged.prepare), batch_size) as measure:
    measure()
    staged.seconds.clear()
    start = time.process_time()             # with what it reads ahead after a pass
    for _ in range(repeats):
      measure()
    return shares(staged.seconds, time.process_time() - start)


def report(result: dict[str, Any]) -> str:
  """The figures as a page for people, in Markdown."""
  def cell(value: Figure | None, digits: int) -> str:
    if value is None:
      return '–'
    return f'{value["median"]:,.{digits}f} ({value["min"]:,.{digits}f} to {value["max"]:,.{digits}f})'

  lines = ['| pictures a second, one core | ours | tf.data | ratio |', '|---|---|---|---|']
  lines += [f'| {row["pipeline"]} | {cell(row["ours"], 0)} | {cell(row["tf_data"], 0)} | {cell(row["ratio"], 2)} |'
            for row in result['rows']]
  lines += ['', '| stage of training | share |', '|---|---|']
  lines += [f'| {stage} | {share:.0%} |' for stage, share in result['shares'].items()]
  need = result['needs']
  lines += ['', '| at the rate of the paper | |', '|---|---|',
            f'| pictures a second for one device | {need["pictures_per_second_per_device"]:.0f} |',
            f'| pictures a second for a host of {DEVICES_PER_HOST} | {need["pictures_per_second_per_host"]:.0f} |',
            f'| cores for that | {need["cores_per_host"]:.1f} |']
  return '\n'.join(lines)


def _read(argv: list[str]) -> Callable[[], int]:
  """What the command line asks for, not yet begun."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--repeats', type=int, default=7)
  parser.add_argument('--photos', type=int, default=256)
  parser.add_argument('--batch_size', type=int, default=64)
  parser.add_argument('--json', type=pathlib.Path, default=ROOT / 'benchmarks' / 'results' / 'data_throughput.json')
  parser.add_argument('--tf_python', default=str(ROOT / '.venv-tf' / 'bin' / 'python'))
  flags = parser.parse_args(argv[1:])
  if min(flags.repeats, flags.photos, flags.batch_size) < 1:
    parser.error('--repeats, --photos and --batch_size are at least 1')
  return functools.partial(_measure_and_report, flags)


def _measure_and_report(flags: argparse.Namespace) -> int:
  try:
    result = run(flags.photos, flags.batch_size, flags.repeats, flags.tf_python)
  except UserError as error:
    print(error, file=sys.stderr)
    return 1
  record.write(flags.json, result)
  print(report(result))
  if 'tensorflow' not in result['versions']:
    print(f'\nOurs alone, as there is no {flags.tf_python}: `make .venv-tf/.requirements` installs TensorFlow there '
          '(2 GB); --tf_python names that of another environment.', file=sys.stderr)
  return 0


if __name__ == '__main__':
  sys.exit(_read(sys.argv)())
