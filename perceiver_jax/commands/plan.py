"""The command `plan`: what an experiment will cost, before it is run.

    python -m perceiver_jax plan --config=configs/x.py[:variant,...] [--devices=N] [--memory_gib=G] [--compile]
                                 [--fit --gflops=F] [--json=PATH] [--config.key=value ...]

Exit codes are those of `train`; see commands/answer.py.
"""

from __future__ import annotations

import functools
import json
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from perceiver_jax.commands.answer import (
  answer,
  asks_for_help,
  check_all_read,
  set_xla_flags,
  show_text,
  take_config,
)
from perceiver_jax.commands.compilation_cache import keep_compiled
from perceiver_jax.config import overrides
from perceiver_jax.config.values import check
from perceiver_jax.runs.files import check_local
from perceiver_jax.types import UserError


def plan(argv: Sequence[str] | None = None) -> int:
  """Tells what the experiment of `--config` costs: parameters, FLOPs, memory, the largest batch, time.

  With `--fit` it proposes how many latents and how deep a model a budget admits, and tells what that one costs. Any key
  of the config is set by `--config.key=value`. Nothing is trained, and no data is read. Returns the exit code.
  """
  return answer(_read, argv)


def _read(argv: list[str]) -> Callable[[], int]:
  flag_values = flags.FlagValues()
  flags.DEFINE_integer(
    'devices', None, 'Over how many devices the batch is spread; by default those of this machine.',
    flag_values=flag_values)
  flags.DEFINE_float('memory_gib', None, 'Memory of one device, GiB: tells the largest batch.', flag_values=flag_values)
  flags.DEFINE_boolean(
    'compile', False, "Takes the memory from XLA's analysis of the compiled step, not from its trace: slower.",
    flag_values)
  flags.DEFINE_boolean(
    'fit', False, 'Proposes the number of latents and the depth for --gflops, --memory_gib or both.', flag_values)
  flags.DEFINE_float('gflops', None, 'Of --fit: GFLOPs of one example, forward.', flag_values=flag_values)
  flags.DEFINE_string('json', None, 'Where the same figures go as JSON.', flag_values)
  path, argv = take_config(flag_values.read_flags_from_files(argv))
  if asks_for_help(argv):
    return functools.partial(show_text, f'{plan.__doc__}\n{flag_values.get_help()}')
  if not path:
    check_all_read(flag_values([argument for argument in argv if not argument.startswith('--config.')]))
    raise UserError('--config is missing: which experiment? For example --config=configs/digits.py')
  config = overrides.load(path)
  check_all_read(overrides.override(config, argv, flag_values))
  given = {name: flag_values[name].value for name in ('devices', 'memory_gib', 'compile', 'fit', 'gflops', 'json')}
  check_local('--json', given['json'])
  _check_flags(given)
  return functools.partial(_plan, path, config, given)


def _check_flags(given: dict[str, Any]) -> None:
  """Raises UserError for what cannot be, before anything is waited for."""
  for name in ('devices', 'memory_gib', 'gflops'):
    if given[name] is not None and not 0 < given[name] < math.inf:
      raise UserError(f'--{name}={given[name]:g} must be more than 0, and finite')
  if given['fit'] and given['gflops'] is None and given['memory_gib'] is None:
    raise UserError('--fit needs a budget: --gflops=100, of one example forward, or --memory_gib=16, of one device')
  if given['gflops'] is not None and not given['fit']:
    raise UserError('--gflops goes with --fit alone')
  if given['json'] is not None and not Path(given['json']).absolute().parent.is_dir():
    raise UserError(f'--json={given["json"]}: there is no directory {Path(given["json"]).parent}; make it first')
  if given['json'] is not None and Path(given['json']).is_dir():
    raise UserError(f'--json={given["json"] or "."} is a directory; name a file')


def _plan(path: str, config: ConfigDict, given: dict[str, Any]) -> int:
  keep_compiled()
  check(config)
  set_xla_flags(config)
  from perceiver_jax.config.values import changed
  from perceiver_jax.planning.plan import make_fit, make_plan
  from perceiver_jax.planning.table import show_fit, show_plan
  from perceiver_jax.processes import parallel

  announce = functools.partial(print, file=sys.stderr, flush=True)
  parallel.check_device()
  num_devices = given['devices'] or parallel.num_devices()
  budget = {name: given[name] for name in ('memory_gib', 'gflops')}
  texts, fitted = [], {}
  if given['fit']:
    fitted = make_fit(config, num_devices=num_devices, **budget, announce=announce)
    config = changed(config, fitted['config'])
    texts.append(show_fit(fitted))
  found = make_plan(
    config, num_devices=num_devices, memory_gib=given['memory_gib'], compiles=given['compile'], announce=announce)
  texts.append(show_plan(path, found))
  if given['json'] is not None:
    try:
      Path(given['json']).write_text(json.dumps({**found, 'fit': fitted} if fitted else found, indent=2) + '\n')
    except OSError as error:
      raise UserError(f'cannot write {given["json"]}: {error.strerror}') from error
  return show_text('\n\n'.join(texts))

