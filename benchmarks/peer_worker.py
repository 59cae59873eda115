"""One implementation in a process of its own: Torch's threads and XLA's would get in each other's way.

Started by peers.py. Says on its standard output, a line of JSON each, what it has built, and then, for each line on its
standard input, what one run took. What goes wrong it says in place of the first.
"""

from __future__ import annotations

import importlib.metadata
import json
import pathlib
import resource
import sys
from collections.abc import Callable
from typing import Any, TextIO

from benchmarks import peer_work, timing
from perceiver_jax.types import UserError

PACKAGES = {
  'ours': ('jax', 'dm-haiku'), 'official': ('jax', 'dm-haiku'), 'huggingface': ('torch', 'transformers'),
  'perceiver_pytorch': ('torch', 'perceiver-pytorch'), 'perceiver_io': ('torch',)}

COMPILED_NOTHING = dict.fromkeys(('compile_seconds', 'compile_cpu_seconds', 'temp_bytes'))


def main(argument: str, asked: TextIO, answers: TextIO) -> int:
  def answer(values: dict[str, Any]) -> None:
    print(json.dumps(values), file=answers, flush=True)

  try:
    measure, built = prepare(**json.loads(argument))
  except UserError as error:
    answer({'error': str(error)})
    return 1
  answer(built)
  for _ in asked:
    answer({**measure()._asdict(), 'peak_rss_bytes': peak_rss_bytes()})
  return 0


def prepare(
  implementation: str, work: dict[str, Any], folders: dict[str, str | None], num_threads: int | None,
) -> tuple[Callable[[], timing.Taken], dict[str, Any]]:
  """A measurement that is warm, and what was built. Raises UserError."""
  asked = peer_work.Work(**{**work, 'flow_size': tuple(work['flow_size'])})
  where = peer_work.Folders(**folders)
  if implementation in ('ours', 'official'):
    from benchmarks import peer_jax
    built = peer_jax.build(implementation, asked, where)._asdict()
  else:
    from benchmarks import peer_torch
    built = peer_torch.build(implementation, asked, where, num_threads)
  run = built.pop('run')
  versions = {name: importlib.metadata.version(name) for name in PACKAGES[implementation]}
  return timing.measured(run), {**COMPILED_NOTHING, **built, 'versions': versions}


def peak_rss_bytes() -> int:
  """The most memory that this process has had. (`getrusage` may tell of the process that started it, too.)"""
  status = pathlib.Path('/proc/self/status')
  if not status.exists():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == 'darwin' else 1024)
  [line] = [line for line in status.read_text().splitlines() if line.startswith('VmHWM:')]
  return 1024 * int(line.split()[1])


if __name__ == '__main__':
  sys.exit(main(sys.argv[1], sys.stdin, sys.stdout))
