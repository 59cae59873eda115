"""The models of both papers against plain NumPy: what is shared, masked, captured and dropped, and their gradients."""

import functools

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perceiver_jax.core.input_array import InputArray
from perceiver_jax.core.perceiver import Decoder, Encoder, Processor, encode, learned_query, pool
from perceiver_jax.types import UserError
from tests.core.test_attention import (
  assert_gradient_is_numeric,
  compiled,
  normal,
  randomise,
  reference_cross_attend,
  reference_linear,
  reference_self_attend,
)

NUM_LATENTS, LATENT_CHANNELS, NUM_HEADS, NUM_OUTPUTS = 3, 8, 2, 5

IO = dict(num_cross_attends=1, num_blocks=3, num_layers=2)
ORIGINAL = dict(num_cross_attends=8, num_blocks=8, num_layers=1, head='pool')
NESTED = dict(num_cross_attends=3, num_blocks=6, num_layers=1, head='pool')  # blocks repeat inside repeated stages
ARCHITECTURES = {
  'io': IO,
  'original': ORIGINAL,
  'two_blocks_after_each_cross_attend': NESTED,
  'all_cross_attends_at_the_start': dict(num_cross_attends=3, num_blocks=2, num_layers=2, arrangement='start'),
  'no_cross_attend_shared': dict(num_cross_attends=3, num_blocks=6, num_layers=1, share_cross_attends=False),
  'no_block_shared': dict(num_cross_attends=3, num_blocks=3, num_layers=2, share_blocks=False),
}


def _forward(
  features, valid=None, *, num_cross_attends, num_blocks, num_layers, head='query', arrangement='interleaved',
  share_cross_attends=True, share_blocks=True, is_training=False, remat='none', capture=False, **dropout,
):
  """[B, M, C] -> [B, O, E] of four learned queries, or [B, E] of a pooled head."""
  encoder = Encoder(NUM_LATENTS, LATENT_CHANNELS, num_cross_attends, share_cross_attends, **dropout)
  processor = Processor(num_blocks, num_layers, share_blocks, num_heads=NUM_HEADS, **dropout)
  inputs = InputArray(features, None, valid)
  latents, captured = encode(
    encoder, processor, inputs, is_training=is_training, arrangement=arrangement, remat=remat, capture=capture)
  if head == 'pool':
    return pool(latents, NUM_OUTPUTS), captured
  query = learned_query(4, 6, len(features))
  outputs, weights = Decoder(NUM_OUTPUTS, num_heads=2)(query, latents, is_training=is_training, capture=capture)
  return outputs, {**captured, 'decoder': weights} if capture else captured


def _reference(
  params, features, may=None, *, num_cross_attends, num_blocks, num_layers, head='query', arrangement='interleaved',
  share_cross_attends=True, share_blocks=True,
):
  """The same in NumPy, with everything that is captured."""
  batch_size = len(features)
  latents = np.stack(batch_size * [params['encoder']['latents']])
  cross_maps, self_maps, block = [], [], 0
  for t in range(num_cross_attends):
    name = f'encoder/cross_attend_{(0 if t == 0 else 1) if share_cross_attends else t}'
    latents, weights = reference_cross_attend(params, name, latents, features, may=may)
    cross_maps.append(weights)
    is_last = t == num_cross_attends - 1
    due = (t + 1) * num_blocks // num_cross_attends if arrangement == 'interleaved' else is_last * num_blocks
    while block < due:
      maps = []
      for layer in range(num_layers):
        index = layer if share_blocks else block * num_layers + layer
        latents, weights = reference_self_attend(params, f'processor/self_attend_{index}', latents, NUM_HEADS)
        maps.append(weights)
      self_maps.append(maps)
      block += 1
  captured = {'cross_attends': np.array(cross_maps), 'self_attends': np.array(self_maps), 'latents': latents}
  if head == 'pool':
    return reference_linear(params, 'output', latents.mean(1)), captured
  query = np.stack(batch_size * [params['query']['table']])
  answers, weights = reference_cross_attend(
    params, 'decoder/cross_attend', query, latents, num_heads=2, query_residual=False)
  return reference_linear(params, 'decoder/output', answers), {**captured, 'decoder': weights}


