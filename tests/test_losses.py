"""Losses: by hand, under padding, under awkward logits, and their gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perceiver_jax import losses

LOGITS = np.array([[2.0, 0.0, -1.0], [0.5, 0.5, 0.5], [-3.0, 4.0, 1.0]], np.float32)
LABELS = np.array([0, 2, 1])
ONES = np.ones(3, np.float32)

softmax_cross_entropy = jax.jit(losses.softmax_cross_entropy, static_argnames='label_smoothing')


def _by_hand(logits, labels, smoothing):
  """[B] losses in float64, from the definition: -sum(target * log(softmax))."""
  logits = np.asarray(logits, np.float64)
  probs = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
  num_classes = logits.shape[-1]
  target = (1 - smoothing) * np.eye(num_classes)[labels] + smoothing / num_classes
  return -(target * np.log(probs)).sum(-1)


@pytest.mark.parametrize('smoothing', [0.0, 0.1, 1.0])
def test_the_loss_is_the_cross_entropy_with_the_smoothed_target(smoothing):
  total, weight = softmax_cross_entropy(LOGITS, LABELS, ONES, label_smoothing=smoothing)
  np.testing.assert_allclose(total, _by_hand(LOGITS, LABELS, smoothing).sum(), rtol=1e-6)
  assert weight == 3.0


def test_two_classes_with_smoothing_agree_with_pencil_and_paper():
  # softmax([ln 3, 0]) = [3/4, 1/4]; the target of label 0 with s = 0.2 is [0.9, 0.1].
  total, _ = softmax_cross_entropy(
      np.array([[np.log(3), 0]], np.float32), np.array([0]), np.ones(1, np.float32), label_smoothing=0.2)
  np.testing.assert_allclose(total, -0.9 * np.log(3 / 4) - 0.1 * np.log(1 / 4), rtol=1e-6)


def test_the_mask_weighs_examples():
  mask = np.array([1.0, 0.0, 0.5], np.float32)
  total, weight = softmax_cross_entropy(LOGITS, LABELS, mask)
  np.testing.assert_allclose(total, (mask * _by_hand(LOGITS, LABELS, 0.0)).sum(), rtol=1e-6)
  assert weight == 1.5


@pytest.mark.parametrize('poison', [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize('smoothing', [0.0, 0.1])
def test_padding_poisons_neither_the_loss_nor_its_gradient(poison, smoothing):
  def loss(logits, labels, mask):
    return softmax_cross_entropy(logits, labels, mask, label_smoothing=smoothing)[0]

  padded_logits = np.concatenate([LOGITS, np.full((2, 3), poison, np.float32)])
  padded_labels = np.concatenate([LABELS, [-1, 7]])
  padded_mask = np.concatenate([ONES, np.zeros(2, np.float32)])
  value, gradient = jax.value_and_grad(loss)(padded_logits, padded_labels, padded_mask)
  true_value, true_gradient = jax.value_and_grad(loss)(LOGITS, LABELS, ONES)
  np.testing.assert_allclose(value, true_value, rtol=1e-6)
  np.testing.assert_allclose(gradient[:3], true_gradient, rtol=1e-6)
  np.testing.assert_array_equal(gradient[3:], 0.0)


def test_only_padding_is_a_loss_of_zero_over_a_weight_of_zero():
  total, weight = softmax_cross_entropy(np.full_like(LOGITS, np.nan), LABELS, np.zeros(3, np.float32))
  assert (total, weight) == (0.0, 0.0)


def test_a_nan_in_a_real_example_is_not_hidden():
  logits = LOGITS.copy()
  logits[1, 0] = np.nan
  assert np.isnan(softmax_cross_entropy(logits, LABELS, ONES)[0])


@pytest.mark.parametrize('label', [-1, 3])
def test_a_label_that_is_no_class_gives_nan(label):
  assert np.isnan(softmax_cross_entropy(LOGITS, np.array([0, label, 1]), ONES)[0])


def test_a_class_ruled_out_by_minus_infinity_costs_nothing():
  logits = np.array([[1.0, -np.inf, 0.0]], np.float32)
  value, gradient = jax.value_and_grad(
      lambda logits: softmax_cross_entropy(logits, np.array([0]), np.ones(1, np.float32))[0])(logits)
  np.testing.assert_allclose(value, np.log(1 + np.exp(-1)), rtol=1e-6)
  np.testing.assert_allclose(gradient, [[-1 / (1 + np.e), 0.0, 1 / (1 + np.e)]], rtol=1e-6)


def test_huge_logits_do_not_overflow():
  total, _ = softmax_cross_entropy(np.array([[1e30, 0.0]], np.float32), np.array([0]), np.ones(1, np.float32))
  assert total == 0.0


def test_the_gradient_is_softmax_minus_the_target():
  gradient = jax.grad(lambda logits: softmax_cross_entropy(logits, LABELS, ONES, label_smoothing=0.1)[0])(LOGITS)
  target = 0.9 * np.eye(3)[LABELS] + 0.1 / 3
  np.testing.assert_allclose(gradient, jax.nn.softmax(LOGITS) - target, atol=1e-6)


def test_low_precision_logits_are_summed_in_float32():
  logits = jnp.zeros((1000, 10), jnp.bfloat16)
  total, weight = softmax_cross_entropy(logits, np.zeros(1000, int), np.ones(1000, np.float32))
  assert total.dtype == weight.dtype == jnp.float32
  np.testing.assert_allclose(total, 1000 * np.log(10), rtol=1e-5)  # bfloat16 would be off by 1e-3


def test_float64_logits_stay_float64():
  with jax.enable_x64(True):
    total, weight = softmax_cross_entropy(LOGITS.astype(np.float64), LABELS, ONES)
    assert total.dtype == weight.dtype == jnp.float64
    np.testing.assert_allclose(total, _by_hand(LOGITS, LABELS, 0.0).sum(), rtol=1e-14)
