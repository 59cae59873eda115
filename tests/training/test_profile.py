"""The trace of a few steps: written where it says, of the steps it says, and only if asked for."""

from __future__ import annotations

import gzip
import json
import pathlib

import jax
import pytest

from perceiver_jax.training.profile import NUM_UNTRACED, profiler


def _steps_traced(workdir: pathlib.Path) -> set[int]:
  """The numbers of the `step_<number>` annotations in the workdir's only trace."""
  (trace,) = (workdir / 'profile').rglob('*.trace.json.gz')
  events = json.loads(gzip.decompress(trace.read_bytes()))['traceEvents']
  names = [event.get('name', '') for event in events]
  return {int(name.removeprefix('step_')) for name in names if name.startswith('step_')}


def _take_steps(workdir: pathlib.Path, first: int, last: int, num_steps: int) -> None:
  with profiler(str(workdir), first, num_steps) as before_step:
    for step in range(first, last):
      before_step(step)
      with jax.profiler.TraceAnnotation(f'step_{step}'):
        pass


@pytest.mark.parametrize('first, last, expected', [(0, 8, {2, 3, 4}), (5, 13, {7, 8, 9}), (0, 4, {2, 3})])
def test_a_trace_holds_the_steps_after_the_first_two_and_ends_with_the_run(tmp_path, first, last, expected):
  assert NUM_UNTRACED == 2
  _take_steps(tmp_path, first, last, num_steps=3)
  assert _steps_traced(tmp_path) == expected


def test_an_error_ends_the_trace_whole(tmp_path):
  with pytest.raises(RuntimeError), profiler(str(tmp_path), 0, 3) as before_step:
    before_step(2)
    with jax.profiler.TraceAnnotation('step_2'):
      pass
    raise RuntimeError
  assert _steps_traced(tmp_path) == {2}


@pytest.mark.parametrize('last, num_steps', [(8, 0), (2, 3)])
def test_nothing_is_traced_unless_asked_for_and_reached(tmp_path, last, num_steps):
  _take_steps(tmp_path, 0, last, num_steps)
  assert list(tmp_path.iterdir()) == []
