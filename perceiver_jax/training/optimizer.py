"""From gradients to updates: the optimizers of the papers, in optax parts, and their schedules, in steps."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import TypeVar

import jax
import ml_collections
import optax

from perceiver_jax.types import Tree, UserError

ADAM_B1 = 0.9                               # decay of the first moment, the mean
ADAM_B2 = 0.999                             # decay of the second moment, the mean square
LAMB_EPSILON = 1e-6                         # the authors' values, in their train/utils.py
ADAMW_EPSILON = 1e-8

STEP_DECAY = 0.1                            # Perceiver, section 4.1: x0.1 at epochs 84, 102 and 114 of 120
STEP_DECAY_EPOCHS = (84, 102, 114)
STEP_DECAY_NUM_EPOCHS = 120

NOT_DECAYED = frozenset({'b', 'scale', 'offset'})  # biases and normalisation

T = TypeVar('T')


def make_optimizer(config: ml_collections.ConfigDict, num_steps: int) -> optax.GradientTransformation:
  """The chain that `config.name` asks for; its updates are to be added to the parameters.

  `lamb` is the authors' chain (Perceiver IO, appendix A.1, and their train/utils.py). `adamw` is the same without the
  trust ratio. `sgd` only clips and scales: adaptive optimizers hide a wrong factor in the gradients, so parity tests
  use it.

  Args:
    config: config.optimizer. `max_norm` bounds the global norm of the gradients (0 = no bound); `weight_decay` is
      decoupled, applied where `decay_mask` says; `sgd` ignores it.
    num_steps: steps of the whole run.

  Raises:
    UserError: unknown `name`, or as `make_schedule`.
  """
  clip = optax.clip_by_global_norm(config.max_norm) if config.max_norm > 0 else optax.identity()
  decay = optax.add_decayed_weights(config.weight_decay, mask=decay_mask)
  chains = {
      'lamb': [optax.scale_by_adam(ADAM_B1, ADAM_B2, eps=LAMB_EPSILON), decay, optax.scale_by_trust_ratio()],
      'adamw': [optax.scale_by_adam(ADAM_B1, ADAM_B2, eps=ADAMW_EPSILON), decay],
      'sgd': [],
  }
  chain = _choose(chains, config.name, 'optimizer.name')
  return optax.chain(clip, *chain, optax.scale_by_schedule(make_schedule(config, num_steps)), optax.scale(-1.0))


def decay_mask(params: Tree) -> Tree:
  """Returns which parameters decay, by name: all but biases `b` and normalisation's `scale` and `offset`.

  Latents and position tables decay, as in the authors' code.

  Args:
    params: Haiku's {module path: {name: array}}, or any tree whose leaves have names.

  Returns:
    The same tree of booleans.
  """
  return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key not in NOT_DECAYED, params)


def make_schedule(config: ml_collections.ConfigDict, num_steps: int) -> optax.Schedule:
  """The learning rate as a function of the number of steps taken before this one (0 at the first).

  `constant_cosine`: peak_lr for `constant_share` of the run, then a cosine to 0 (Perceiver IO, appendix A).
  `warmup_cosine`: linear from 0 over warmup_steps, then a cosine to 0. Only this one reads warmup_steps: with LAMB, a
  warm-up on ImageNet often prevented training (Perceiver IO, appendix A.1).
  `step_decay`: peak_lr, x0.1 at 70%, 85% and 95% of the run (Perceiver, section 4.1).

  Args:
    config: config.optimizer.
    num_steps: steps of the whole run.

  Raises:
    UserError: unknown `schedule`, or a warm-up that leaves no step for the rest.
  """
  if num_steps < 1:
    raise UserError(f'config.num_steps={num_steps}: a run needs at least one step.')
  schedules = {'constant_cosine': _constant_cosine, 'warmup_cosine': _warmup_cosine, 'step_decay': _step_decay}
  return _choose(schedules, config.schedule, 'optimizer.schedule')(config, num_steps)


def _constant_cosine(config: ml_collections.ConfigDict, num_steps: int) -> optax.Schedule:
  num_constant = int(config.constant_share * num_steps + 1e-6)  # 70 / 131 of 131,000 is 70,000
  cosine = optax.cosine_decay_schedule(config.peak_lr, max(1, num_steps - num_constant))
  return optax.join_schedules([optax.constant_schedule(config.peak_lr), cosine], [num_constant])


def _warmup_cosine(config: ml_collections.ConfigDict, num_steps: int) -> optax.Schedule:
  if not 0 <= config.warmup_steps < num_steps:
    raise UserError(f'config.optimizer.warmup_steps={config.warmup_steps} must be at least 0 and less than '
                    f'config.num_steps={num_steps}. Shorten the warm-up or lengthen the run.')
  return optax.warmup_cosine_decay_schedule(0.0, config.peak_lr, config.warmup_steps, num_steps)


def _step_decay(config: ml_collections.ConfigDict, num_steps: int) -> optax.Schedule:
  # Whole numbers: int(0.70 * num_steps) may fall one step short. Joined, not piecewise_constant_schedule, whose dict
  # would merge the drops of a run so short that two of them fall on one step.
  boundaries = [num_steps * epoch // STEP_DECAY_NUM_EPOCHS for epoch in STEP_DECAY_EPOCHS]
  rates = [config.peak_lr * STEP_DECAY**num_drops for num_drops in range(len(boundaries) + 1)]
  return optax.join_schedules([optax.constant_schedule(rate) for rate in rates], boundaries)


def _choose(options: Mapping[str, T], name: str, key: str) -> T:
  if name not in options:
    nearest = difflib.get_close_matches(name, options, n=1, cutoff=0.0)[0]
    raise UserError(f'config.{key}={name!r} is unknown; did you mean {nearest!r}? Known: {", ".join(options)}.')
  return options[name]