FEATURES = normal(2, 6, 5)
VALID = np.array([[1, 0, 1, 1, 0, 1], [0, 0, 0, 0, 1, 1]])


def _transformed(architecture, **settings):
  return hk.transform(functools.partial(_forward, **{**architecture, **settings}))


def _params(architecture, dtype=np.float64):
  return randomise(jax.eval_shape(_transformed(architecture).init, jax.random.key(0), FEATURES), dtype)


def _apply(architecture, **settings):
  return compiled(_transformed(architecture, **settings).apply)


@pytest.fixture(name='float64')
def _float64():
  with jax.enable_x64(True):
    yield


# What is computed, and with which parameters.


@pytest.mark.usefixtures('float64')
@pytest.mark.parametrize('name', ARCHITECTURES)
def test_the_model_is_that_of_the_papers_and_shows_what_it_looked_at(name):
  architecture = ARCHITECTURES[name]
  params = _params(architecture)
  expected, expected_captured = _reference(params, FEATURES, **architecture)
  outputs, captured = _apply(architecture, capture=True)(params, None, FEATURES)
  np.testing.assert_allclose(outputs, expected, rtol=1e-9, atol=1e-9)
  assert captured.keys() == expected_captured.keys()
  for what, maps in captured.items():
    assert maps.shape == expected_captured[what].shape, what
    np.testing.assert_allclose(maps, expected_captured[what], rtol=1e-9, atol=1e-9, err_msg=what)
    if what != 'latents':
      np.testing.assert_allclose(maps.sum(-1), 1.0, rtol=1e-12, err_msg=what)


@pytest.mark.parametrize('name', ARCHITECTURES)
def test_nothing_is_captured_unless_asked_for(name):
  architecture = ARCHITECTURES[name]
  outputs, captured = jax.eval_shape(_transformed(architecture).apply, _params(architecture), None, FEATURES)
  assert not captured and outputs.shape[-1] == NUM_OUTPUTS


def _modules(depth, **settings):
  """The names at this depth of the parameters' paths."""
  return {path.split('/')[depth] for path in _params({**IO, **settings}) if path.count('/') > depth}


def test_the_first_cross_attend_has_its_own_parameters_and_those_after_it_share_or_not():
  names = lambda *indices: {'cross_attend', *(f'cross_attend_{i}' for i in indices)}  # the first is that of the decoder
  crossed = lambda **settings: {name for name in _modules(1, **settings) if name.startswith('cross_attend')}
  assert crossed() == names(0)
  assert crossed(num_cross_attends=2, num_blocks=2) == names(0, 1)
  assert crossed(num_cross_attends=4, num_blocks=4) == names(0, 1)
  assert crossed(num_cross_attends=4, num_blocks=4, share_cross_attends=False) == names(0, 1, 2, 3)
  assert crossed(num_cross_attends=4, arrangement='start') == names(0, 1)


def test_the_number_of_shared_blocks_changes_no_parameter():
  shapes = [jax.tree.map(np.shape, _params({**IO, 'num_blocks': num_blocks})) for num_blocks in (1, 3, 7)]
  assert shapes[0] == shapes[1] == shapes[2]
  layers = lambda **settings: {name for name in _modules(1, **settings) if name.startswith('self_attend')}
  assert layers() == {'self_attend_0', 'self_attend_1'}
  assert layers(share_blocks=False) == {f'self_attend_{i}' for i in range(6)}


