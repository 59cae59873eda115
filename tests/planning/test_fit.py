"""What a budget admits: counted again, the proposal keeps to it, and one block or layer more would not."""

from __future__ import annotations

import pytest

from configs import digits, imagenet, optical_flow
from perceiver_jax.config.values import changed
from perceiver_jax.planning.fit import DEEPEST, Budget, Candidate, depth_key, fit, with_candidate
from perceiver_jax.planning.flops import forward_flops
from perceiver_jax.planning.memory import estimate
from perceiver_jax.planning.model import describe
from perceiver_jax.types import UserError


def _flops(config, candidate):
  return forward_flops(with_candidate(config, candidate))


def _bytes(config, candidate, num_examples):
  return estimate(describe(with_candidate(config, candidate))).at(num_examples)


def _deeper(candidate):
  return candidate._replace(depth=candidate.depth + 1)


def _limit(config):
  return DEEPEST * config.model[depth_key(config).removeprefix('model.')]


@pytest.mark.parametrize('variant, key', [
  ('', 'model.num_blocks'), ('config_b', 'model.num_self_attends_per_block'),
  ('perceiver', 'model.num_self_attends_per_block'),  # whose 8 cross-attends must divide its blocks
])
def test_what_makes_a_model_deeper(variant, key):
  assert depth_key(imagenet.get_config(variant)) == key


@pytest.mark.parametrize('variant', ['', 'perceiver,'])
def test_each_candidate_is_the_deepest_within_its_flops(variant):
  config, said = digits.get_config(f'{variant}debug'), []
  budget = int(1.2 * forward_flops(config))
  candidates, proposed = fit(config, Budget(flops=budget, memory_bytes=None, num_examples=1), said.append)
  assert proposed in candidates and len(candidates) >= 2
  assert said[2] == f'{config.model.num_latents} latents: how deep?'
  limited = [candidate for candidate in candidates if candidate.depth < _limit(config)]
  assert proposed in limited
  for candidate in limited:
    assert _flops(config, candidate) <= budget < _flops(config, _deeper(candidate)), candidate


def test_of_two_budgets_both_are_kept_and_one_is_used_up():
  config, num_examples = digits.get_config('debug'), 64
  flops, memory = 200_000, 4 * 2**20
  candidates, _ = fit(config, Budget(flops, memory, num_examples))
  bounds = set()
  limited = [candidate for candidate in candidates if candidate.depth < _limit(config)]
  for candidate in (limited[0], limited[-1]):
    assert _flops(config, candidate) <= flops and _bytes(config, candidate, num_examples) <= memory
    deeper = _deeper(candidate)
    used_up = _flops(config, deeper) > flops, _bytes(config, deeper, num_examples) > memory
    assert any(used_up), candidate
    bounds.add(used_up)
  assert len(bounds) == 2  # few latents meet another bound than many


def test_no_model_is_much_deeper_than_the_config():
  config = digits.get_config('debug')
  candidates, proposed = fit(config, Budget(1e12, None, 1))
  assert {candidate.depth for candidate in candidates} == {_limit(config)}
  assert proposed.num_latents == 4 * config.model.num_latents


def test_the_budget_of_a_config_is_answered_with_that_config():
  config = digits.get_config('debug')
  key = depth_key(config).rpartition('.')[2]
  _, proposed = fit(config, Budget(forward_flops(config), None, 1))
  assert proposed == Candidate(config.model.num_latents, config.model[key])


@pytest.mark.parametrize('config, budget, message', [
  (digits.get_config('debug'), Budget(1000, None, 1), 'too small: with 1 latents and model.num_blocks=1 .* GFLOPs'),
  (imagenet.get_config('resnet50'), Budget(1e9, None, 1), "backbone='resnet50' has no latents"),
  (optical_flow.get_config('debug'), Budget(None, 10**9, 1), 'give --gflops alone'),
  (changed(digits.get_config('debug'), {'model.num_blocks': 0}), Budget(1e9, None, 1), 'num_blocks=0 is to have none'),
])
def test_what_cannot_be_fitted_is_refused(config, budget, message):
  with pytest.raises(UserError, match=message):
    fit(config, budget)
