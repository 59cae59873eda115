"""Attention and the two blocks against plain NumPy in float64, their masks, dtypes, gradients and dropout."""

import functools
import math
import os

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perceiver_jax.core import attention
from perceiver_jax.core.attention import Attention, Mlp, SelfAttend, attend, layer_norm
from perceiver_jax.core.cross_attend import CrossAttend
from perceiver_jax.core.input_array import InputArray
from perceiver_jax.types import UserError

pytestmark = pytest.mark.usefixtures('quick_compilation')

# The reference, also of test_perceiver: what the papers and the authors' code say, one example and one head at a time.


def tanh_gelu(x):
  return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def erf_gelu(x):
  return 0.5 * x * (1 + np.vectorize(math.erf)(x / np.sqrt(2)))


def reference_linear(params, path, x):
  return x @ params[path]['w'] + params[path]['b']


def reference_norm(params, path, x, epsilon=1e-5):
  centred = x - x.mean(-1, keepdims=True)
  normed = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + epsilon)
  return normed * params[path]['scale'] + params[path]['offset']


def reference_mlp(params, path, x, gelu=tanh_gelu):
  return reference_linear(params, f'{path}/output', gelu(reference_linear(params, f'{path}/hidden', x)))


def reference_attend(query, key, value, may=None):
  """[B, T, H, K], [B, S, H, K], [B, S, H, V], may [B, T, S] -> [B, T, H * V] and weights [B, H, T, S]."""
  batch_size, num_queries, num_heads, qk_size = query.shape
  num_keys, v_size = value.shape[1], value.shape[3]
  outputs = np.zeros((batch_size, num_queries, num_heads * v_size))
  weights = np.zeros((batch_size, num_heads, num_queries, num_keys))
  for b in range(batch_size):
    for h in range(num_heads):
      logits = query[b, :, h] @ key[b, :, h].T / np.sqrt(qk_size)
      if may is not None:
        logits = np.where(may[b], logits, -1e30)
      exponentials = np.exp(logits - logits.max(-1, keepdims=True))
      weights[b, h] = exponentials / exponentials.sum(-1, keepdims=True)
      outputs[b, :, h * v_size:(h + 1) * v_size] = weights[b, h] @ value[b, :, h]
    if may is not None:
      outputs[b, ~may[b].any(-1)] = 0
  return outputs, weights


def reference_attention(params, path, query, inputs, num_heads, may=None):
  split = lambda x: x.reshape(*x.shape[:2], num_heads, -1)
  sources = {'query': query, 'key': inputs, 'value': inputs}
  projected = {name: split(reference_linear(params, f'{path}/{name}', x)) for name, x in sources.items()}
  outputs, weights = reference_attend(**projected, may=may)
  return reference_linear(params, f'{path}/output', outputs), weights


def reference_cross_attend(params, path, query, inputs, num_heads=1, query_residual=True, may=None, epsilon=1e-5):
  normed_query = reference_norm(params, f'{path}/query_norm', query, epsilon)
  normed_inputs = reference_norm(params, f'{path}/inputs_norm', inputs, epsilon)
  attended, weights = reference_attention(params, f'{path}/attention', normed_query, normed_inputs, num_heads, may)
  x = query + attended if query_residual else attended
  return x + reference_mlp(params, f'{path}/mlp', reference_norm(params, f'{path}/mlp_norm', x, epsilon)), weights


def reference_self_attend(params, path, x, num_heads):
  normed = reference_norm(params, f'{path}/attention_norm', x)
  attended, weights = reference_attention(params, f'{path}/attention', normed, normed, num_heads)
  x = x + attended
  return x + reference_mlp(params, f'{path}/mlp', reference_norm(params, f'{path}/mlp_norm', x)), weights


def randomise(params, dtype=np.float32, seed=0):
  """Every leaf random and far from its initial value, so that each one matters: biases, norms and zero heads too."""
  generator = np.random.default_rng(seed)

  def leaf(name, shape):
    noise = generator.normal(size=shape)
    scale = {'w': shape[0] ** -0.5, 'b': 0.3, 'scale': 0.3, 'offset': 0.3}.get(name, 1.0)
    return ((name == 'scale') + scale * noise).astype(dtype)

  return {
    path: {name: leaf(name, x.shape) for name, x in sorted(leaves.items())} for path, leaves in sorted(params.items())}


