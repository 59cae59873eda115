"""The kernels of the factored attention against the formula in NumPy: on a GPU, or else as Pallas interprets them."""

import functools

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perceiver_jax.core.cross_attend import CrossAttend
from perceiver_jax.core.factored import kernels, sums
from perceiver_jax.core.factored.kernels import backward, forward, suits
from perceiver_jax.core.factored.sums import Scores, Tables, Tiles
from perceiver_jax.core.input_array import InputArray
from perceiver_jax.core.position_encoding import fourier_grid
from tests.core.test_attention import ROUNDED_ALIKE

FLOAT = np.float32
INTERPRET = jax.default_backend() != 'gpu'

pytestmark = pytest.mark.usefixtures('quick_compilation')


def _problem(batch_size, num_tiles, width, num_channels, num_rows, *, masked=False, size=1.0):
  """Scores, tiles, and cotangents of the sums and of the logarithm."""
  rng = np.random.default_rng(num_rows)
  draw = lambda *shape: rng.normal(size=shape).astype(FLOAT)
  trees = [
    Scores(draw(batch_size, num_channels, num_rows),
           Tables(draw(batch_size, num_tiles, num_rows), draw(batch_size, width, num_rows))) for _ in range(2)]
  scores = jax.tree.map(lambda x: x * FLOAT(size), trees[0])
  valid = None
  if masked:
    valid = rng.random((batch_size, num_tiles, width)) < 0.7
    valid[:, 0] = False   # a whole tile
    valid[-1] = False     # a whole example
  scale = rng.uniform(0.5, 1.5, (batch_size, num_tiles, width)).astype(FLOAT)
  tiles = Tiles(draw(batch_size, num_tiles, width, num_channels), scale, valid)
  return scores, tiles, (trees[1], draw(batch_size, num_rows))


def _logits(scores, tiles):
  raw = np.einsum('bswf,bfr->bswr', tiles.features, scores.content)
  raw = raw + scores.tables.lead[:, :, None] + scores.tables.last[:, None]
  logits = raw if tiles.scale is None else raw * tiles.scale[..., None]
  return raw, logits if tiles.valid is None else np.where(tiles.valid[..., None], logits, -1e30)


def _expected(scores, tiles, cotangents):
  """Sums, logarithm, and gradients of scores, features and scale, all in float64, of all logits at once."""
  scores, tiles, (slopes, slope_of_lse) = jax.tree.map(
    lambda x: x if x.dtype == bool else x.astype(np.float64), (scores, tiles, cotangents))
  scale = (np.ones(tiles.features.shape[:3]) if tiles.scale is None else tiles.scale)[..., None]
  raw, logits = _logits(scores, tiles)
  highest = logits.max((1, 2), keepdims=True)
  total = np.exp(logits - highest).sum((1, 2), keepdims=True)
  softmax = np.exp(logits - highest) / total
  sums = _summed(softmax * scale, tiles.features)
  mean = sum((x * slope).sum(1) for x, slope in zip(jax.tree.leaves(sums), jax.tree.leaves(slopes), strict=True))
  of_weights, _ = _logits(slopes, tiles)
  of_logits = softmax * (of_weights * scale + (slope_of_lse - mean)[:, None, None])
  if tiles.valid is not None:
    of_logits = np.where(tiles.valid[..., None], of_logits, 0)
  of_features = np.einsum('bswr,bfr->bswf', of_logits * scale, scores.content)
  of_features = of_features + np.einsum('bswr,bfr->bswf', softmax * scale, slopes.content)
  of_scale = (softmax * of_weights + of_logits * raw).sum(3)
  lse = (highest + np.log(total))[:, 0, 0]
  return (sums, lse), (_summed(of_logits * scale, tiles.features), of_features, of_scale)


def _summed(weights, features):
  return Scores(np.einsum('bswr,bswf->bfr', weights, features), Tables(weights.sum(2), weights.sum(1)))


def _passes(scores, tiles, cotangents, to_tiles=True, interpret=INTERPRET):
  sums, lse = forward(scores, tiles, interpret=interpret)
  of_scores, of_tiles = backward(scores, tiles, sums, lse, cotangents, to_tiles=to_tiles, interpret=interpret)
  return (sums, lse), (of_scores, of_tiles.features, of_tiles.scale)


_jit = functools.partial(jax.jit, static_argnames=('to_tiles', 'interpret'))
_by_kernels, _rounded_alike = _jit(_passes), _jit(_passes, compiler_options=ROUNDED_ALIKE)


def _assert_close(found, expected, tolerance=1e-5):
  """Relative to the norm of all of a tree."""
  assert jax.tree.map(np.shape, found) == jax.tree.map(np.shape, expected)
  found, expected = (np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)]) for tree in (found, expected))
  assert np.linalg.norm(found - expected) <= tolerance * np.linalg.norm(expected)


@pytest.mark.parametrize(('shape', 'masked'), [
  ((2, 3, 5, 3, 10), False),
  ((2, 3, 5, 3, 10), True),
  ((2, 2, 3, 0, 7), True),     # no features
  ((2, 3, 33, 20, 70), True),  # features by pieces, two of them, the last one not full
])
def test_kernels_compute_sums_and_gradients_as_the_formula(shape, masked):
  problem = _problem(*shape, masked=masked)
  expected, found = _expected(*problem), _by_kernels(*problem)
  for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
    assert one.shape == other.shape and one.dtype == FLOAT
  (sums, lse), gradients = found
  _assert_close(sums, expected[0][0])
  np.testing.assert_allclose(lse, expected[0][1], rtol=1e-6, atol=1e-5)
  _assert_close(gradients, expected[1])


