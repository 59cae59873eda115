"""Metrics: ranks, ties, NaN and padding; adding up and dividing once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perceiver_jax import metrics

ONES = np.ones(4, np.float32)
LOGITS = np.array([[0.1, 0.9, 0.5], [0.1, 0.9, 0.5], [0.1, 0.9, 0.5], [-5.0, -4.0, -6.0]], np.float32)
LABELS = np.array([1, 2, 0, 0])          # ranked first, second, third, second

top_k_accuracy = jax.jit(metrics.top_k_accuracy, static_argnums=3)


@pytest.mark.parametrize('k, num_correct', [(1, 1), (2, 3), (3, 4), (5, 4)])
def test_a_label_is_correct_when_it_is_among_the_k_highest(k, num_correct):
  assert top_k_accuracy(LOGITS, LABELS, ONES, k) == (num_correct, 4)


def test_top_1_is_argmax_even_with_ties():
  generator = np.random.default_rng(0)
  logits = generator.integers(-1, 2, size=(500, 5)) * np.float32(-1.0)  # plenty of ties, and of -0.0 beside 0.0
  labels = generator.integers(0, 5, size=500)
  correct, weight = top_k_accuracy(jnp.asarray(logits), labels, np.ones(500, np.float32), k=1)
  assert (correct, weight) == ((logits.argmax(-1) == labels).sum(), 500)


def test_a_head_of_zeros_scores_chance():
  labels = np.arange(10)
  zeros, ones = np.zeros((10, 10), np.float32), np.ones(10, np.float32)
  assert top_k_accuracy(zeros, labels, ones, k=1) == (1, 10)
  assert top_k_accuracy(zeros, labels, ones, k=5) == (5, 10)


def test_a_row_with_nan_is_never_correct():
  logits = np.array([[np.nan, 0.0], [0.0, np.nan], [np.nan, np.nan], [1.0, 0.0]], np.float32)
  assert top_k_accuracy(logits, np.zeros(4, int), ONES, k=2) == (1, 4)


def test_infinite_logits_rank_like_any_other():
  logits = np.array([[np.inf, 0.0], [-np.inf, 0.0]], np.float32)
  assert top_k_accuracy(logits, np.zeros(2, int), ONES[:2], k=1) == (1, 2)


@pytest.mark.parametrize('label', [-1, 3])
def test_a_label_that_is_no_class_is_never_correct(label):
  assert top_k_accuracy(LOGITS, np.full(4, label), ONES, k=5) == (0, 4)


def test_padding_counts_neither_above_nor_below_the_line():
  logits = np.concatenate([LOGITS, np.full((3, 3), np.nan, np.float32), LOGITS[:1]])
  labels = np.concatenate([LABELS, [0, -1, 9], LABELS[:1]])
  mask = np.array([1, 1, 0.5, 1, 0, 0, 0, 0], np.float32)
  assert top_k_accuracy(logits, labels, mask, k=2) == (3.0, 3.5)


def test_low_precision_logits_and_masks_count_in_float32():
  logits = jnp.zeros((1000, 2), jnp.bfloat16)
  correct, weight = top_k_accuracy(logits, np.zeros(1000, int), jnp.ones(1000, jnp.bfloat16), k=1)
  assert correct.dtype == weight.dtype == jnp.float32
  assert (correct, weight) == (1000, 1000)


def test_totals_add_by_name_from_nothing():
  totals = metrics.add({}, {'loss': (3.0, 2.0)})
  totals = metrics.add(totals, {'loss': (jnp.float32(1.0), np.float32(6.0)), 'accuracy': (1.0, 2.0)})
  assert totals == {'loss': (4.0, 8.0), 'accuracy': (1.0, 2.0)}


def test_adding_counts_beyond_what_float32_can():
  many = {'accuracy': (np.float32(2**24), np.float32(2**24))}
  one = {'accuracy': (np.float32(1), np.float32(1))}
  total, weight = map(float, metrics.add(many, one)['accuracy'])  # np.float32 == int would round the int
  assert (total, weight) == (2**24 + 1, 2**24 + 1)


def test_adding_changes_neither_side():
  a, b = {'loss': (1.0, 1.0)}, {'loss': (2.0, 1.0)}
  metrics.add(a, b)
  assert (a, b) == ({'loss': (1.0, 1.0)}, {'loss': (2.0, 1.0)})


def test_uneven_batches_divide_once_to_the_mean_over_examples():
  batches = [(6.0, 8.0), (6.0, 8.0), (3.0, 6.0)]  # 22 examples in batches of 8
  totals = {}
  for batch in batches:
    totals = metrics.add(totals, {'accuracy': batch})
  assert metrics.divide(totals) == {'accuracy': 15 / 22}


def test_a_division_is_in_float64_and_gives_a_float():
  mean = metrics.divide({'loss': (jnp.float32(1.0), jnp.float32(3.0))})['loss']
  assert type(mean) is float
  assert mean == 1 / 3


def test_a_weight_of_zero_divides_to_nan():
  assert np.isnan(metrics.divide({'loss': (np.float32(0.0), np.float32(0.0))})['loss'])