# The quick code generator that conftest.py asks for rounds by what else a program computes; the one shipped does not.
ROUNDED_ALIKE = (
  {'xla_cpu_use_fusion_emitters': True} if 'xla_cpu_use_fusion_emitters=false' in os.environ['XLA_FLAGS'] else {})


def compiled(function, **options):
  """jit, optimised little, as compiling takes most time, and with results in NumPy, as comparing must not compile."""
  function = jax.jit(function, compiler_options={'xla_backend_optimization_level': 0, **options})
  return lambda *arguments: jax.tree.map(np.asarray, function(*arguments))


def build(forward, *arguments, dtype=np.float64):
  """Random parameters for a function that calls Haiku modules, and its compiled `apply(params, key, *arguments)`."""
  function = hk.transform(forward)
  return randomise(jax.eval_shape(function.init, jax.random.key(0), *arguments), dtype), compiled(function.apply)


def assert_gradient_is_numeric(function, arguments, step=3e-5):
  """Of a scalar function, along three random directions, by central differences, in float64; returns the gradient."""
  value, gradient = compiled(function), compiled(jax.grad(function))(arguments)
  assert {x.dtype for x in jax.tree.leaves(gradient)} == {np.dtype('float64')}
  shifted = lambda direction, size: value(jax.tree.map(lambda x, d: x + size * d, arguments, direction))
  for seed in range(3):
    generator = np.random.default_rng(seed)
    direction = jax.tree.map(lambda x, draw=generator.normal: draw(size=x.shape), arguments)
    length = np.sqrt(sum(np.vdot(d, d) for d in jax.tree.leaves(direction)))
    direction = jax.tree.map(lambda d, length=length: d / length, direction)
    numeric = (shifted(direction, step) - shifted(direction, -step)) / (2 * step)
    analytic = sum(np.vdot(d, g) for d, g in zip(jax.tree.leaves(direction), jax.tree.leaves(gradient), strict=True))
    assert abs(analytic) > 1e-3  # else the comparison says nothing
    np.testing.assert_allclose(analytic, numeric, rtol=1e-7)
  return gradient


def cross_attend(**settings):
  """The module as a function of two arrays."""
  return lambda query, inputs: CrossAttend(**settings)(query, InputArray(inputs), is_training=False, capture=True)


@pytest.fixture(name='float64')
def _float64():
  with jax.enable_x64(True):
    yield


def normal(*shape, seed=0):
  return np.random.default_rng([seed, *shape]).normal(size=shape)


VALID = np.array([[1, 0, 1, 1, 0], [0, 1, 1, 0, 0], [0, 0, 0, 0, 0]])  # nothing to read in the last example
QUERY_MASK = np.array([[1, 1, 0, 1], [0, 1, 1, 1], [1, 0, 1, 1]])


@pytest.mark.usefixtures('float64')
@pytest.mark.parametrize('masked', ['nothing', 'keys', 'queries', 'both'])
@pytest.mark.parametrize('num_heads, qk_size, v_size', [(1, 5, 5), (2, 3, 4)])
def test_attend_is_scaled_dot_product_attention(num_heads, qk_size, v_size, masked):
  query, key = normal(3, 4, num_heads, qk_size), normal(3, 5, num_heads, qk_size)
  value = normal(3, 5, num_heads, v_size)
  valid = VALID if masked in ('keys', 'both') else None
  query_mask = QUERY_MASK if masked in ('queries', 'both') else None
  attend_masked = functools.partial(attend, valid=valid, query_mask=query_mask, capture=True)
  outputs, weights = compiled(attend_masked)(query, key, value)
  may = np.ones((3, 4, 5), bool)
  may &= True if valid is None else valid[:, None, :] != 0
  may &= True if query_mask is None else query_mask[:, :, None] != 0
  expected, expected_weights = reference_attend(query, key, value, may)
  np.testing.assert_allclose(outputs, expected, rtol=1e-12, atol=1e-12)
  attending = np.broadcast_to(may.any(-1)[:, None, :], weights.shape[:3])  # nobody reads by the other weights
  np.testing.assert_allclose(weights[attending], expected_weights[attending], rtol=1e-12, atol=1e-12)