@pytest.mark.parametrize('size', [1e2, 1e4])
def test_large_logits_neither_overflow_nor_lose_the_sum_of_the_softmax(size):
  scores, tiles, cotangents = _problem(2, 3, 5, 3, 10, size=size)
  assert np.abs(_logits(scores, tiles)[1]).max() > 2 * size
  (sums, lse), gradients = _by_kernels(scores, tiles, cotangents)
  (expected, expected_lse), expected_gradients = _expected(scores, tiles, cotangents)
  np.testing.assert_allclose(lse, expected_lse, rtol=1e-6)
  _assert_close(sums, expected)
  _assert_close(gradients, expected_gradients)  # the logarithm alone is known to 1e-7 of it, so of 1e4 to 1e-3


def test_without_a_scale_it_is_one():
  scores, tiles, cotangents = _problem(2, 3, 5, 3, 10)
  found = _rounded_alike(scores, tiles._replace(scale=None), cotangents)
  ones = _rounded_alike(scores, tiles._replace(scale=np.ones_like(tiles.scale)), cotangents)
  assert found[1][2] is None
  jax.tree.map(np.testing.assert_array_equal, (found[0], found[1][:2]), (ones[0], ones[1][:2]))


def test_tiles_have_gradients_only_where_asked():
  problem = _problem(2, 3, 5, 3, 10)
  _, (of_scores, *of_tiles) = _rounded_alike(*problem, to_tiles=False)
  assert of_tiles == [None, None]
  jax.tree.map(np.testing.assert_array_equal, of_scores, _rounded_alike(*problem)[1][0])


def test_where_nothing_is_valid_all_elements_count_alike_and_no_score_has_a_gradient():
  scores, tiles, cotangents = _problem(2, 3, 5, 3, 10, masked=True)
  (sums, lse), (of_scores, _, _) = _by_kernels(scores, tiles, cotangents)
  of_places = np.repeat(tiles.scale[-1].sum(0)[:, None] / 15, 10, axis=1)
  np.testing.assert_allclose(sums.tables.last[-1], of_places, rtol=1e-5)
  np.testing.assert_array_equal(lse[-1], FLOAT(-1e30))
  assert all((x[-1] == 0).all() and (x[0] != 0).any() for x in jax.tree.leaves(of_scores))


def test_in_float64_over_several_runs_strips_and_blocks_they_are_exact():
  with jax.enable_x64(True):
    problem = jax.tree.map(
      lambda x: x if x.dtype == bool else x.astype(np.float64), _problem(2, 37, 17, 1, 130, masked=True))
    expected, found = _expected(*problem), _by_kernels(*problem, interpret=True)
  _assert_close(found[0][0], expected[0][0], 1e-13)
  _assert_close(found[1], expected[1], 1e-13)


@pytest.mark.parametrize('num_channels', [0, 3, 64])
@pytest.mark.parametrize('size', [224, 225])
@pytest.mark.parametrize(('platform', 'target', 'call'), [
  ('gpu', 'cuda', '__gpu$xla.gpu.triton'),
  ('tpu', 'tpu', 'tpu_custom_call'),
])
def test_they_lower_for_a_device_at_the_size_of_a_photograph(num_channels, size, platform, target, call):
  like = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)
  scores = Scores(like(2, num_channels, 512), Tables(like(2, size, 512), like(2, size, 512)))
  tiles = Tiles(like(2, size, size, num_channels), like(2, size, size), jax.ShapeDtypeStruct((2, size, size), bool))
  lse = like(2, 512)
  there = jax.jit(functools.partial(forward, platform=platform)).trace(scores, tiles)
  back = jax.jit(functools.partial(backward, platform=platform, to_tiles=True)).trace(
    scores, tiles, scores, lse, (scores, lse))
  for traced in (there, back):
    assert traced.lower(lowering_platforms=(target,)).as_text().count(call) == 2  # kernels


def test_they_are_for_float32_on_a_grid_with_few_channels():
  scores, _, _ = _problem(1, 2, 3, 64, 5)
  assert suits(scores)
  assert not suits(scores._replace(tables=None))
  assert not suits(scores._replace(content=scores.content.astype(jnp.bfloat16)))
  assert not suits(scores._replace(content=np.zeros((1, 65, 5), FLOAT)))


def _attended(query, features):
  inputs = InputArray(features, fourier_grid((5, 7), 3))
  return jnp.sum(CrossAttend(attention_impl='factored')(query, inputs, is_training=False)[0] ** 2)


def _gradient():
  """That of a cross-attend by its parameters and arguments, and these."""
  rng = np.random.default_rng(0)
  arrays = [rng.normal(size=shape).astype(np.float32) for shape in ((2, 6, 8), (2, 35, 3))]
  function = hk.transform(_attended)
  params = jax.jit(function.init)(jax.random.key(0), *arrays)
  return lambda: jax.jit(jax.grad(lambda x: function.apply(x[0], None, *x[1:]))), (params, *arrays)


def test_a_cross_attend_has_the_same_gradient_by_the_kernels(monkeypatch):
  gradient, arguments = _gradient()
  expected = gradient()(arguments)
  monkeypatch.setattr(sums, '_has_kernel', suits)
  for name, function in (('forward', forward), ('backward', backward)):
    monkeypatch.setattr(kernels, name, functools.partial(function, interpret=INTERPRET))
  _assert_close(gradient()(arguments), expected)


def test_on_a_gpu_a_cross_attend_is_the_kernels(monkeypatch):
  gradient, arguments = _gradient()
  monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
  text = gradient().trace(arguments).lower(lowering_platforms=('cuda',)).as_text()
  assert text.count('triton_kernel_call') + text.count('__gpu$xla.gpu.triton') >= 4 and 'stablehlo.while' not in text
