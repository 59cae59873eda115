"""A plan as lines for people."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

NOTES = {
  'estimated': 'estimated from the trace; --compile asks XLA', 'compiled': "by XLA's memory analysis, for this device"}


def show_plan(name: str, plan: dict[str, Any]) -> str:
  """The plan of `make_plan`; `name` is the config's."""
  devices = f'{plan["num_devices"]} device{"s" * (plan["num_devices"] > 1)}'
  head = f'{name} ({plan["task"]}) on {devices}; measured on {plan["platform"]}'
  return '\n'.join([head, '', *map(_line, [*_model(plan), *_memory(plan), *_time(plan)])])


def show_fit(found: dict[str, Any]) -> str:
  """Returns what `make_fit` found, and the flags that set what it proposes."""
  depth = found['depth_key'].rpartition('.')[2]
  lines = ['The deepest that fits, for each number of latents:', f'  num_latents  {depth}  GFLOPs forward']
  for row in found['candidates']:
    mark = '  <- nearest to the proportions of the config' if row == found['proposed'] else ''
    lines.append(
      f'  {row["num_latents"]:>11,}  {row["depth"]:>{len(depth)},}  {row["flops"] / 1e9:>14,.1f}{mark}')
  flags = ' '.join(f'--config.{key}={value}' for key, value in found['config'].items())
  return '\n'.join([*lines, f'Proposed, and planned below: {flags}'])


def _line(row: tuple[str, str, str]) -> str:
  what, figure, note = row
  return f'{what:<34}{figure:>14}   {note}'.rstrip()


def _model(plan: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
  flops = plan['flops']
  attention, remat = (f'{key}={value}' for key, value in plan['computed_with'].items())
  yield 'parameters', f'{plan["parameters"]:,}', ''
  yield 'FLOPs per example, forward', _count(flops['forward']), 'as the papers count: attention is dense'
  yield '  as it is computed here', _count(flops['forward_computed']), attention
  if 'training' in flops:
    yield 'FLOPs per example, training step', _count(flops['training']), '3 x forward'
    yield '  as it is computed here', _count(flops['training_computed']), f'{attention}, {remat}'
  else:
    yield 'training', 'none', 'this task has no training data yet: its model can only be used'


def _memory(plan: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
  memory, batch = plan['memory'], plan.get('batch')
  yield '', '', ''
  if batch is None:
    yield 'memory of a device', '', 'one example, forward'
  else:
    parts = batch['per_device'] // batch['at_a_time']
    split = f', in {parts} micro-batches of {batch["at_a_time"]:,}' if parts > 1 else ''
    yield 'memory of a device', '', f'{batch["per_device"]:,} of the batch of {batch["size"]:,} examples{split}'
  yield '  parameters', _bytes(memory['parameters']), ''
  if batch is not None:
    yield '  gradients', _bytes(memory['gradients']), ''
    yield '  optimizer', _bytes(memory['optimizer']), ''
  if 'source' in memory:
    yield '  activations, temporaries', _bytes(memory['activations']), f'{_bytes(memory["per_example"])} an example'
    yield '  together', _bytes(memory['total']), NOTES[memory['source']]
  else:
    yield '  activations, temporaries', '?', '--compile tells'
  if 'largest' in plan:
    yield from _largest(plan)


def _largest(plan: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
  largest = plan['largest']
  fits, parts = largest['at_a_time'], largest['micro_batches']
  if 'batch' not in plan:
    advice = ''
  elif parts is None:
    advice = 'not one example: try --config.remat=layers, --config.attention_impl=auto, or --fit'
  elif parts == plan['batch']['per_device'] // plan['batch']['at_a_time']:
    advice = 'the batch of the config fits'
  else:
    advice = f'--config.micro_batches={parts} makes the batch of the config fit'
  yield f'largest batch in {largest["memory_gib"]:g} GiB', f'{fits:,}', advice


def _time(plan: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
  gemm = plan['gemm']
  yield '', '', ''
  yield 'matrix products', f'{_count(gemm["flops_per_second"])}/s', f'{gemm["dtype"]}, the best of this device'
  what = 'a step' if 'batch' in plan else 'an example, forward'
  yield what, _seconds(plan['seconds']), 'at that rate, which no step quite reaches'


def _count(number: float) -> str:
  return _scaled(number, 1000, ('', 'k', 'M', 'G'))  # the papers print G


def _bytes(number: float) -> str:
  return _scaled(number, 1024, ('B', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB'))


def _scaled(number: float, base: int, units: tuple[str, ...]) -> str:
  power = min(len(units) - 1, int(math.log(number, base))) if number >= 1 else 0
  return f'{number / base**power:,.{1 if power else 0}f} {units[power]}'.rstrip()


def _seconds(seconds: float) -> str:
  for unit, size in (('days', 86400.0), ('h', 3600.0), ('min', 60.0), ('s', 1.0), ('ms', 1e-3)):
    if seconds >= 2 * size or unit == 'ms':
      return f'{seconds / size:,.1f} {unit}'
  raise AssertionError