@pytest.mark.usefixtures('float64')
@pytest.mark.parametrize('num_heads, qk_channels, v_channels, output_channels', [(1, 6, 5, 3), (3, 6, 12, 4)])
def test_attention_projects_splits_into_heads_and_joins_them_again(num_heads, qk_channels, v_channels, output_channels):
  def forward(query, inputs):
    attention = Attention(num_heads, qk_channels, v_channels, output_channels)
    return attention(query, inputs, is_training=False, capture=True)
  query, inputs = normal(2, 4, 7), normal(2, 5, 8)
  params, apply = build(forward, query, inputs)
  expected, expected_weights = reference_attention(params, 'attention', query, inputs, num_heads)
  outputs, weights = apply(params, None, query, inputs)
  np.testing.assert_allclose(outputs, expected, rtol=1e-11, atol=1e-11)
  np.testing.assert_allclose(weights, expected_weights, rtol=1e-11, atol=1e-11)


@pytest.mark.usefixtures('float64')
@pytest.mark.parametrize('settings, widths', [
  ({}, (9, 9)),
  ({'num_heads': 2, 'qk_channels': 8, 'query_residual': False}, (8, 8)),
  ({'num_heads': 3, 'qk_channels': 6, 'v_channels': 12, 'widening': 4}, (6, 12)),
  ({'v_channels': 5, 'query_residual': False, 'widening': 4}, (9, 5)),
])
def test_a_cross_attend_is_that_of_the_papers(settings, widths):
  query, inputs = normal(2, 4, 6), normal(2, 5, 9)
  params, apply = build(cross_attend(**settings), query, inputs)
  found = tuple(params[f'cross_attend/attention/{name}']['w'].shape[1] for name in ('query', 'value'))
  assert found == widths, 'the widths default to that of the inputs, 9, not of the query, 6'
  assert params['cross_attend/mlp/hidden']['w'].shape == (6, 6 * settings.get('widening', 1))
  expected, expected_weights = reference_cross_attend(
    params, 'cross_attend', query, inputs, settings.get('num_heads', 1), settings.get('query_residual', True))
  outputs, weights = apply(params, None, query, inputs)
  np.testing.assert_allclose(outputs, expected, rtol=1e-11, atol=1e-11)
  np.testing.assert_allclose(weights, expected_weights, rtol=1e-11, atol=1e-11)


@pytest.mark.usefixtures('float64')
@pytest.mark.parametrize('num_heads, widening', [(1, 1), (4, 4)])
def test_a_self_attend_is_that_of_the_papers(num_heads, widening):
  x = normal(2, 5, 8)
  params, apply = build(lambda x: SelfAttend(num_heads, widening=widening)(x, is_training=False, capture=True), x)
  assert params['self_attend/mlp/hidden']['w'].shape == (8, 8 * widening)
  expected, expected_weights = reference_self_attend(params, 'self_attend', x, num_heads)
  outputs, weights = apply(params, None, x)
  np.testing.assert_allclose(outputs, expected, rtol=1e-11, atol=1e-11)
  np.testing.assert_allclose(weights, expected_weights, rtol=1e-11, atol=1e-11)


@pytest.mark.usefixtures('float64')
def test_the_mlp_bends_by_the_tanh_form_of_gelu_and_not_by_the_error_function():
  x = normal(3, 6)
  params, apply = build(lambda x: Mlp()(x), x)
  outputs = apply(params, None, x)
  np.testing.assert_allclose(outputs, reference_mlp(params, 'mlp', x), rtol=1e-11, atol=1e-11)
  assert np.abs(outputs - reference_mlp(params, 'mlp', x, gelu=erf_gelu)).max() > 1e-5


@pytest.mark.usefixtures('float64')
def test_the_exact_gelu_bends_by_the_error_function():
  x = 3 * normal(2, 5, 8)
  params, apply = build(lambda x: Mlp(gelu='exact')(x), x)
  hidden = x @ params['mlp/hidden']['w'] + params['mlp/hidden']['b']
  bent = hidden * 0.5 * (1 + np.vectorize(math.erf)(hidden / math.sqrt(2)))
  expected = bent @ params['mlp/output']['w'] + params['mlp/output']['b']
  np.testing.assert_allclose(apply(params, None, x), expected, rtol=1e-11, atol=1e-11)
  with pytest.raises(ValueError, match=r"gelu is 'tanh' or 'exact', not 'relu'"):
    build(lambda x: Mlp(gelu='relu')(x), x)


