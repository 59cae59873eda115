"""The tables of docs/speed.md are those that the benchmarks printed, whose figures benchmarks/results/ keeps."""

import json
import pathlib

import pytest

from benchmarks import attention_scaling, peers, step_time

ROOT = pathlib.Path(__file__).resolve().parents[2]
PAGE = (ROOT / 'docs' / 'speed.md').read_text()
RESULTS = [path for name in ('attention_scaling', 'peers', 'step_time')
           for path in sorted((ROOT / 'benchmarks' / 'results').glob(f'{name}*.json'))]


def report(path: pathlib.Path) -> str:
  result = json.loads(path.read_text())
  if path.stem.startswith('attention_scaling'):
    return attention_scaling.report(result['rows'], result['skipped'])
  return (peers if path.stem.startswith('peers') else step_time).report(result['rows'])


@pytest.mark.parametrize('path', RESULTS, ids=lambda path: path.stem)
def test_a_table_is_that_of_its_measurement(path):
  mark = f'<!-- {path.stem} -->'
  assert PAGE.count(mark) == 2, f'docs/speed.md has no table between two lines {mark}'
  assert PAGE.split(mark)[1].strip() == report(path).strip()


def test_something_was_measured():
  assert len(RESULTS) >= 4
