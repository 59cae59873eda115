"""Memory: what is exact, and what is estimated beside what XLA's compiler says."""

from __future__ import annotations

import functools

import jax
import pytest

from configs import digits, imagenet, optical_flow
from perceiver_jax.config.values import changed
from perceiver_jax.planning.memory import Line, State, compiled, compiled_bytes, estimate, state_of
from perceiver_jax.planning.model import describe, num_parameters

pytestmark = pytest.mark.usefixtures('quick_compilation')

SMALL = {'ema_decay': None, 'remat': 'none', 'model.num_blocks': 1, 'model.num_self_attends_per_block': 1}


@functools.cache
def _model(**changes):
  return describe(changed(digits.get_config(), {**SMALL, **{key.replace('__', '.'): x for key, x in changes.items()}}))


def test_parameters_gradients_and_optimizer_are_exact():
  size = 4 * num_parameters(_model())
  counters = 4 * 4  # steps, of the run, of two schedules, and of skipped updates
  state = state_of(_model())
  assert state.parameters == state.gradients == size
  assert 2 * size < state.optimizer <= 2 * size + counters  # LAMB's two moments
  assert state_of(_model(optimizer__name='sgd')).optimizer <= counters
  assert state_of(_model(ema_decay=0.9)).optimizer == state.optimizer + size
  assert state_of(_model(micro_batches=4)).gradients == 2 * size
  assert state_of(_model(precision='params=bfloat16')).parameters == size // 2


def test_a_model_that_can_only_be_used_has_parameters_alone():
  model = describe(optical_flow.get_config('debug'))
  assert state_of(model) == State(4 * num_parameters(model), 0, 0)
  line = compiled(model)
  assert line.per_example > 0 and compiled_bytes(model, 5) == pytest.approx(line.at(5), rel=0.2)


@pytest.mark.parametrize('changes', [{}, {'optimizer__name': 'sgd', 'model__num_latents': 48}])
def test_the_estimate_is_close_to_the_memory_of_the_compiled_step(changes):
  estimated, found = estimate(_model(**changes)), compiled(_model(**changes))
  assert estimated.per_example == pytest.approx(found.per_example, rel=0.1)
  assert estimated.at(200) == pytest.approx(found.at(200), rel=0.1)


def test_the_largest_batch_fits_as_compiled_and_not_many_more():
  line = compiled(_model())
  budget = line.at(150) + line.per_example // 2
  assert line.largest(budget) == 150
  assert compiled_bytes(_model(), 150) == pytest.approx(budget, rel=0.05)
  assert estimate(_model()).largest(budget) == pytest.approx(150, rel=0.15)


def test_what_a_step_needs_grows_with_the_examples_and_starts_at_the_update():
  line = Line(fixed=100, per_example=10, least=150)
  assert [line.at(n) for n in (1, 5, 6, 20)] == [150, 150, 160, 300]
  assert [line.largest(budget) for budget in (149, 150, 159, 160, 305)] == [0, 5, 5, 6, 20]


def test_more_latents_layers_and_pixels_need_more_and_half_the_precision_or_remat_less():
  base = estimate(_model()).per_example
  for changes in ({'model__num_latents': 32}, {'model__num_blocks': 3}, {'data__image_size': 16}):
    assert estimate(_model(**changes)).per_example > 1.2 * base, changes
  half = estimate(_model(precision='params=float32,compute=bfloat16,output=float32'))
  assert half.per_example < 0.8 * base
  deep, again = (estimate(_model(model__num_blocks=4, remat=remat)) for remat in ('none', 'layers'))
  assert again.per_example < 0.6 * deep.per_example


def test_nothing_of_it_exists():
  before = len(jax.live_arrays())
  model = describe(imagenet.get_config())
  estimate(model)
  assert len(jax.live_arrays()) - before < 100  # schedules keep a scalar or two