@pytest.mark.usefixtures('float64')
def test_a_shared_block_gives_the_outputs_of_its_copies_and_has_the_sum_of_their_gradients():
  shared = dict(num_cross_attends=1, num_blocks=2, num_layers=1, head='pool')
  alone = {**shared, 'share_blocks': False}
  params = _params(shared)
  names = lambda path: [path.replace('self_attend_0', f'self_attend_{i}') for i in range(2)]  # of the copies
  copies = {name: leaves for path, leaves in params.items() for name in names(path)}
  assert jax.tree.map(np.shape, copies) == jax.tree.map(np.shape, _params(alone))

  def outputs_and_gradient(architecture, params):
    def loss(params):
      outputs, _ = _transformed(architecture).apply(params, None, FEATURES)
      return jnp.sum(outputs * normal(2, NUM_OUTPUTS)), outputs
    return compiled(jax.grad(loss, has_aux=True))(params)[::-1]

  expected, gradients = outputs_and_gradient(alone, copies)
  outputs, gradient = outputs_and_gradient(shared, params)
  np.testing.assert_allclose(outputs, expected, rtol=1e-11)
  for path in params:
    total = jax.tree.map(lambda *x: sum(x), *(gradients[name] for name in sorted(set(names(path)))))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11), gradient[path], total)


def test_an_arrangement_that_cannot_be_is_the_users_mistake():
  run = lambda **settings: jax.eval_shape(_transformed({**IO, **settings}).init, jax.random.key(0), FEATURES)
  with pytest.raises(UserError, match=r'3 interleaved cross-attends do not divide 8 blocks'):
    run(num_cross_attends=3, num_blocks=8)
  with pytest.raises(ValueError, match=r"'interleaved' or at the 'start', not 'end'"):
    run(arrangement='end')


def test_heads_that_do_not_divide_the_channels_say_where_and_how_many():
  def forward(features):
    return encode(Encoder(3, 8), Processor(1, 1, num_heads=5), InputArray(features), is_training=False)
  with pytest.raises(UserError, match=r'processor/self_attend_0.*5 heads do not divide qk_channels = 8'):
    jax.eval_shape(hk.transform(forward).init, jax.random.key(0), FEATURES)


def test_latents_and_queries_start_small_the_pooled_head_at_zero_and_the_linear_of_the_decoder_at_haikus_default():
  def forward(features):
    latents = Encoder(50, 64).latents(2)
    outputs, _ = Decoder(80)(learned_query(40, 64, 2), latents, is_training=False)
    return outputs, pool(latents, 7)
  init = hk.transform(forward).init
  params = compiled(init)(jax.random.key(0), FEATURES)
  for table in (params['encoder']['latents'], params['query']['table']):
    assert 0.039 < np.abs(table).max() <= 0.04 + 1e-7
    np.testing.assert_allclose(np.std(table), 0.0176, rtol=0.05)
  weights = params['decoder/output']['w'] * 64**0.5
  np.testing.assert_allclose(np.std(weights), 0.8796, rtol=0.05)  # cut at two deviations, not corrected for it
  np.testing.assert_array_equal(params['output']['w'], np.zeros((64, 7)))
  for head in ('output', 'decoder/output'):
    np.testing.assert_array_equal(params[head]['b'], 0.0)


# Masks.


@pytest.mark.usefixtures('float64')
def test_every_cross_attend_of_both_models_heeds_valid():
  for architecture in (IO, ORIGINAL):
    params = _params(architecture)
    apply = _apply(architecture)
    may = np.broadcast_to(VALID[:, None, :] != 0, (2, NUM_LATENTS, 6))
    outputs, _ = apply(params, None, FEATURES, VALID)
    np.testing.assert_allclose(outputs, _reference(params, FEATURES, may, **architecture)[0], rtol=1e-9, atol=1e-9)
    junk = np.where(VALID[..., None] != 0, FEATURES, 1e10 * normal(2, 6, 5, seed=1))
    np.testing.assert_array_equal(apply(params, None, junk, VALID)[0], outputs)
    for m in range(6):
      flipped = VALID.copy()
      flipped[:, m] ^= 1
      assert (np.abs(apply(params, None, FEATURES, flipped)[0] - outputs) > 1e-6).reshape(2, -1).any(-1).all()