@pytest.mark.usefixtures('float64')
@pytest.mark.parametrize('qk_channels, v_channels, widths', [(6, None, (6, 6)), (6, 10, (6, 10)), (None, 10, (8, 10))])
def test_a_self_attend_may_be_narrower_or_wider_than_its_latents(qk_channels, v_channels, widths):
  x = normal(2, 5, 8)
  params, apply = build(
    lambda x: SelfAttend(2, qk_channels=qk_channels, v_channels=v_channels)(x, is_training=False, capture=True), x)
  found = tuple(params[f'self_attend/attention/{name}']['w'].shape for name in ('query', 'key', 'value', 'output'))
  assert found == ((8, widths[0]), (8, widths[0]), (8, widths[1]), (widths[1], 8))
  expected, expected_weights = reference_self_attend(params, 'self_attend', x, 2)
  outputs, weights = apply(params, None, x)
  np.testing.assert_allclose(outputs, expected, rtol=1e-11, atol=1e-11)
  np.testing.assert_allclose(weights, expected_weights, rtol=1e-11, atol=1e-11)


@pytest.mark.usefixtures('float64')
def test_a_masked_row_may_read_the_mean_of_all_values():
  query, key, value = normal(2, 3, 2, 4), normal(2, 5, 2, 4), normal(2, 5, 2, 4)
  valid = np.array([[1, 0, 1, 1, 0], [0, 0, 0, 0, 0]])
  outputs, weights = attend(
    query, key, value, valid=valid, query_mask=np.zeros((2, 3)), masked_rows='mean', capture=True)
  expected, _ = attend(query[:1], key[:1], value[:1], valid=valid[:1])
  np.testing.assert_allclose(outputs[:1], expected, rtol=1e-12)
  np.testing.assert_allclose(outputs[1], np.broadcast_to(value[1].mean(0).reshape(-1), (3, 8)), rtol=1e-12)
  np.testing.assert_allclose(weights[1], 0.2)
  with pytest.raises(ValueError, match=r"masked_rows is 'zero' or 'mean', not 'nan'"):
    attend(query, key, value, masked_rows='nan')


@pytest.mark.usefixtures('float64')
def test_a_masked_row_has_no_weights_and_a_masked_nan_hurts_nobody():
  query, key, value = normal(2, 3, 2, 4), normal(2, 5, 2, 4), normal(2, 5, 2, 4)
  valid = np.array([[1, 0, 1, 1, 0], [0, 0, 0, 0, 0]])
  expected, _ = attend(query, key, value, valid=valid)
  value[:, [1, 4]] = np.nan
  outputs, weights = attend(query, key, value, valid=valid, capture=True)
  np.testing.assert_array_equal(outputs, expected)
  assert not np.any(weights[1]) and np.all(np.sum(weights[0], -1) > 0.99)


@pytest.mark.usefixtures('float64')
def test_every_layer_norm_of_a_cross_attend_adds_an_epsilon_of_1e_5():
  query, inputs = 1e-3 * normal(2, 4, 6), 1e-3 * normal(2, 5, 6)  # variances well below epsilon
  params, apply = build(cross_attend(query_residual=False), query, inputs)
  for bias in ('attention/value', 'attention/output'):
    params[f'cross_attend/{bias}']['b'] *= 0  # so that the input of the last norm is as small
  params['cross_attend/inputs_norm']['offset'] *= 0
  params['cross_attend/attention/output']['w'] *= 1e-2
  outputs, _ = apply(params, None, query, inputs)
  reference = lambda epsilon: reference_cross_attend(
    params, 'cross_attend', query, inputs, query_residual=False, epsilon=epsilon)[0]
  np.testing.assert_allclose(outputs, reference(1e-5), rtol=1e-9)
  for epsilon in (1e-6, 1e-12):
    assert np.abs(outputs - reference(epsilon)).max() > 0.01


@pytest.mark.parametrize('settings, message', [
  ({'qk_channels': 10}, r'3 heads do not divide qk_channels = 10'),
  ({'qk_channels': 9, 'v_channels': 8}, r'3 heads do not divide v_channels = 8'),
  ({}, r'3 heads do not divide qk_channels = 7'),
])
def test_heads_that_do_not_divide_the_channels_are_named_with_both_numbers(settings, message):
  x = jnp.ones((1, 2, 7))
  with pytest.raises(UserError, match=message):
    jax.eval_shape(hk.transform(cross_attend(num_heads=3, **settings)).init, jax.random.key(0), x, x)


# The kernels: all with the same result.


def _num_dots(*arguments):
  return str(jax.make_jaxpr(attend)(*arguments)).count('dot_general[')


