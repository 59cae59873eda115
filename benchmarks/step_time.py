"""What a training step of any config costs here: examples per second, share of the machine, memory, compilation.

  python -m benchmarks.step_time --config=configs/imagenet.py --batch_size=1    writes benchmarks/results/step_time.json
  python -m benchmarks.step_time --config=configs/imagenet.py:perceiver --batch_size=64 --config.remat=dots

It is the step that train.py compiles, over all devices, on made-up examples. FLOPs are those of the model as both
papers count them (perceiver_jax/planning/flops.py), three times the forward pass, whatever a cheaper path or
rematerialisation computes; so the share may pass 1. What it is a share of, the product of large matrices in the dtype
of the step, is measured in the same round, and then the share is a median over rounds.
"""

from __future__ import annotations

import argparse
import functools
import operator
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jmp
from absl import flags as absl_flags
from ml_collections import ConfigDict

from benchmarks import record, timing
from perceiver_jax.commands.answer import answer, check_all_read
from perceiver_jax.config import overrides
from perceiver_jax.data import pipeline, synthetic
from perceiver_jax.data.labelled_images import mixed
from perceiver_jax.planning.flops import forward_flops
from perceiver_jax.planning.rate import products_per_second
from perceiver_jax.processes import parallel
from perceiver_jax.tasks import make_task
from perceiver_jax.training import experiment
from perceiver_jax.types import Batch, Task

PACKAGES = ('jax', 'jaxlib', 'dm-haiku', 'optax', 'numpy')

Row = dict[str, Any]


def batch_of(config: ConfigDict, task: Task) -> Batch:
  """Returns a training batch of noise, of `config.batch_size` examples; with partners where pictures are mixed."""
  noise = synthetic.dataset({**task.inputs, **task.targets}, 2 * config.batch_size)
  dataset = mixed(noise) if config.data.get('mixing', 'none') != 'none' else noise
  return next(pipeline.batches(dataset, 'train', batch_size=config.batch_size, is_training=True, seed=config.seed))


def measure(name: str, config: ConfigDict, repeats: int) -> Row:
  """The one row of the table. Raises UserError where the config cannot be trained, or its batch not be divided."""
  parallel.check_batch_size(config.batch_size, config.micro_batches)
  task = make_task(config)
  built = experiment.build(config, task)
  state, batch = parallel.replicate(built.init()), parallel.shard(batch_of(config, task))
  timing.say('Compiling the training step ...')
  cpu, start = time.process_time(), time.perf_counter()
  compiled = built.train_step.lower(state, batch).compile()  # type: ignore[attr-defined]  # of pmap, a Callable to us
  compile_seconds, compile_cpu_seconds = time.perf_counter() - start, time.process_time() - cpu
  held = [state]

  def step() -> None:
    held[0], means = compiled(held[0], batch)  # the state is used up
    jax.block_until_ready((held[0], means))

  call = timing.measured(step)
  rates: list[float] = []
  dtype = jmp.get_policy(config.precision).compute_dtype

  def step_and_products() -> timing.Taken:
    rates.append(parallel.num_devices() * products_per_second(dtype))
    return call()

  taken = timing.in_turns({name: step_and_products}, repeats, name)[name]
  return {
    'config': name, 'batch_size': config.batch_size, 'micro_batches': config.micro_batches,
    'precision': config.precision, 'devices': parallel.num_devices(),
    'compile_seconds': compile_seconds, 'compile_cpu_seconds': compile_cpu_seconds,
    **rates_of(taken, rates, config.batch_size, 3 * forward_flops(config)), **memory_of(compiled)}


def rates_of(
  taken: Sequence[timing.Taken], product_rates: Sequence[float], batch_size: int, flops_per_example: int,
) -> Row:
  """Figures of the rounds: seconds of a step, and what follows from them."""
  seconds = [one.seconds for one in taken]
  achieved = [batch_size * flops_per_example / each for each in seconds]
  return {
    'seconds': timing.figure(seconds), 'cpu_seconds': timing.figure([one.cpu_seconds for one in taken]),
    'examples_per_second': timing.figure([batch_size / each for each in seconds]),
    'flops_per_example': flops_per_example,
    'flops_per_second': timing.figure(achieved), 'product_flops_per_second': timing.figure(product_rates),
    'share': timing.ratios(achieved, product_rates)}


def memory_of(compiled: Any) -> Row:
  """Bytes of one device: the temporaries and arguments of the step, and the most that a step holds at once."""
  found = compiled.memory_analysis()
  arguments, temporaries = found.argument_size_in_bytes, found.temp_size_in_bytes
  # What is donated is both an argument and an output.
  most = arguments + temporaries + found.output_size_in_bytes - found.alias_size_in_bytes
  return {'argument_bytes': arguments, 'temp_bytes': temporaries, 'peak_bytes': most}


# The command.


def main(argv: Sequence[str] | None = None) -> int:
  """Measures what the flags say. Returns the exit code."""
  return answer(_read, argv)


def _read(argv: list[str]) -> Callable[[], int]:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
  timing.add_flags(parser, 'step_time')
  parser.add_argument('--config', required=True, help='configs/imagenet.py:perceiver; --config.key=value sets a key')
  parser.add_argument('--batch_size', type=timing.positive, help="over all devices, in place of the config's own")
  flags, others = parser.parse_known_args(argv[1:])
  if flags.batch_size:
    others.append(f'--config.batch_size={flags.batch_size}')
  config = overrides.load(flags.config)
  check_all_read(overrides.override(config, [argv[0], *others], absl_flags.FlagValues()))
  return functools.partial(_measure_and_report, flags, config)


def _measure_and_report(flags: argparse.Namespace, config: ConfigDict) -> int:
  with timing.cores(flags.threads):
    row = measure(flags.config, config, flags.repeats)
  settings = {'threads': flags.threads, 'repeats': flags.repeats, 'config': config.to_dict()}
  record.write(flags.json, {
    **record.surroundings(PACKAGES), 'device': jax.devices()[0].device_kind, 'settings': settings, 'rows': [row]})
  print(report([row]))
  return 0


def report(rows: Sequence[Row]) -> str:
  """The figures as a page for people, in Markdown."""
  def spread(name: str, scale: float = 1.0) -> Callable[[Row], str]:
    return lambda row: timing.spread({end: scale * value for end, value in row[name].items()})

  return timing.table({
    'config': operator.itemgetter('config'), 'batch': operator.itemgetter('batch_size'),
    'seconds': spread('seconds'), 'CPU seconds': spread('cpu_seconds'), 'examples/s': spread('examples_per_second'),
    'GFLOP/s': spread('flops_per_second', 1e-9), 'matrix product GFLOP/s': spread('product_flops_per_second', 1e-9),
    'share': spread('share'), 'peak GiB': lambda row: row['peak_bytes'] / 2**30,
    'compile s': operator.itemgetter('compile_seconds'),
    'compile s, CPU': operator.itemgetter('compile_cpu_seconds')}, rows)


if __name__ == '__main__':
  jax.config.update('jax_enable_compilation_cache', False)  # or an earlier run's would be found, in no time
  sys.exit(main())
