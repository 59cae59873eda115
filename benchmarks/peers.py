"""Our models next to other people's that do the same work: time, memory, and how long they compile.

  python -m benchmarks.peers --threads=1 --what=io,v1_step --blocks=2        writes benchmarks/results/peers.json
  python -m benchmarks.peers --official=PATH --perceiver_io=PATH --peers_site=PATH

What is compared, on made-up arrays in float32, with random weights (2103.03206, section 4.1; 2107.14795, appendix A):

  io            one cross-attend, blocks x layers self-attends, a decoder of one query
  v1            blocks x (a cross-attend, layers self-attends), the mean of the latents
  flow_encoder  latents read the elements of two frames, whose features need gradients
  flow_decoder  every element asks the latents

each '_forward', or '_step': forward, and backward to all parameters, without an optimizer. Peers: `official`, the
authors' code, a clone of google-deepmind/deepmind-research; `huggingface`, transformers, which requirements-test.txt
installs; `perceiver_pytorch`, by `pip install --no-deps --target=SITE perceiver-pytorch einops`, where SITE is also
what the authors' code and `perceiver_io` need; `perceiver_io`, a clone of krasserm/perceiver-io. How they are made
equal: peer_jax.py, peer_torch.py. Each runs in a process of its own; they are called in turn, round by round, and a
ratio, how many times our time a peer takes, is of one round. Compilation comes before, one process after the other.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib.util
import itertools
import json
import operator
import os
import pathlib
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from benchmarks import peer_work, record, timing
from benchmarks.peer_work import Folders, Work
from perceiver_jax.commands.answer import answer
from perceiver_jax.types import UserError

ROOT = pathlib.Path(__file__).resolve().parent.parent
OURS = 'ours'

Row = dict[str, Any]
Ask = Callable[[], dict[str, Any]]  # makes a worker run once -> what it took


@contextlib.contextmanager
def worker(implementation: str, work: Work, folders: Folders, num_threads: int | None) -> Iterator[
    tuple[dict[str, Any], Ask]]:
  """(what it has built, ask) of a process that ends with the context. Raises UserError."""
  argument = json.dumps({
    'implementation': implementation, 'work': work._asdict(), 'folders': folders._asdict(), 'num_threads': num_threads})
  command = [sys.executable, '-m', 'benchmarks.peer_worker', argument]
  process = subprocess.Popen(
    command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=_environment(num_threads))
  assert process.stdin and process.stdout  # both piped
  asked, answers = process.stdin, process.stdout

  def answer() -> dict[str, Any]:
    line = answers.readline()
    if not line:
      raise UserError(f'{implementation}: its process ended with exit code {process.wait()}; it says why above')
    values = json.loads(line)
    if 'error' in values:
      raise UserError(f'{implementation}: {values["error"]}')
    return values

  def ask() -> dict[str, Any]:
    asked.write('\n')
    asked.flush()
    return answer()

  with process:                            # closes stdin, which ends it, and waits
    yield answer(), ask


def _environment(num_threads: int | None) -> dict[str, str]:
  """As many threads as cores, and nothing compiled found in a cache."""
  environment = {**os.environ, 'PYTHONPATH': os.pathsep.join(filter(None, [str(ROOT), os.environ.get('PYTHONPATH')]))}
  environment['JAX_ENABLE_COMPILATION_CACHE'] = 'false'
  for name in ('OMP_NUM_THREADS', 'MKL_NUM_THREADS') if num_threads else ():
    environment[name] = str(num_threads)
  return environment


def compare(
  work: Work, implementations: Sequence[str], folders: Folders, num_threads: int | None, repeats: int,
) -> tuple[list[Row], dict[str, str]]:
  """A row for each of them, ours first, and the versions of what ran. Raises UserError."""
  built, measures, rss = {}, {}, {}

  def measured(name: str, ask: Ask) -> timing.Taken:
    answer = ask()
    rss[name] = answer.pop('peak_rss_bytes')
    return timing.Taken(**answer)

  with contextlib.ExitStack() as stack:
    for name in implementations:
      timing.say(f'{work.what}: starting {name}')
      built[name], ask = stack.enter_context(worker(name, work, folders, num_threads))
      measures[name] = functools.partial(measured, name, ask)
    taken = timing.in_turns(measures, repeats, work.what)
  versions = dict(itertools.chain.from_iterable(each.pop('versions').items() for each in built.values()))
  return [row(work, name, taken, {**built[name], 'peak_rss_bytes': rss[name]}) for name in implementations], versions


def row(work: Work, name: str, taken: Mapping[str, Sequence[timing.Taken]], others: Mapping[str, Any]) -> Row:
  """Seconds of a run, and ratios: its time to ours of the same round."""
  times, ours = taken[name], taken[OURS]
  seconds = timing.figure([one.seconds for one in times])
  ratio = timing.ratios([one.seconds for one in times], [one.seconds for one in ours])
  return {
    'what': work.what, 'implementation': name, 'batch': work.batch,
    **({'num_blocks': work.num_blocks, 'num_layers': work.num_layers} if work.kind in ('io', 'v1') else {}),
    'seconds': seconds['median'], 'min': seconds['min'], 'max': seconds['max'],
    'cpu_seconds': timing.figure([one.cpu_seconds for one in times])['median'],
    'ratio': ratio['median'], 'ratio_min': ratio['min'], 'ratio_max': ratio['max'],
    'cpu_ratio': timing.ratios([one.cpu_seconds for one in times], [one.cpu_seconds for one in ours])['median'],
    **others}


# The command.


def main(argv: Sequence[str] | None = None) -> int:
  """Measures what the flags say. Returns the exit code."""
  return answer(_read, argv)


def _read(argv: list[str]) -> Callable[[], int]:
  default = Work('io_step')
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  timing.add_flags(parser, 'peers')
  parser.add_argument('--what', type=lambda text: text.split(','), default=['io', 'v1'], help=','.join(
    peer_work.WHATS) + '; without _forward or _step, both')
  parser.add_argument('--peers', type=lambda text: text.split(','), help='by default all that are at hand')
  parser.add_argument('--official', type=os.path.abspath, help='a clone of google-deepmind/deepmind-research')
  parser.add_argument('--perceiver_io', type=os.path.abspath, help='a clone of krasserm/perceiver-io')
  parser.add_argument('--peers_site', type=os.path.abspath, help='a folder of packages, as of pip install --target')
  for flag, name in SIZES.items():
    parser.add_argument(f'--{flag}', dest=name, type=timing.positive, default=getattr(default, name))
  parser.add_argument('--remat', default=default.remat, help='config.remat of our model: none, dots or layers')
  parser.add_argument('--flow_size', type=timing.positives, default=list(default.flow_size), help='height,width')
  flags = parser.parse_args(argv[1:])
  for peer in flags.peers or ():
    if peer not in peer_work.OFFERS or peer == OURS:
      raise UserError(f'there is no peer {peer!r}; there are {", ".join(list(peer_work.OFFERS)[1:])}')
  return functools.partial(_measure_and_report, flags, _whats(flags.what))


# Flags of the sizes of the work, and the fields that they set.
SIZES = {'blocks': 'num_blocks', 'layers': 'num_layers'} | {name: name for name in (
  'batch', 'size', 'num_bands', 'num_latents', 'latent_channels', 'num_heads', 'num_flow_latents',
  'flow_latent_channels')}


def _whats(words: Sequence[str]) -> list[str]:
  """Each of WHATS that a word names, or begins. Raises UserError."""
  for word in words:
    if word not in (*peer_work.WHATS, *peer_work.KINDS):
      raise UserError(f'there is no {word!r}; there are {", ".join(peer_work.WHATS)}')
  return [what for word in words for what in peer_work.WHATS if what in (word, f'{word}_forward', f'{word}_step')]


def at_hand(folders: Folders) -> list[str]:
  """The peers that can run here, as far as flags and installed packages tell."""
  have = {
    'official': folders.official, 'perceiver_io': folders.perceiver_io,
    'huggingface': importlib.util.find_spec('transformers'),
    'perceiver_pytorch': folders.peers_site or importlib.util.find_spec('perceiver_pytorch')}
  return [name for name in peer_work.OFFERS if have.get(name)]


def _measure_and_report(flags: argparse.Namespace, whats: Sequence[str]) -> int:
  folders = Folders(flags.official, flags.perceiver_io, flags.peers_site)
  peers = flags.peers or at_hand(folders)
  if missing := [name for name in peer_work.OFFERS if name not in (OURS, *peers)]:
    timing.say(f'Without {", ".join(missing)}: --help says how to have them.')
  sizes = {name: getattr(flags, name) for name in (*SIZES.values(), 'remat')}
  rows: list[Row] = []
  versions: dict[str, str] = {}
  with timing.cores(flags.threads):
    for what in whats:
      work = Work(what, flow_size=tuple(flags.flow_size), **sizes)
      names = [name for name in (OURS, *peers) if work.kind in peer_work.OFFERS[name]]
      some, used = compare(work, names, folders, flags.threads, flags.repeats)
      rows += some
      versions |= used
  result = record.surroundings(())
  result['versions'] |= versions
  settings = {**sizes, 'flow_size': flags.flow_size, 'threads': flags.threads, 'repeats': flags.repeats}
  record.write(flags.json, {**result, 'settings': settings, 'rows': rows})
  print(report(rows))
  return 0


def report(rows: Sequence[Row]) -> str:
  """The figures as a page for people, in Markdown."""
  def spread(*names: str) -> Callable[[Row], str]:
    return lambda row: timing.spread(dict(zip(('median', 'min', 'max'), (row[name] for name in names), strict=True)))

  def mib(name: str) -> Callable[[Row], float | None]:
    return lambda row: row[name] and row[name] / 2**20

  return timing.table({
    'what': operator.itemgetter('what'), 'implementation': operator.itemgetter('implementation'),
    'seconds': spread('seconds', 'min', 'max'), 'CPU seconds': operator.itemgetter('cpu_seconds'),
    'this / ours': spread('ratio', 'ratio_min', 'ratio_max'), 'this / ours, CPU': operator.itemgetter('cpu_ratio'),
    'compile s': operator.itemgetter('compile_seconds'),
    'compile s, CPU': operator.itemgetter('compile_cpu_seconds'), 'temp MiB': mib('temp_bytes'),
    'peak RSS MiB': mib('peak_rss_bytes'), 'parameters': operator.itemgetter('parameters')}, rows)


if __name__ == '__main__':
  sys.exit(main())