@pytest.mark.usefixtures('float64')
def test_large_heads_are_multiplied_one_by_one_on_a_cpu_with_the_same_result():
  query, key, value = normal(1, 64, 2, 3), normal(1, 1024, 2, 3), normal(1, 1024, 2, 4)
  is_cpu = jax.default_backend() == 'cpu'
  assert _num_dots(query, key, value) == (4 if is_cpu else 2) and _num_dots(query, key[:, :9], value[:, :9]) == 2
  may, valid = np.ones((1, 64, 1024), bool), np.ones((1, 1024))
  may[:, 5], may[:, :, 7], valid[:, 7] = False, False, 0
  query_mask = may.any(-1)
  apart = functools.partial(attend, valid=valid, query_mask=query_mask, capture=True)
  expected, expected_weights = reference_attend(query, key, value, may)
  outputs, weights = compiled(apart)(query, key, value)
  np.testing.assert_allclose(outputs, expected, rtol=1e-12, atol=1e-12)
  np.testing.assert_allclose(weights[:, :, query_mask[0]], expected_weights[:, :, query_mask[0]], rtol=1e-12)


def test_dropout_draws_for_each_head_that_is_multiplied_by_itself():
  x = np.ones((1, 256, 2, 3), np.float32)
  outputs = compiled(hk.transform(lambda x: attend(x, x, x, dropout_prob=0.5)[0]).apply)({}, jax.random.key(0), x)
  np.testing.assert_allclose(outputs.mean(), 1.0, atol=0.05)
  assert (outputs[..., :3] != outputs[..., 3:]).mean() > 0.5


@pytest.mark.usefixtures('float64')
@pytest.mark.parametrize('masked', [False, True])
def test_the_fused_kernel_heeds_masks_as_attend_does(masked):
  query, key, value = normal(3, 4, 2, 8), normal(3, 5, 2, 8), normal(3, 5, 2, 8)
  valid, query_mask = (VALID, QUERY_MASK) if masked else (None, None)
  attending = attention.may_attend(valid, query_mask)
  outputs = compiled(functools.partial(attention.fused, valid=valid, attending=attending, implementation='xla'))
  expected, _ = attend(query, key, value, valid=valid, query_mask=query_mask)
  np.testing.assert_allclose(outputs(query, key, value), expected, rtol=1e-6, atol=1e-7)  # its softmax is float32


def test_cudnn_is_for_16_bits_narrow_heads_and_even_masks_on_a_gpu_of_nvidias():
  x = lambda dtype=jnp.bfloat16, size=128, length=4: jnp.zeros((2, length, 2, size), dtype)
  suits = lambda x, valid=None, capability='9.0': attention.suits_cudnn(capability, x, x, x, valid)
  for capability, is_there in (('9.0', True), ('8.6', True), ('12.0', True), ('7.5', False), ('gfx90a', False)):
    assert suits(x(), capability=capability) == is_there, capability
  assert suits(x(jnp.float16)) and suits(x(size=64)) and suits(x(length=5)) and suits(x(), np.ones((2, 4)))
  assert not suits(x(jnp.float32)) and not suits(x(size=261)) and not suits(x(size=130)) and not suits(x(size=12))
  assert not suits(x(length=5), np.ones((2, 5))), 'a mask is a bias, of which an odd number has no gradient'


# What a block starts from (facts of the authors' code: unit gain, corrected for the truncation).


def test_weights_start_truncated_with_unit_gain_biases_at_zero_and_norms_at_one():
  init = hk.transform(lambda x: SelfAttend(8, widening=2)(x, is_training=False)).init
  params = compiled(init)(jax.random.key(0), jnp.ones((1, 2, 64)))
  for path, leaves in params.items():
    for name, leaf in leaves.items():
      if name == 'w':
        gain = np.sqrt(leaf.shape[0])
        np.testing.assert_allclose(gain * np.std(leaf), 1.0, rtol=0.05, err_msg=path)
        assert 2.0 < gain * np.abs(leaf).max() <= 2.2745, path  # a cut at 2 deviations leaves 0.8796 of one
      else:
        np.testing.assert_array_equal(leaf, 1.0 if name == 'scale' else 0.0, err_msg=f'{path}/{name}')


# Masks.