@pytest.mark.usefixtures('float64')
def test_invalid_padding_of_the_inputs_changes_no_output():
  params = _params(ORIGINAL)
  padded = np.concatenate([FEATURES, 3 + normal(2, 4, 5)], axis=1)
  valid = np.concatenate([np.ones((2, 6)), np.zeros((2, 4))], axis=1)
  outputs, _ = _apply(ORIGINAL)(params, None, padded, valid)
  np.testing.assert_allclose(outputs, _reference(params, FEATURES, **ORIGINAL)[0], rtol=1e-9, atol=1e-9)


@pytest.mark.usefixtures('float64')
def test_a_query_mask_silences_its_queries_and_touches_no_other():
  latents, query = normal(2, 3, 8), normal(2, 4, 6)
  function = hk.transform(lambda mask=None: Decoder(NUM_OUTPUTS)(query, latents, is_training=False, query_mask=mask)[0])
  params = randomise(jax.eval_shape(function.init, jax.random.key(0)), np.float64)
  mask = np.array([[1, 0, 1, 1], [0, 0, 1, 0]])
  apply = compiled(function.apply)
  everyone, masked = apply(params, None), apply(params, None, mask)
  np.testing.assert_allclose(masked[mask != 0], everyone[mask != 0], rtol=1e-12)
  assert (np.abs(masked - everyone).max(-1)[mask == 0] > 1e-3).all()
  silent = masked[mask == 0]
  np.testing.assert_allclose(silent, np.stack(4 * [silent[0]]), rtol=1e-12)  # without a residual they know nothing


@pytest.mark.usefixtures('float64')
def test_queries_are_answered_one_by_one():
  latents, query = normal(2, 3, 8), normal(2, 4, 6)
  for query_residual in (True, False):
    function = hk.transform(
      lambda query, on=query_residual: Decoder(NUM_OUTPUTS, query_residual=on)(query, latents, is_training=False)[0])
    params = randomise(jax.eval_shape(function.init, jax.random.key(0), query), np.float64)
    apply = compiled(function.apply)
    chunks = [apply(params, None, chunk) for chunk in (query[:, :2], query[:, 2:])]
    np.testing.assert_allclose(apply(params, None, query), np.concatenate(chunks, axis=1), rtol=1e-12)
    latents64 = reference_cross_attend(params, 'decoder/cross_attend', query, latents, query_residual=query_residual)[0]
    np.testing.assert_allclose(
      apply(params, None, query), reference_linear(params, 'decoder/output', latents64), rtol=1e-10, atol=1e-10)


# Gradients.


@pytest.mark.usefixtures('float64')
@pytest.mark.parametrize('architecture', [dict(IO, num_blocks=2, num_layers=1), NESTED], ids=['io', 'original'])
def test_the_gradient_of_the_whole_model_is_numeric_and_reaches_every_parameter(architecture):
  params, apply = _params(architecture), _transformed(architecture).apply

  def loss(arguments):
    outputs, _ = apply(arguments[0], None, arguments[1], VALID)
    return jnp.sum(outputs * normal(*outputs.shape))

  gradient, _ = assert_gradient_is_numeric(loss, (params, FEATURES))
  for path, leaves in gradient.items():
    for name, leaf in leaves.items():
      largest = np.abs(leaf).max()
      if path.endswith('attention/key') and name == 'b':
        assert largest < 1e-10, 'the softmax cancels it'
      else:
        assert largest > 1e-6, f'{path}/{name}'


# What the backward pass computes again.


@pytest.mark.usefixtures('float64')
@pytest.mark.parametrize('architecture', [
  dict(NESTED, num_cross_attends=2, num_blocks=4),
  dict(IO, num_blocks=2, num_layers=1, share_blocks=False, head='pool'),
], ids=['shared', 'not_shared'])
def test_computing_again_changes_no_gradient_no_dropout_and_nothing_captured(architecture):
  params, key = _params(architecture), jax.random.key(3)

  def gradient(remat):
    apply = _transformed(
      architecture, is_training=True, remat=remat, capture=True, dropout_prob=0.3, attention_dropout_prob=0.3).apply

    def loss(params):
      outputs, captured = apply(params, key, FEATURES)
      return jnp.sum(outputs * normal(*outputs.shape)), (outputs, captured)
    return compiled(jax.grad(loss, has_aux=True))(params)

  none = gradient('none')
  for other in (gradient('dots'), gradient('layers')):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12), other, none)


