"""What training in bfloat16 costs: the arithmetic, and the figures that are kept."""

from __future__ import annotations

import json

import pytest

from benchmarks import precision


def test_a_difference_of_pairs_is_set_against_its_own_error_and_the_spread_of_seeds():
  found = precision.summary([0.90, 0.92, 0.94], [0.91, 0.94, 0.97])
  expected = {'mean_difference': 0.02, 'standard_error': 0.01 / 3**0.5, 'deviation_over_seeds': 0.02}
  assert found == pytest.approx(expected)


def test_the_figures_that_are_kept_say_that_the_precisions_agree_within_noise():
  kept = json.loads(precision.RESULTS.read_text())
  found = precision.summary(*(kept['test_accuracy'][compute] for compute in precision.COMPUTE))
  assert found == pytest.approx({name: kept[name] for name in found})
  assert abs(found['mean_difference']) < max(2 * found['standard_error'], found['deviation_over_seeds'])