@pytest.fixture(name='masked', scope='module')
def _masked():
  """Of a cross-attend with masks, in float64: parameters, (features, valid, query_mask) -> outputs, and its query."""
  query = normal(3, 4, 6)

  def forward(features, valid, query_mask):
    inputs = InputArray(features, None, valid)
    return CrossAttend(num_heads=2, qk_channels=8)(query, inputs, is_training=False, query_mask=query_mask)[0]

  with jax.enable_x64(True):
    params, apply = build(forward, normal(3, 5, 9), VALID, QUERY_MASK)
  return params, functools.partial(apply, params, None), query


@pytest.mark.usefixtures('float64')
def test_a_cross_attend_heeds_both_masks(masked):
  params, attended, query = masked
  features = normal(3, 5, 9)
  may = (VALID[:, None, :] != 0) & (QUERY_MASK[:, :, None] != 0)
  expected, _ = reference_cross_attend(params, 'cross_attend', query, features, num_heads=2, may=may)
  np.testing.assert_allclose(attended(features, VALID, QUERY_MASK), expected, rtol=1e-11, atol=1e-11)
  np.testing.assert_allclose(attended(features, VALID != 0, QUERY_MASK * 0.5), expected, rtol=1e-11, atol=1e-11)


@pytest.mark.usefixtures('float64')
@pytest.mark.parametrize('junk', [0.0, -1.0, 1e4, 1e30, -1e150])
def test_what_an_invalid_input_holds_changes_nothing(masked, junk):
  # Any finite number that its own LayerNorm can square. Infinity and NaN would spread, as 0 * NaN is NaN.
  _, attended, _ = masked
  features = normal(3, 5, 9)
  filled = np.where(VALID[..., None] != 0, features, junk + junk * normal(3, 5, 9, seed=1))
  np.testing.assert_array_equal(attended(filled, VALID, QUERY_MASK), attended(features, VALID, QUERY_MASK))


@pytest.mark.usefixtures('float64')
def test_a_valid_input_and_either_mask_change_the_result(masked):
  _, attended, _ = masked
  features = normal(3, 5, 9)
  outputs = attended(features, VALID, QUERY_MASK)
  for example in (0, 1):
    for index in range(5):
      flipped = VALID.copy()
      flipped[example, index] ^= 1
      changed = np.abs(attended(features, flipped, QUERY_MASK) - outputs).max(-1) > 1e-6
      np.testing.assert_array_equal(changed[example], QUERY_MASK[example] != 0)  # only who may look can see it
      assert not changed[np.arange(3) != example].any()
    for index in range(4):
      flipped = QUERY_MASK.copy()
      flipped[example, index] ^= 1
      changed = np.abs(attended(features, VALID, flipped) - outputs).max(-1) > 1e-6
      assert changed[example, index] and changed.sum() == 1


@pytest.mark.usefixtures('float64')
def test_padding_with_invalid_inputs_changes_nothing(masked):
  _, attended, _ = masked
  features = normal(3, 5, 9)
  padded = np.concatenate([features, 7 + normal(3, 3, 9)], axis=1)
  valid = np.concatenate([VALID, np.zeros_like(VALID[:, :3])], axis=1)
  np.testing.assert_allclose(
    attended(padded, valid, QUERY_MASK), attended(features, VALID, QUERY_MASK), rtol=1e-12, atol=1e-12)


def test_who_may_not_attend_or_has_nothing_to_attend_to_reads_exactly_nothing():
  query, key, value = (normal(3, n, 2, 3).astype(np.float32) for n in (4, 5, 5))
  outputs, _ = compiled(functools.partial(attend, valid=VALID, query_mask=QUERY_MASK))(query, key, 1e20 * value)
  silent = (QUERY_MASK == 0) | (VALID == 0).all(-1, keepdims=True)
  assert silent.sum() == 6
  np.testing.assert_array_equal(outputs[silent], 0.0)
  assert (np.abs(outputs[~silent]).min(-1) > 0.0).all()


@pytest.mark.usefixtures('float64')
def test_who_reads_nothing_goes_on_through_the_bias_the_residual_and_the_mlp(masked):
  params, attended, query = masked
  outputs = attended(normal(3, 5, 9), VALID, QUERY_MASK)
  x = query[2] + params['cross_attend/attention/output']['b']
  expected = x + reference_mlp(params, 'cross_attend/mlp', reference_norm(params, 'cross_attend/mlp_norm', x))
  np.testing.assert_allclose(outputs[2], expected, rtol=1e-11)


