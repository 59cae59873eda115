"""Queries in chunks: the same answers, whatever the chunk, with parameters or without."""

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perceiver_jax.core import attention
from perceiver_jax.core.attention import attend
from perceiver_jax.core.chunks import in_chunks

pytestmark = pytest.mark.usefixtures('quick_compilation')

QUERY = np.random.default_rng(0).normal(size=(2, 11, 3)).astype(np.float32)


def _answer(rows):
  some = jnp.asarray(QUERY)[:, rows]
  return {'linear': hk.Linear(4, name='linear')(some), 'sum': jnp.sum(some, axis=-1)}


@pytest.mark.parametrize('chunk_size', [1, 3, 10, 11, 12, 100])
def test_the_size_of_a_chunk_changes_no_answer_and_no_parameter(chunk_size):
  whole = hk.without_apply_rng(hk.transform(lambda: _answer(slice(None))))
  chunked = hk.without_apply_rng(hk.transform(lambda: in_chunks(_answer, 11, chunk_size)))
  params = whole.init(jax.random.key(0))
  jax.tree.map(np.testing.assert_array_equal, params, chunked.init(jax.random.key(0)))
  answers, expected = chunked.apply(params), whole.apply(params)
  assert jax.tree.map(np.shape, answers) == {'linear': (2, 11, 4), 'sum': (2, 11)}
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6), answers, expected)


def test_no_more_than_a_chunk_is_answered_at_once():
  sizes = []

  def answer(rows):
    some = jnp.asarray(QUERY)[:, rows]
    sizes.append(some.shape[1])
    return some

  found = hk.transform(lambda: in_chunks(answer, 11, 4)).apply({}, None)
  np.testing.assert_array_equal(found, QUERY)
  assert set(sizes) == {4}


@pytest.mark.parametrize('masked_rows', ['zero', 'mean'])
@pytest.mark.parametrize('masked', [False, True])
def test_attention_in_chunks_is_attention(masked, masked_rows):
  rng = np.random.default_rng(0)
  query, key, value = (rng.normal(size=(2, n, 2, 4)).astype(np.float32) for n in (11, 7, 7))
  masks = {}
  if masked:
    valid = (rng.uniform(size=(2, 7)) < 0.6).astype(int)
    valid[1] = 0
    masks = {'valid': valid, 'query_mask': (rng.uniform(size=(2, 11)) < 0.6).astype(int)}
  expected = attend(query, key, value, masked_rows=masked_rows, capture=True, **masks)
  for most_logits in (1, 2 * 2 * 7 * 3, 2 * 2 * 7 * 11):
    function = hk.transform(lambda most=most_logits: attend(
      query, key, value, masked_rows=masked_rows, most_logits=most, capture=True, **masks))
    found = function.apply({}, None)
    for a, b in zip(found, expected, strict=True):
      np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)


def test_attention_that_is_not_training_goes_in_chunks(monkeypatch):
  monkeypatch.setattr(attention, 'MOST_LOGITS', 20)
  inputs = jnp.ones((2, 7, 6))
  jaxprs = []
  for is_training in (False, True):
    function = hk.transform(
      lambda on=is_training: attention.Attention(2, 4, 4, 5)(jnp.asarray(QUERY), inputs, is_training=on))
    params = function.init(jax.random.key(0))
    jaxprs.append(str(jax.make_jaxpr(function.apply)(params, None)))
  assert ['scan' in jaxpr for jaxpr in jaxprs] == [True, False]
