"""The largest models of a config's kind that a budget admits: how many latents, how deep."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

from ml_collections import ConfigDict

from perceiver_jax.config.values import changed
from perceiver_jax.planning.flops import forward_flops
from perceiver_jax.planning.memory import estimate
from perceiver_jax.planning.model import describe
from perceiver_jax.types import UserError

LATENTS = (0.25, 0.5, 1, 2, 4)  # times the config's
DEEPEST = 8                     # the same


class Candidate(NamedTuple):
  """The deepest model with so many latents."""

  num_latents: int
  depth: int  # the value of `depth_key`


class Budget(NamedTuple):
  """Holds what a model may need; None is no bound."""

  flops: float | None         # of one example, forward, as `forward_flops` counts
  memory_bytes: int | None    # of a training step on one device, as `estimate` says
  num_examples: int           # at a time on one device


def depth_key(config: ConfigDict) -> str:
  """Returns the key that makes a model deeper: the repeats of one block if any, else the layers of a block."""
  repeats = config.model.num_blocks > 1 and config.model.num_cross_attends == 1
  return 'model.num_blocks' if repeats else 'model.num_self_attends_per_block'


def fit(
  config: ConfigDict, budget: Budget, announce: Callable[[str], None] = lambda text: None,
) -> tuple[list[Candidate], Candidate]:
  """The deepest model that fits, for each of a few numbers of latents, and the one of them to take; all are counted.

  None is deeper than `DEEPEST` times the config's. The one to take is that whose number of latents and depth have
  grown, or shrunk, most evenly from the config's.

  Args:
    config: what to begin with; all but its number of latents and its depth stays.
    budget: one bound at least.
    announce: is told what is being counted.

  Raises:
    UserError: the model has no latents, no training that needs memory, or not even the smallest model fits.
  """
  if config.model.get('backbone', 'perceiver') != 'perceiver':
    raise UserError(f'--fit is for Perceivers: model.backbone={config.model.backbone!r} has no latents')
  if config.model.num_blocks == 0:
    raise UserError('--fit sets the depth of the latent Transformer, and config.model.num_blocks=0 is to have none')
  if budget.memory_bytes is not None and describe(config).train_state is None:
    raise UserError(f'task {config.task!r} has no training data yet: --fit knows its FLOPs alone; give --gflops alone')
  sizes = sorted({max(1, int(factor * config.model.num_latents)) for factor in LATENTS})
  candidates = []
  for size in sizes:
    announce(f'{size} latents: how deep?')
    shares = functools.cache(functools.partial(_shares, config, size, budget))
    candidates.append(Candidate(size, _deepest(shares, DEEPEST * _depth(config))))
  candidates = [candidate for candidate in candidates if candidate.depth]
  if not candidates:
    smallest = with_candidate(config, Candidate(sizes[0], 1))
    raise UserError(
      f'the budget is too small: with {sizes[0]} latents and {depth_key(config)}=1 this model already needs '
      f'{_needs(smallest, budget)}. Raise it, or set --config.model.latent_channels lower')
  return candidates, min(candidates, key=functools.partial(_unevenness, config))


def with_candidate(config: ConfigDict, candidate: Candidate) -> ConfigDict:
  return changed(config, {'model.num_latents': candidate.num_latents, depth_key(config): candidate.depth})


def _needs(config: ConfigDict, budget: Budget) -> str:
  needs = []
  if budget.flops is not None:
    needs.append(f'{forward_flops(config) / 1e9:.3g} GFLOPs')
  if budget.memory_bytes is not None:
    needs.append(f'{estimate(describe(config)).at(budget.num_examples) / 2**30:.3g} GiB')
  return ' and '.join(needs)


def _unevenness(config: ConfigDict, candidate: Candidate) -> float:
  return abs(math.log(candidate.num_latents / config.model.num_latents) - math.log(candidate.depth / _depth(config)))


def _depth(config: ConfigDict) -> int:
  return config.model[depth_key(config).rpartition('.')[2]]


def _shares(config: ConfigDict, num_latents: int, budget: Budget, depth: int) -> list[float]:
  """Returns the share of each bound that the model takes, 1 = all of it; each grows linearly with the depth."""
  model = with_candidate(config, Candidate(num_latents, depth))
  shares = []
  if budget.flops is not None:
    shares.append(forward_flops(model) / budget.flops)
  if budget.memory_bytes is not None:
    line = estimate(describe(model))
    needs = line.fixed + budget.num_examples * line.per_example, line.least
    shares += [each / budget.memory_bytes for each in needs]
  return shares


def _deepest(shares: Callable[[int], list[float]], most: int) -> int:
  """The largest depth, up to `most`, of which no share is above 1; 0 where there is none."""
  guesses = [
    math.floor(2 + 2 * (1 - two) / (four - two)) for two, four in zip(shares(2), shares(4), strict=True) if four > two]
  depth = max(0, min([most, *guesses]))
  while depth and max(shares(depth)) > 1:
    depth -= 1
  while depth < most and max(shares(depth + 1)) <= 1:
    depth += 1
  return depth