@pytest.mark.usefixtures('float64')
def test_no_gradient_reaches_what_is_masked_and_none_is_nan(masked):
  params, _, query = masked

  def forward(features):
    outputs, _ = CrossAttend(num_heads=2, qk_channels=8)(query, InputArray(features, None, VALID), is_training=False)
    return jnp.sum(outputs * normal(*outputs.shape))

  gradient = compiled(jax.grad(hk.transform(forward).apply, argnums=(0, 2)))
  for junk in (0.0, 1e30):
    of_params, of_features = gradient(params, None, np.where(VALID[..., None] != 0, normal(3, 5, 9), junk))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(of_params))
    np.testing.assert_array_equal(of_features[VALID == 0], 0.0)
    assert (np.abs(of_features[VALID != 0]).max(-1) > 1e-6).all()


# Dtypes.


def _rounded(x):
  """As bfloat16, and the same numbers as float64."""
  x = x.astype(jnp.bfloat16)
  return x, x.astype(np.float64)


def test_with_bfloat16_arguments_logits_and_softmax_are_float32():
  # Logits of about 30 are 0.125 apart in bfloat16, and weights near 1 are 0.004 apart.
  (query, query64), (key, key64), (value, value64) = (_rounded(3 * normal(2, n, 2, 16)) for n in (4, 6, 6))
  outputs, weights = compiled(functools.partial(attend, capture=True))(query, key, value)
  expected, expected_weights = reference_attend(query64, key64, value64)
  assert np.abs(np.einsum('bthk,bshk->bhts', query64, key64) / 4).max() > 16
  assert (outputs.dtype, weights.dtype) == (jnp.bfloat16, jnp.float32)
  np.testing.assert_allclose(weights, expected_weights, rtol=2e-5, atol=1e-7)
  np.testing.assert_allclose(outputs.astype(np.float32), expected, rtol=0.02, atol=0.05)


def test_layer_norm_of_bfloat16_keeps_its_statistics_in_float32():
  x, x64 = _rounded(100 + normal(3, 64))  # half a unit apart: a mean or a variance in bfloat16 would be noise
  params, apply = build(lambda x: (layer_norm(x, 'norm'), layer_norm(x, 'wide', jnp.float32)), x, dtype=np.float32)
  narrow, wide = apply(params, None, x)
  assert (narrow.dtype, wide.dtype) == (jnp.bfloat16, jnp.float32)
  np.testing.assert_allclose(wide, reference_norm(params, 'wide', x64), rtol=1e-4, atol=1e-4)
  np.testing.assert_allclose(narrow.astype(np.float32), reference_norm(params, 'norm', x64), rtol=2**-8, atol=1e-4)


def test_float32_inputs_meet_a_bfloat16_query_only_after_they_are_normalised():
  query, query64 = _rounded(normal(2, 4, 16))
  inputs = (1000 + normal(2, 5, 16)).astype(np.float32)  # bfloat16 would make all of them multiples of 4
  params, apply = build(cross_attend(), query, inputs, dtype=np.float32)
  outputs, weights = apply(jax.tree.map(lambda x: x.astype(jnp.bfloat16), params), None, query, inputs)
  expected, expected_weights = reference_cross_attend(params, 'cross_attend', query64, inputs.astype(np.float64))
  assert (outputs.dtype, weights.dtype) == (jnp.bfloat16, jnp.float32)
  np.testing.assert_allclose(weights, expected_weights, atol=0.03)
  np.testing.assert_allclose(outputs.astype(np.float32), expected, atol=0.15)


@pytest.mark.usefixtures('float64')
def test_float64_stays_float64():
  query, inputs = normal(2, 4, 6), normal(2, 5, 9)
  def forward(query, inputs):
    latents, weights = CrossAttend()(query, InputArray(inputs), is_training=False, capture=True)
    return [latents, weights, *SelfAttend(2)(latents, is_training=False, capture=True)]
  params, apply = build(forward, query, inputs)
  assert [x.dtype for x in apply(params, None, query, inputs)] == 4 * [np.dtype('float64')]


# Gradients.


@pytest.mark.usefixtures('float64')
def test_the_gradient_of_attend_is_numeric():
  arguments = normal(3, 4, 2, 3), normal(3, 5, 2, 3), normal(3, 5, 2, 4)
  def function(arguments):
    outputs, weights = attend(*arguments, valid=VALID, query_mask=QUERY_MASK, capture=True)
    return jnp.sum(outputs * normal(*outputs.shape)) + jnp.sum(weights[:2] * normal(*weights[:2].shape))
  assert_gradient_is_numeric(function, arguments)


