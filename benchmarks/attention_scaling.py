"""What one cross-attend costs as its inputs grow: time and temporary memory of every path, and of the authors' module.

  python -m benchmarks.attention_scaling --threads=1                  writes benchmarks/results/attention_scaling.json
  python -m benchmarks.attention_scaling --sizes=448,896 --batch=1 --paths=factored --official=PATH

The work is the encoder's of Perceiver IO on ImageNet: latents [B, N, 1024] read pixels [B, size ** 2, 3] with Fourier
positions of 64 bands, by one head of 261 channels. 'forward' is that; 'step' also differentiates it by all parameters
and the latents. --official names a clone of google-deepmind/deepmind-research, whose module gets the joined inputs; it
makes positions anew each time, as in the authors' model. The paths of a row take turns in one process. A ratio above 1
says how many times the other one's time this path saves; None, that the other was not measured.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import operator
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import haiku as hk
import jax
import jax.numpy as jnp

from benchmarks import peer_work, record, timing
from perceiver_jax.commands.answer import answer
from perceiver_jax.core.attention import Mlp, layer_norm
from perceiver_jax.core.cross_attend import CrossAttend
from perceiver_jax.core.input_array import InputArray
from perceiver_jax.core.position_encoding import fourier_grid
from perceiver_jax.types import UserError

PATHS = ('dense', 'factored', 'chunked')  # of ours
MLP = 'mlp'                               # what follows the attention, which is the same on every path, by itself
OFFICIAL = 'official'
BASES = ('dense', OFFICIAL)               # what ratios are to
NUM_BANDS, LATENT_CHANNELS, NUM_COLOURS = 64, 1024, 3
PACKAGES = ('jax', 'jaxlib', 'dm-haiku', 'numpy')
GIB = 2**30

Forward = Callable[[jax.Array, jax.Array], jax.Array]  # (latents, pixels) -> latents
Row = dict[str, Any]


class Work(NamedTuple):
  size: int
  batch: int
  num_latents: int
  what: str            # 'forward' or 'step'

  @property
  def num_elements(self) -> int:
    return self.size**2


class Program(NamedTuple):
  run: Callable[[], Any]  # returns when it is done
  temp_bytes: int
  argument_bytes: int


# The two models.


def ours(path: str, size: int) -> Forward:
  def forward(latents: jax.Array, pixels: jax.Array) -> jax.Array:
    if path == MLP:
      return latents + Mlp()(layer_norm(latents, 'mlp_norm'))
    inputs = InputArray(pixels, fourier_grid((size, size), NUM_BANDS))
    return CrossAttend(attention_impl=path)(latents, inputs, is_training=True)[0]
  return forward


def official(modules: peer_work.Official, size: int) -> Forward:
  def forward(latents: jax.Array, pixels: jax.Array) -> jax.Array:
    encode = modules.position_encoding.FourierPositionEncoding(
      index_dims=(size, size), num_bands=NUM_BANDS, max_resolution=(size, size))
    inputs = jnp.concatenate([pixels, encode(batch_size=pixels.shape[0])], axis=-1)
    return modules.perceiver.CrossAttention(num_heads=1, widening_factor=1)(latents, inputs, is_training=True)
  return forward


# Compiling and measuring.


def program(forward: Forward, work: Work) -> Program:
  """Compiles it, on made-up arrays; nothing has run yet but the making of parameters."""
  keys = jax.random.split(jax.random.key(0), 5)
  shape = (work.batch, work.num_latents, LATENT_CHANNELS)
  latents, direction = (jax.random.normal(key, shape) for key in keys[:2])
  pixels = jax.random.normal(keys[2], (work.batch, work.num_elements, NUM_COLOURS))
  model = hk.transform(forward)
  params = jax.jit(model.init)(keys[3], latents, pixels)

  def loss(params: hk.Params, latents: jax.Array, pixels: jax.Array, direction: jax.Array, key: jax.Array) -> jax.Array:
    return jnp.vdot(model.apply(params, key, latents, pixels), direction)

  step = jax.value_and_grad(loss, argnums=(0, 1))
  if work.what == 'step':
    compiled = jax.jit(step).lower(params, latents, pixels, direction, keys[4]).compile()
    run = functools.partial(compiled, params, latents, pixels, direction, keys[4])
  else:
    compiled = jax.jit(model.apply).lower(params, keys[4], latents, pixels).compile()
    run = functools.partial(compiled, params, keys[4], latents, pixels)
  memory: Any = compiled.memory_analysis()
  return Program(
    lambda: jax.block_until_ready(run()), memory.temp_size_in_bytes, memory.argument_size_in_bytes)


def measure(work: Work, forwards: dict[str, Forward], repeats: int, memory: int) -> tuple[list[Row], list[Row]]:
  """Rows of the paths that fit into `memory` [bytes], and what is known of those that do not."""
  title = f'{work.what}, {work.size} x {work.size}, batch {work.batch}, {work.num_latents} latents'
  programs, skipped = {}, []
  for path, forward in forwards.items():
    timing.say(f'{title}: compiling {path}')
    each = program(forward, work)
    if each.temp_bytes + each.argument_bytes <= memory:
      programs[path] = each
    else:
      skipped.append({**_names(work, path), 'temp_bytes': each.temp_bytes})
      timing.say(f'{title}: {path} needs {each.temp_bytes / GIB:.1f} GiB, more than --memory_gib; skipped')
  taken = timing.in_turns({path: timing.measured(each.run) for path, each in programs.items()}, repeats, title)
  rows = []
  for path, times in taken.items():
    seconds = timing.figure([one.seconds for one in times])
    rows.append({
      **_names(work, path),
      'seconds': seconds['median'], 'min': seconds['min'], 'max': seconds['max'],
      'cpu_seconds': timing.figure([one.cpu_seconds for one in times])['median'],
      'temp_bytes': programs[path].temp_bytes,
      'seconds_per_element': seconds['median'] / (work.batch * work.num_elements),
      **{name: value for base in BASES for name, value in against(base, taken, path).items()},
    })
  return rows, skipped


def _names(work: Work, path: str) -> Row:
  return {**work._asdict(), 'path': path}


def against(base: str, taken: dict[str, list[timing.Taken]], path: str) -> dict[str, float | None]:
  """How many times as long `base` takes, in the same round: median, min, max by the clock, and by CPU seconds."""
  names = [f'ratio_to_{base}', f'ratio_to_{base}_min', f'ratio_to_{base}_max', f'cpu_ratio_to_{base}']
  if base not in taken:
    return dict.fromkeys(names)
  clock = timing.ratios([one.seconds for one in taken[base]], [one.seconds for one in taken[path]])
  cpu = timing.ratios([one.cpu_seconds for one in taken[base]], [one.cpu_seconds for one in taken[path]])
  return dict(zip(names, [clock['median'], clock['min'], clock['max'], cpu['median']], strict=True))


def with_marginal(rows: Sequence[Row]) -> list[Row]:
  """Each with `marginal_seconds_per_element`: of those that the next smaller size lacks; None for the smallest."""
  result = []
  for row in rows:
    smaller = [other for other in rows if other['size'] < row['size'] and all(
      other[name] == row[name] for name in ('batch', 'num_latents', 'what', 'path'))]
    below = max(smaller, key=operator.itemgetter('size'), default=None)
    added = below and (row['seconds'] - below['seconds']) / (row['batch'] * (row['size']**2 - below['size']**2))
    result.append({**row, 'marginal_seconds_per_element': added})
  return result


# The command.


def main(argv: Sequence[str] | None = None) -> int:
  """Measures what the flags say. Returns the exit code."""
  return answer(_read, argv)


def _read(argv: list[str]) -> Callable[[], int]:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  timing.add_flags(parser, 'attention_scaling')
  parser.add_argument('--sizes', type=timing.positives, default=[56, 112, 224], help='pixels of a side; 56,112,224')
  parser.add_argument('--batch', type=timing.positives, default=[1, 4], help='images at once; 1,4')
  parser.add_argument('--num_latents', type=timing.positives, default=[512])
  parser.add_argument('--paths', type=lambda text: text.split(','), default=list(PATHS),
    help=f'of {",".join((*PATHS, MLP))}; {MLP} is the part that all paths share, for comparison')
  parser.add_argument('--what', type=lambda text: text.split(','), default=['forward', 'step'])
  parser.add_argument('--official', help='a clone of google-deepmind/deepmind-research')
  parser.add_argument('--peers_site', help='a folder that has einops, which the authors need')
  parser.add_argument('--memory_gib', type=float, default=8.0, help='leaves out a path that needs more')
  flags = parser.parse_args(argv[1:])
  for given, offered in ((flags.paths, (*PATHS, MLP)), (flags.what, ('forward', 'step'))):
    if unknown := [word for word in given if word not in offered]:
      raise UserError(f'there is no {unknown[0]!r}; there are {", ".join(offered)}')
  return functools.partial(_measure_and_report, flags)


def _measure_and_report(flags: argparse.Namespace) -> int:
  modules = flags.official and peer_work.official(peer_work.Folders(flags.official, peers_site=flags.peers_site))
  rows: list[Row] = []
  skipped: list[Row] = []
  with timing.cores(flags.threads):
    for names in itertools.product(flags.sizes, flags.batch, flags.num_latents, flags.what):
      work = Work(*names)
      forwards = {path: ours(path, work.size) for path in flags.paths}
      if modules:
        forwards[OFFICIAL] = official(modules, work.size)
      measured, left_out = measure(work, forwards, flags.repeats, int(flags.memory_gib * GIB))
      rows += measured
      skipped += left_out
  settings = {name: getattr(flags, name) for name in ('threads', 'repeats', 'memory_gib')}
  rows = with_marginal(rows)
  record.write(flags.json, {
    **record.surroundings(PACKAGES), 'device': jax.devices()[0].device_kind, 'settings': settings, 'rows': rows,
    'skipped': skipped})
  print(report(rows, skipped))
  return 0


def report(rows: Sequence[Row], skipped: Sequence[Row]) -> str:
  """The figures as a page for people, in Markdown."""
  def spread(name: str, scale: float = 1.0, ends: tuple[str, str] = ('min', 'max')) -> Callable[[Row], Any]:
    keys = {'median': name, 'min': ends[0], 'max': ends[1]}
    return lambda row: row[name] and timing.spread({word: scale * row[key] for word, key in keys.items()})

  columns: dict[str, Callable[[Row], Any]] = {
    **{name: operator.itemgetter(name) for name in ('size', 'batch', 'num_latents', 'what', 'path')},
    'ms': spread('seconds', 1e3),
    'CPU ms': lambda row: 1e3 * row['cpu_seconds'],
    'temp MiB': lambda row: row['temp_bytes'] / 2**20,
    'ns/element': lambda row: 1e9 * row['seconds_per_element'],
    'ns/added element': lambda row: row['marginal_seconds_per_element'] and 1e9 * row['marginal_seconds_per_element'],
  }
  for base in BASES:
    name = f'ratio_to_{base}'
    columns[f'{base} / this'] = spread(name, ends=(f'{name}_min', f'{name}_max'))
    columns[f'{base} / this, CPU'] = operator.itemgetter(f'cpu_{name}')
  lines = [timing.table(columns, rows)]
  if skipped:
    lines += ['', 'Skipped, as they need more than --memory_gib: ' + '; '.join(
      f'{row["path"]} {row["what"]} at {row["size"]}, batch {row["batch"]}, {row["num_latents"]} latents '
      f'({row["temp_bytes"] / GIB:.1f} GiB)' for row in skipped) + '.']
  return '\n'.join(lines)


if __name__ == '__main__':
  sys.exit(main())
