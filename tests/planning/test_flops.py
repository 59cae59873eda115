"""FLOPs: by hand for a few functions and a tiny model, and as the papers print them for theirs."""

from __future__ import annotations

import importlib

import jax
import jax.numpy as jnp
import pytest

from perceiver_jax.config.values import changed
from perceiver_jax.planning.flops import computed_flops, flops, forward_flops
from perceiver_jax.planning.model import describe

LEFT, RIGHT = jnp.ones((3, 4)), jnp.ones((4, 5))
PRODUCT = 2 * 3 * 4 * 5


def _config(experiment, **changes):
  family, _, variant = experiment.partition(':')
  config = importlib.import_module(f'configs.{family}').get_config(variant)
  return changed(config, {key.replace('__', '.'): value for key, value in changes.items()})


def test_a_product_counts_its_multiplications_and_additions():
  assert flops(jnp.matmul, LEFT, RIGHT) == PRODUCT
  assert flops(lambda a, b: jnp.einsum('bij,bkj->bik', a, b), jnp.ones((7, 3, 4)), jnp.ones((7, 5, 4))) == 7 * PRODUCT
  assert flops(lambda a: jax.nn.softmax(jnp.sin(a)), LEFT) == 0


def test_a_convolution_counts_its_kernel_at_every_output():
  image, kernel = jnp.ones((2, 8, 8, 6)), jnp.ones((3, 3, 6, 10))
  convolve = lambda image, kernel, strides, groups=1: jax.lax.conv_general_dilated(
    image, kernel, strides, 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC'), feature_group_count=groups)
  once = 2 * (2 * 4 * 4 * 10) * (3 * 3 * 6)
  assert flops(lambda *a: convolve(*a, (2, 2)), image, kernel) == once
  assert flops(lambda *a: convolve(*a, (2, 2), 2), image, kernel[:, :, :3]) == once // 2
  gradients = jax.grad(lambda *a: convolve(*a, (2, 2)).sum(), argnums=(0, 1))
  # By the kernel as much; by the image, whose gradient has 4 times the places, an eighth of them at a border, about.
  assert 2 * once <= flops(gradients, image, kernel) <= 4 * once


def test_a_loop_counts_as_often_as_it_turns():
  square = jnp.ones((3, 3))
  step = lambda carry, _: (carry @ square, None)
  assert flops(lambda x: jax.lax.scan(step, x, None, length=9), square) == 9 * 2 * 27
  assert flops(lambda x: jax.lax.map(lambda row: row @ square, x), jnp.ones((11, 3))) == 11 * 2 * 9
  twice = lambda x: jax.lax.scan(lambda c, _: (jax.lax.scan(step, c, None, length=9)[0], None), x, None, length=2)
  assert flops(twice, square) == 2 * 9 * 2 * 27


def test_of_alternatives_the_most_expensive_counts():
  choose = lambda yes, a, b: jax.lax.cond(yes, lambda: a @ b, lambda: jnp.ones((3, 5)))
  assert flops(choose, True, LEFT, RIGHT) == PRODUCT


def test_what_wraps_a_function_is_seen_through():
  @jax.custom_vjp
  def custom(a, b):
    return a @ b

  custom.defvjp(lambda a, b: (a @ b, (a, b)), lambda kept, g: (g @ kept[1].T @ kept[1] @ kept[1].T, kept[0].T @ g))
  for wrapped in (jax.jit(jnp.matmul), jax.checkpoint(jnp.matmul), custom):
    assert flops(wrapped, LEFT, RIGHT) == PRODUCT
  assert flops(jax.grad(lambda a, b: custom(a, b).sum(), argnums=(0, 1)), LEFT, RIGHT) == 5 * PRODUCT
  again = jax.grad(lambda a, b: jax.checkpoint(lambda a, b: jnp.sin(a @ b).sum())(a, b), argnums=(0, 1))
  assert flops(again, LEFT, RIGHT) == 4 * PRODUCT  # the product, once more, and two gradients


def test_a_loop_of_unknown_length_is_not_guessed_at():
  def until_large(x):
    return jax.lax.while_loop(lambda x: x.sum() < 100, lambda x: x @ jnp.ones((3, 3)), x)

  with pytest.raises(ValueError, match='nobody knows how often'):
    flops(until_large, jnp.ones((3, 3)))


def test_a_tiny_model_by_hand():
  """The formulas of the papers, for imagenet:debug: 16 x 16 pixels of 3 colours and 2 x (2 x 4 + 1) positions."""
  linear = lambda rows, a, b: 2 * rows * a * b
  M, C, N, D, E = 256, 21, 4, 16, 5

  def cross(T, Cq, S, C):
    logits_and_average = 2 * T * S * (C + C)
    mlp = 2 * linear(T, Cq, Cq)
    return linear(T, Cq, C) + 2 * linear(S, C, C) + logits_and_average + linear(T, C, Cq) + mlp

  expected = cross(N, D, M, C) + 2 * cross(N, D, N, D) + cross(1, D, N, D) + linear(1, D, E)
  assert forward_flops(_config('imagenet:debug')) == expected


@pytest.mark.parametrize('experiment, changes, printed', [
  ('imagenet:fourier', {}, 407),
  ('imagenet:conv', {}, 369),
  ('imagenet:conv_pool', {}, 367),
  ('imagenet:fourier_pool', {}, 404.3),
  ('imagenet:perceiver', {}, 707.2),
  ('imagenet:perceiver', {'model__num_cross_attends': 4}, 534.1),
  ('imagenet:perceiver', {'model__num_cross_attends': 2}, 447.6),
  ('imagenet:perceiver', {'model__num_cross_attends': 4, 'model__num_blocks': 0}, 173.1),
  ('imagenet:perceiver', {'model__num_cross_attends': 8, 'model__num_blocks': 0}, 346.1),
  ('masked_lm:plus_plus', {}, 241),
  ('optical_flow:small', {}, 987),
])
def test_what_the_papers_print_is_what_is_counted(experiment, changes, printed):
  assert forward_flops(_config(experiment, **changes)) / 1e9 == pytest.approx(printed, rel=0.01)


@pytest.mark.parametrize('experiment, formula', [
  ('imagenet:learned', 478.0), ('optical_flow', 1887), ('masked_lm', 120.9), ('masked_lm:sentencepiece', 108.4 + 25.2),
  ('imagenet:config_b', 269), ('imagenet:conv,config_b', 232),
])
def test_where_the_papers_print_something_else_the_formula_is_met(experiment, formula):
  assert forward_flops(_config(experiment)) / 1e9 == pytest.approx(formula, rel=2e-3)


@pytest.mark.parametrize('experiment', [
  'cifar10', 'digits', 'placed_digits', 'video_autoencoding:debug', 'imagenet:resnet50', 'imagenet:vit',
  'imagenet:transformer', 'imagenet:rgb', 'imagenet:permuted', 'imagenet:rgb256', 'imagenet:perceiver_learned'])
def test_every_other_model_can_be_counted(experiment):
  assert forward_flops(_config(experiment)) > 0


def test_the_count_of_the_papers_does_not_ask_how_attention_is_computed():
  auto, chunked = (forward_flops(_config('imagenet:debug', attention_impl=each)) for each in ('auto', 'chunked'))
  assert auto == chunked


def test_what_is_computed_follows_the_config():
  dense, factored = (
    describe(_config('imagenet:perceiver', attention_impl=attention_impl)) for attention_impl in ('dense', 'factored'))
  assert computed_flops(dense, 1, is_training=False) == pytest.approx(forward_flops(dense.config), rel=1e-3)
  assert computed_flops(factored, 1, is_training=False) < 0.6 * forward_flops(dense.config)


def test_a_step_computes_three_forward_passes():
  model = describe(_config('imagenet:fourier', attention_impl='dense', remat='none'))
  share = computed_flops(model, 2, is_training=True) / forward_flops(model.config)
  assert share == pytest.approx(3, rel=1e-3)


def test_what_is_computed_again_counts_again():
  models = (describe(_config('digits', remat=remat)) for remat in ('none', 'dots', 'layers'))
  none, dots, layers = (computed_flops(model, 1, is_training=True) for model in models)
  assert none <= dots < layers