@pytest.mark.usefixtures('float64')
def test_the_gradient_of_a_cross_attend_is_numeric():
  query, inputs = normal(3, 4, 6), normal(3, 5, 9)
  function = hk.transform(lambda query, inputs: CrossAttend(3)(
    query, InputArray(inputs, None, VALID), is_training=False)[0])
  params = randomise(jax.eval_shape(function.init, jax.random.key(0), query, inputs), np.float64)
  def loss(arguments):
    return jnp.sum(function.apply(arguments[0], None, *arguments[1:]) * normal(*query.shape))
  assert_gradient_is_numeric(loss, (params, query, inputs))


# Dropout.


def test_dropout_on_the_weights_preserves_the_expectation_and_returns_the_weights_undropped():
  num_draws = 4000  # one draw an example, as each has its own
  query, key, value = (np.repeat(normal(1, n, 2, 3), num_draws, axis=0).astype(np.float32) for n in (3, 4, 4))
  function = hk.transform(lambda *arguments: attend(*arguments, dropout_prob=0.3, capture=True))
  outputs, weights = compiled(function.apply)({}, jax.random.key(0), query, key, value)
  expected, expected_weights = reference_attend(query[:1], key[:1], value[:1])
  np.testing.assert_allclose(weights, np.broadcast_to(expected_weights, weights.shape), rtol=1e-5)
  error = np.abs(outputs.mean(0) - expected[0]) / (outputs.std(0) / np.sqrt(num_draws))
  assert error.max() < 5 and outputs.std(0).min() > 0.01  # 5 deviations of the mean


def _forward(block, is_training, **probs):
  return lambda x: block(2, **probs)(*([x, InputArray(x)] if block is CrossAttend else [x]), is_training=is_training)[0]


@pytest.mark.parametrize('silent', ['attention', 'mlp'])
@pytest.mark.parametrize('block', [CrossAttend, SelfAttend])
def test_dropout_on_a_branch_drops_or_scales_each_of_its_numbers(block, silent):
  # With one branch silenced a block is x + dropout(other branch), so what was dropped can be read off.
  x = normal(1, 40, 16).astype(np.float32)
  params, plain = build(_forward(block, is_training=False), x, dtype=np.float32)
  for path in params:
    if path.endswith(f'{silent}/output'):
      params[path] = jax.tree.map(np.zeros_like, params[path])
  train = compiled(hk.transform(_forward(block, is_training=True, dropout_prob=0.25)).apply)
  kept, dropped = plain(params, None, x) - x, train(params, jax.random.key(0), x) - x
  is_dropped = np.abs(dropped) < 1e-6
  np.testing.assert_allclose(dropped[~is_dropped], kept[~is_dropped] / 0.75, rtol=1e-4, atol=1e-5)
  assert 0.2 < is_dropped.mean() < 0.3


@pytest.mark.parametrize('probs', [{'dropout_prob': 0.5}, {'attention_dropout_prob': 0.5}])
@pytest.mark.parametrize('block', [CrossAttend, SelfAttend])
def test_dropout_needs_a_key_in_training_alone(block, probs):
  x = np.ones((1, 6, 8), np.float32)
  params = jax.eval_shape(hk.transform(_forward(block, False, **probs)).init, jax.random.key(0), x)
  jax.eval_shape(hk.transform(_forward(block, False, **probs)).apply, params, None, x)
  with pytest.raises(ValueError, match='PRNG'):
    jax.eval_shape(hk.transform(_forward(block, True, **probs)).apply, params, None, x)


def test_dropout_on_the_weights_depends_on_the_key_and_is_off_in_evaluation():
  x = normal(1, 6, 8).astype(np.float32)
  both = lambda is_training, prob: lambda x: [
    _forward(block, is_training, attention_dropout_prob=prob)(x) for block in (CrossAttend, SelfAttend)]
  params, plain = build(both(True, 0.0), x, dtype=np.float32)
  evaluate, train = (compiled(hk.transform(both(is_training, 0.5)).apply) for is_training in (False, True))
  for first, again, other in zip(*(train(params, jax.random.key(seed), x) for seed in (0, 0, 1)), strict=True):
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0.01
  jax.tree.map(np.testing.assert_array_equal, evaluate(params, jax.random.key(0), x), plain(params, None, x))
