"""Masked language modelling: sizes as published, padding, and whom a logit depends on."""

import numpy as np
import pytest

from perceiver_jax.core import attention
from tests.tasks import tiny

pytestmark = pytest.mark.usefixtures('quick_compilation')

LENGTH = 32
RNG = np.random.default_rng(0)
TOKENS = RNG.integers(6, 262, (3, LENGTH)).astype(np.int32)
VALID = (np.arange(LENGTH) < np.array([[10], [32], [21]])).astype(np.uint8)
PADDED = {'tokens': np.where(VALID != 0, TOKENS, 0), 'valid': VALID}


@pytest.fixture(scope='module')
def config():
  return tiny.read_config('masked_lm:debug')


@pytest.fixture(scope='module')
def model(config):
  return tiny.model_of(config)


@pytest.mark.parametrize('variant, total', [
  ('bytes', 201_108_230), ('sentencepiece', 223_155_456), ('plus_plus', 425_607_430)])
def test_models_have_their_exact_number_of_parameters(variant, total):
  assert tiny.num_parameters(tiny.read_config(f'masked_lm:{variant}')) == total


def test_every_position_has_a_logit_for_every_token(model):
  outputs = model(PADDED)
  assert outputs.keys() == {'logits'}
  assert (outputs['logits'].shape, outputs['logits'].dtype) == ((3, LENGTH, 262), np.float32)


def test_padding_changes_no_logit_of_the_text(model):
  padded = model(PADDED)['logits']
  for row, length in enumerate([10, 32, 21]):
    alone = model({'tokens': TOKENS[row:row + 1, :length]})['logits']
    assert alone.shape == (1, LENGTH, 262)  # it asks at every position, of a short text too
    tiny.assert_close(alone[0, :length], padded[row, :length])
  some = {'tokens': TOKENS[:1, :15], 'valid': VALID[:1, :15]}
  tiny.assert_close(model(some)['logits'][0, :10], padded[0, :10])


def test_padding_that_is_not_marked_is_read(model):
  unmarked = model({'tokens': PADDED['tokens']})['logits']
  assert tiny.differ(unmarked[0, :10], model(PADDED)['logits'][0, :10]) > 1e-3


def test_what_stands_in_the_padding_changes_nothing(model):
  tiny.assert_close(model({'tokens': TOKENS, 'valid': VALID}), model(PADDED))


def test_every_token_of_the_text_changes_every_logit(model):
  changed = TOKENS.copy()
  changed[:, 4] = (changed[:, 4] + 1) % 256 + 6
  before, after = (model({'tokens': tokens, 'valid': VALID})['logits'] for tokens in (TOKENS, changed))
  for row, length in enumerate([10, 32, 21]):
    assert np.abs(after - before)[row, :length].max(-1).min() > 1e-6


def test_nothing_is_asked_about_padding(model):
  """Where no question is asked nothing of the latents is read, so that answers know nothing of the text."""
  logits = model(PADDED)['logits']
  other = model({'tokens': PADDED['tokens'][::-1], 'valid': VALID})['logits']
  tiny.assert_close(other[0, 10:], logits[0, 10:])
  assert tiny.differ(other[0, :10], logits[0, :10]) > 1e-3


def test_a_text_without_any_token_gives_finite_logits(model):
  assert np.isfinite(model({'tokens': TOKENS, 'valid': np.zeros_like(VALID)})['logits']).all()


def test_an_example_does_not_depend_on_its_company(config):
  tiny.assert_company_does_not_matter(config, PADDED)


@pytest.mark.parametrize('most_logits', [1, 200])
def test_chunks_change_nothing(config, model, monkeypatch, most_logits):
  whole = model(PADDED)
  monkeypatch.setattr(attention, 'MOST_LOGITS', most_logits)
  tiny.assert_close(tiny.model_of(config)(PADDED), whole)


def test_every_parameter_reaches_the_logits(config):
  assert tiny.idle_parameters(config, PADDED) == tiny.key_biases(config)


def test_what_is_captured(config):
  tiny.assert_captured(
    config, {'tokens': TOKENS}, cross_attends=(1, 3, 2, 4, LENGTH), latents=(3, 4, 16), self_attends=(2, 1, 3, 2, 4, 4),
    decoder=(3, 2, LENGTH, 4))


@pytest.mark.parametrize('change, message', [
  ({'tokens': TOKENS[0]}, r'tokens is \[batch, tokens\], not \[32\]'),
  ({'tokens': TOKENS[..., None]}, r'tokens is \[batch, tokens\], not \[3, 32, 1\]'),
  ({'tokens': np.zeros((3, 33), np.int32)}, r'33 tokens \[3, 33\], but the model has 32 positions'),
  ({'tokens': TOKENS.astype(np.float32)}, 'float32 but expected'),
  ({'valid': VALID[:, :10]}, r'shape \(3, 10\) but expected \(3, 32\)'),
  ({'valid': VALID[:1]}, r'shape \(1, 32\) but expected \(3, 32\)'),
  ({'valid': VALID[0]}, r'shape \(32,\) but expected \(3, 32\)'),
])
def test_another_batch_is_the_users_mistake(config, change, message):
  tiny.assert_refused(config, {**PADDED, **change}, message)


def test_a_batch_without_tokens_is_the_users_mistake(config):
  tiny.assert_refused(config, {'valid': VALID}, r'tokens is missing: the batch has valid')
  tiny.assert_refused(config, {}, r'tokens is missing: the batch has nothing')
