"""What the soak concludes from what it saw. That runs survive is tested in tests/training/test_faults.py."""

from __future__ import annotations

import json
import random
import signal

import pytest

from benchmarks import soak
from benchmarks.survive import SAVE, TRAINING, Ended, Fault, Violation, check_start

KILL = Fault(signal.SIGKILL, SAVE)


def _samples(*, growth: float = 0.0, files: int = 0, threads: int = 0) -> list[soak.Sample]:
  """A process of 100 steps that is twice as large at its start, and grows as it saves; every tenth sample is a save."""
  return [
    soak.Sample(step, round((2e9 if step < 20 else 1e9) * (1 + growth * step / 100)),
                5 + files * step // 100 + 6 * (step % 10 == 0), 30 + threads * step // 100 + 4 * (step % 10 == 0))
    for step in range(100)]


def test_a_process_that_holds_as_much_at_its_end_as_after_its_warm_up_is_right():
  held = soak.held(_samples(growth=0.02), 100)  # of which 1.2 % from the first part to the last
  assert held['files'] == [5] * 5 and held['threads'] == [30] * 5 and len(held['memory']) == 5
  assert soak.growths(held) == []
  assert soak.growths({**held, 'memory': [9e8, 4e8, 4e8, 4e8, 4e8], 'threads': [30, 33, 31, 33, 30]}) == []


@pytest.mark.parametrize(('more', 'message'), [
  ({'growth': 0.06}, 'memory grew by 36,000,000 bytes: '),
  ({'files': 8}, 'files grew: [7, '),
  ({'threads': 8}, 'threads grew: [32, '),
])
def test_what_a_process_does_not_give_back_is_named(more, message):
  (found,) = soak.growths(soak.held(_samples(**more), 100))
  assert found.startswith(message), found


def test_memory_that_falls_once_and_then_rises_has_risen():
  held = soak.held(_samples(), 100)
  (found,) = soak.growths({**held, 'memory': [9e8, 4e8, 4.05e8, 4.05e8, 4.1e8]})
  assert 'memory grew by 10,000,000 bytes' in found


def test_too_few_looks_at_a_process_are_no_proof():
  with pytest.raises(Violation, match='3 looks at the process'):
    soak.held(_samples()[:3], 100)


def _lane(faults: list[tuple[Fault, int, bool]], **more) -> dict:
  accidents = [{'fault': str(fault), 'steps_again': again, 'survived': survived, 'num_devices': 2, 'run': 0}
               for fault, again, survived in faults]
  return {'accidents': accidents, 'runs': 1, 'violations': [], **more}


def test_faults_are_counted_by_lane_and_kind_with_what_they_cost():
  other = Fault(signal.SIGTERM, TRAINING)
  summary = soak.summarize({
    'kills': _lane([(KILL, 10, True), (other, 0, True), (KILL, 30, True)]),
    'devices': _lane([(KILL, 7, False)], violations=['devices: ended otherwise'], largest_difference=[1e-7, 3e-7]),
    'seeds': _lane([]),
    'memory': _lane([], held={'memory': [1, 1]}),
  })
  assert summary['faults'] == [
    {'lane': 'devices', 'fault': 'SIGKILL during a save', 'injected': 1, 'survived': 0,
     'steps_again_mean': 7, 'steps_again_max': 7},
    {'lane': 'kills', 'fault': 'SIGKILL during a save', 'injected': 2, 'survived': 2,
     'steps_again_mean': 20, 'steps_again_max': 30},
    {'lane': 'kills', 'fault': 'SIGTERM while training', 'injected': 1, 'survived': 1,
     'steps_again_mean': 0, 'steps_again_max': 0},
  ]
  assert summary['violations'] == ['devices: ended otherwise'] and summary['largest_difference'] == 3e-7
  assert summary['held'] == {'memory': [1, 1]}
  assert json.loads(json.dumps(summary)) == summary
  assert len(soak.table(summary['faults']).splitlines()) == 4


def test_every_kind_of_fault_comes_up():
  faults = soak.endless(random.Random(0))
  assert {next(faults) for _ in range(50)} == set(soak.FAULTS)


@pytest.mark.parametrize(('err', 'newest', 'is_right'), [
  ('Resuming at step 4 of 6.\n', 4, True),
  ('Resuming at step 2 of 6.\n', 4, False),
  ('Compiling ...\n', 4, False),
  ('Compiling ...\n', 0, True),
  ('checkpoint 6 is damaged: no state\nResuming at step 4 of 6.\n', 4, False),
])
def test_a_process_must_go_on_at_the_newest_checkpoint_and_meet_none_that_is_damaged(tmp_path, err, newest, is_right):
  ended = Ended(0, 'Finished 6 steps', err)
  if is_right:
    check_start(tmp_path, ended, newest)
  else:
    with pytest.raises(Violation, match=f'{tmp_path}: went on at step'):
      check_start(tmp_path, ended, newest)
