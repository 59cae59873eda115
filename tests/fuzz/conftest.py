"""Counts the cases that were really run, over all processes, and says so in the end."""

from __future__ import annotations

import resource

import pytest

from tests.fuzz import harness


@pytest.fixture(autouse=True)
def counted(request):
  """Leaves the number of cases of a test, and the peak memory of its process [MiB], in its report."""
  yield
  name = request.node.originalname
  request.node.user_properties.append(('cases', harness.NUM_RUN[name]))
  request.node.user_properties.append(('peak', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024))


def pytest_terminal_summary(terminalreporter):
  """The figure to quote, where `make fuzz` asked for it."""
  if not harness.TIMES:
    return
  total, peak = 0, 0
  for report in (each for reports in terminalreporter.stats.values() for each in reports):
    properties = dict(getattr(report, 'user_properties', ())) if getattr(report, 'when', '') == 'teardown' else {}
    total, peak = total + properties.get('cases', 0), max(peak, properties.get('peak', 0))
    if properties.get('cases'):
      terminalreporter.write_line(f'{properties["cases"]:>9,}  {report.nodeid}')
  terminalreporter.write_line(f'{total:>9,}  cases in all; the largest process took {peak:,} MiB at most')
