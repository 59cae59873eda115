"""Spikes of the loss: what is one, and where a run goes on after it."""

from __future__ import annotations

import json
import math

import pytest
from ml_collections import ConfigDict

from perceiver_jax.training import spikes
from perceiver_jax.training.spikes import NUM_WINDOWS, Past, Spike
from perceiver_jax.types import NumericsError

USUAL = Past(losses=tuple(float(1 + i % 3) for i in range(NUM_WINDOWS)))  # 1, 2, 3, 1, 2, 3 ...: the median is 2


def _windows(past: Past, losses: list[float], factor: float | None = 2.0) -> tuple[Past, list[Spike]]:
  found = []
  for step, loss in enumerate(losses, start=1):
    past, spike = spikes.judge(past, step, loss, factor)
    found += [spike] if spike else []
  return past, found


@pytest.mark.parametrize('loss, is_spike', [(3.9, False), (4.0, False), (4.001, True), (math.inf, True)])
def test_a_window_is_a_spike_above_so_many_times_the_median(loss, is_spike):
  past, spike = spikes.judge(USUAL, 110, loss, 2.0)
  assert spike == (Spike(110, loss, 2.0, USUAL) if is_spike else None)
  assert past.losses == (USUAL.losses if is_spike else (*USUAL.losses[1:], loss))


def test_a_median_is_not_moved_by_a_few_high_windows():
  past = Past(losses=(1.0,) * 6 + (50.0,) * 4)
  assert spikes.judge(past, 1, 2.5, 2.0)[1] is not None


def test_there_is_no_spike_before_there_are_windows_enough_to_say_what_is_usual():
  assert _windows(Past(), [1.0] * (NUM_WINDOWS - 1) + [100.0]) == (
    Past(losses=(1.0,) * (NUM_WINDOWS - 1) + (100.0,)), [])
  past, found = _windows(Past(), [1.0] * NUM_WINDOWS + [100.0])
  assert [spike.step for spike in found] == [NUM_WINDOWS + 1] and past.losses == (1.0,) * NUM_WINDOWS


def test_a_window_without_a_loss_counts_for_nothing():
  assert spikes.judge(USUAL, 110, math.nan, 2.0) == (USUAL, None)


def test_without_a_factor_nothing_is_kept_and_nothing_is_a_spike():
  assert _windows(Past(), [1.0] * 20 + [1e9], factor=None) == (Past(), [])


@pytest.mark.parametrize('save_every, eval_every, step, expected', [
  (1000, 5000, 1100, 1000),                 # the window of the steps 1001 to 1100
  (1000, 5000, 1101, 1000),
  (1000, 5000, 1000, 0),                    # begins at 900
  (1000, 5000, 1050, 1000),                 # the last window of a run may be short
  (30, 5000, 200, 90),
  (1000, 250, 1700, 1500),                  # evaluated steps are saved too
  (1000, 250, 1801, 1750),
  (7, 70, 300, 196),
  (1000, 1000, 1, 0),
])
def test_a_run_goes_back_to_the_last_step_that_it_saves_before_the_window(save_every, eval_every, step, expected):
  config = ConfigDict({
    'log': {'every_steps': 100}, 'checkpoint': {'every_steps': save_every}, 'eval': {'every_steps': eval_every}})
  assert spikes.target(config, step) == expected


def test_a_run_that_goes_back_takes_no_batch_twice():
  past = spikes.rewound(Spike(1100, 9.0, 2.0, USUAL), 1000, Past(losses=(3.0,)))
  assert past == Past(100, 1, (3.0,))
  assert 1000 + past.offset == 1100         # the batch after the spike's last
  again = spikes.rewound(Spike(1200, 9.0, 2.0, past), 1000, Past(losses=(3.0,)))
  assert again == Past(300, 2, (3.0,))
  assert 1000 + again.offset == 1200 + past.offset


@pytest.mark.parametrize('past', [Past(), USUAL, Past(7, 2, (0.1, 1 / 3, math.pi))])
def test_a_past_survives_a_checkpoint_to_the_last_bit(past):
  assert spikes.read(json.loads(json.dumps({'past': past._asdict(), 'window': {}}))) == past


def test_a_checkpoint_from_before_there_were_rewinds_has_the_past_of_a_start():
  assert spikes.read({'window': {}, 'evaluated': False}) == Past()


def test_a_spike_too_many_is_an_error():
  config = ConfigDict({'factor': 1.5, 'max_rewinds': 2})
  spikes.check(Spike(13, 9.0, 2.0, USUAL._replace(num_rewinds=1)), config)
  with pytest.raises(NumericsError) as caught:
    spikes.check(Spike(13, 9.0, 2.0, USUAL._replace(num_rewinds=2)), config)
  assert str(caught.value) == (
    'train/loss is 9 at step 13, more than 1.5 times the usual 2, and the run has gone back rewind.max_rewinds=2 times '
    'already.\nLower optimizer.peak_lr, or look at the data. Checkpoints from before are intact.')
