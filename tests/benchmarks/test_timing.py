"""What every measurement of time shares: turns, ratios of a round, cores, and the table."""

from __future__ import annotations

import os

import pytest

from benchmarks import timing
from perceiver_jax.types import UserError


def test_a_ratio_is_of_two_times_of_one_round():
  ours, theirs = [1.0, 2.0, 10.0], [3.0, 4.0, 50.0]
  assert timing.ratios(theirs, ours) == {'median': 3.0, 'min': 2.0, 'max': 5.0}
  assert timing.figure(theirs)['median'] / timing.figure(ours)['median'] == 2.0  # which is none of the three's median


def test_rounds_of_different_numbers_are_refused():
  with pytest.raises(ValueError, match='zip'):
    timing.ratios([1.0, 2.0], [1.0])


def test_what_is_measured_takes_turns_round_by_round():
  calls = []

  def measure(name):
    calls.append(name)
    return timing.Taken(float(len(calls)), 0.0)

  taken = timing.in_turns({name: lambda name=name: measure(name) for name in 'ab'}, 3, 'test')
  assert calls == ['a', 'b'] * 3
  assert [one.seconds for one in taken['b']] == [2.0, 4.0, 6.0]


def test_a_call_is_warm_before_it_is_measured_and_a_short_one_is_repeated():
  calls = []
  measure = timing.measured(lambda: calls.append(0))
  assert len(calls) == 2
  taken = measure()
  assert len(calls) > 10
  assert 0 < taken.seconds < timing.LONG_ENOUGH


def test_seconds_are_those_of_one_of_the_calls():
  calls = []
  one, many = timing.take(lambda: calls.append(sum(range(100_000)))), timing.take(lambda: None, 1000)
  assert one.seconds > many.seconds > 0


@pytest.mark.skipif(not hasattr(os, 'sched_setaffinity'), reason='this system keeps no process on some cores')
def test_cores_are_given_back():
  before = os.sched_getaffinity(0)
  with timing.cores(1):
    assert os.sched_getaffinity(0) == {max(before)}
  assert os.sched_getaffinity(0) == before
  with timing.cores(None):
    assert os.sched_getaffinity(0) == before
  with pytest.raises(UserError, match=f'there are {len(before)} cores'), timing.cores(len(before) + 1):
    pass


def test_a_table_has_a_line_for_each_row():
  rows = [{'name': 'a', 'value': 1234.56}, {'name': 'b', 'value': None}, {'name': 'c', 'value': 0.012345}]
  table = timing.table({'who': lambda row: row['name'], 'what': lambda row: row['value']}, rows)
  assert table.splitlines() == ['| who | what |', '|---|---|', '| a | 1,235 |', '| b | – |', '| c | 0.0123 |']
  assert timing.spread({'median': 2.0, 'min': 1.0, 'max': 30.0}) == '2 (1 to 30)'


@pytest.mark.parametrize('text', ['0', '3,0', '-1', 'a', ''])
def test_a_size_is_a_whole_number_above_zero(text):
  with pytest.raises(ValueError):
    timing.positives(text)
