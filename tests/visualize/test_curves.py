"""Curves show what was measured, and only that."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from perceiver_jax.visualize.curves import series, smooth, training_curves


def test_a_curve_holds_what_was_measured_and_skips_what_is_not_finite():
  measured = [{'a': 1.0}, {'a': np.nan}, {'b': 5.0}, {'a': np.inf}, {'a': 0.5}]
  history = [{'step': step} | line for step, line in enumerate(measured, start=1)]
  steps, values = series(history, 'a')
  assert steps.tolist() == [1, 5] and values.tolist() == [1.0, 0.5]
  assert [len(part) for part in series([], 'a')] == [0, 0]


def test_smoothing_keeps_level_and_slope_and_calms_noise():
  line = np.arange(300.0)
  np.testing.assert_allclose(smooth(line)[:-10], line[:-10], rtol=1e-12)
  noise = np.random.default_rng(0).normal(size=300)
  assert smooth(noise).std() < 0.5 * noise.std()
  assert smooth(np.array([])).tolist() == [] and smooth(np.array([3.0])).tolist() == [3.0]


@pytest.mark.parametrize(('losses', 'scale'), [([2.3, 0.02], 'log'), ([2.3, 1.9], 'linear'), ([2.3, 0.0], 'linear')])
def test_the_loss_axis_is_logarithmic_where_the_loss_fell_far(losses, scale):
  panel = Figure().subfigures()
  training_curves(panel, [{'step': step, 'train/loss': loss} for step, loss in enumerate(losses, start=1)])
  assert [axes.get_yscale() for axes in panel.axes[1:]] == [scale, 'linear']