def _temporary_bytes(remat):
  def loss(features):
    latents, _ = encode(
      Encoder(64, 64), Processor(4, 2, num_heads=2), InputArray(features), is_training=True, remat=remat)
    return jnp.sum(latents**2)
  function = hk.transform(loss)
  features = np.ones((1, 8, 5), np.float32)
  params = jax.eval_shape(function.init, jax.random.key(0), features)
  return jax.jit(jax.grad(function.apply)).lower(params, None, features).compile().memory_analysis().temp_size_in_bytes


def test_the_more_is_computed_again_the_less_memory_is_needed():
  none, dots, layers = (_temporary_bytes(remat) for remat in ('none', 'dots', 'layers'))
  assert layers < 0.8 * dots and dots < 0.7 * none


def test_a_remat_that_there_is_not_is_the_users_mistake():
  with pytest.raises(ValueError, match=r"remat is 'none', 'dots' or 'layers', not 'some'"):
    jax.eval_shape(_transformed(IO, remat='some').init, jax.random.key(0), FEATURES)


# Dtypes.


def test_bfloat16_parameters_give_bfloat16_latents_and_float32_weights():
  narrow = lambda architecture: jax.tree.map(lambda x: x.astype(jnp.bfloat16), _params(architecture))
  features = FEATURES.astype(np.float32)
  for architecture in (IO, NESTED):
    apply = _transformed(architecture, capture=True).apply
    outputs, captured = jax.eval_shape(apply, narrow(architecture), None, features)
    assert outputs.dtype == captured.pop('latents').dtype == jnp.bfloat16
    assert {maps.dtype for maps in captured.values()} == {np.dtype('float32')}
  outputs, _ = _apply(NESTED)(narrow(NESTED), None, features)
  expected, _ = _reference(jax.tree.map(lambda x: x.astype(np.float64), narrow(NESTED)), FEATURES, **NESTED)
  assert np.abs(outputs.astype(np.float64) - expected).max() < 0.1 * np.abs(expected).max()


# Randomness.


@pytest.mark.parametrize('architecture', [IO, ORIGINAL], ids=['io', 'original'])
def test_only_dropout_in_training_needs_a_key(architecture):
  params = _params(architecture)
  run = lambda **settings: jax.eval_shape(_transformed(architecture, **settings).apply, params, None, FEATURES)
  run(is_training=True)
  for prob in ('dropout_prob', 'attention_dropout_prob'):
    run(is_training=False, **{prob: 0.5})
    with pytest.raises(ValueError, match='PRNG'):
      run(is_training=True, **{prob: 0.5})


def test_repeats_of_a_shared_block_drop_different_numbers():
  # Only the last bias of each layer is left, so that each adds dropout(1), which is 0 or 2: they are counted.
  params = _params(NESTED, np.float32)
  for path in params:
    if path.endswith(('attention/output', 'mlp/output')):
      params[path] = jax.tree.map(np.zeros_like, params[path])
  params['processor/self_attend_0/mlp/output']['b'] += 1
  train = _apply(NESTED, is_training=True, capture=True, dropout_prob=0.5)
  features = np.zeros((50, 6, 5), np.float32)
  latents = [train(params, jax.random.key(seed), features)[1]['latents'] for seed in (0, 1)]
  counts = (latents[0] - params['encoder']['latents']) / 2
  np.testing.assert_allclose(counts, np.round(counts), atol=1e-4)
  num_blocks = NESTED['num_blocks']
  np.testing.assert_allclose(counts.mean(), num_blocks / 2, rtol=0.05)
  # Of independent draws; draws shared by blocks would make it 2 times as large, by stages 5 / 3, by all 6.
  np.testing.assert_allclose(counts.var(), num_blocks / 4, rtol=0.2)
  assert (latents[0] != latents[1]).mean() > 0.5
