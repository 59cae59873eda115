"""Classification of texts: padding, and whom a logit depends on."""

import numpy as np
import pytest

from perceiver_jax.core import attention
from tests.tasks import tiny

pytestmark = pytest.mark.usefixtures('quick_compilation')

LENGTH = 32
TOKENS = np.random.default_rng(0).integers(6, 262, (3, LENGTH)).astype(np.int32)
VALID = (np.arange(LENGTH) < np.array([[10], [32], [21]])).astype(np.uint8)
PADDED = {'tokens': np.where(VALID != 0, TOKENS, 0), 'valid': VALID}


def read_config(size='debug'):
  """The language model, with one query for the classes in place of one per position."""
  config = tiny.read_config(f'masked_lm:{size}')
  config.task = 'text_classification'
  config.data.num_classes = 5
  config.model.query_channels = config.model.latent_channels
  del config.model.num_decoder_heads, config.model.decoder_qk_channels
  return config


@pytest.fixture(scope='module')
def config():
  return read_config()


@pytest.fixture(scope='module')
def model(config):
  return tiny.model_of(config)


def test_the_model_has_the_parameters_of_the_language_model_but_for_its_decoder():
  channels, classes = 1280, 5
  table, positions, latents = 262 * 768, 2048 * 768, 256 * 1280

  def attend(query, inputs, qk, v, output):
    return (query + 1) * qk + (inputs + 1) * (qk + v) + (v + 1) * output

  cross = attend(1280, 768, 256, 1280, 1280) + 2 * (1280 + 768 + 1280) + 2 * 1280 * 1281
  layers = 26 * (attend(1280, 1280, 256, 1280, 1280) + 4 * 1280 + 2 * 1280 * 1281)
  decoder = attend(*5 * [channels]) + 6 * channels + 2 * channels * (channels + 1) + (channels + 1) * classes
  total = table + positions + latents + cross + layers + decoder + channels  # and the query
  assert tiny.num_parameters(read_config('bytes')) == total


def test_every_text_has_a_logit_for_every_class(model):
  outputs = model(PADDED)
  assert outputs.keys() == {'logits'}
  assert (outputs['logits'].shape, outputs['logits'].dtype) == ((3, 5), np.float32)


def test_padding_changes_nothing(model):
  padded = model(PADDED)['logits']
  tiny.assert_close(model({'tokens': TOKENS, 'valid': VALID})['logits'], padded)
  for row, length in enumerate([10, 32, 21]):
    tiny.assert_close(model({'tokens': TOKENS[row:row + 1, :length]})['logits'][0], padded[row])


def test_padding_that_is_not_marked_is_read(model):
  assert tiny.differ(model({'tokens': PADDED['tokens']})['logits'][0], model(PADDED)['logits'][0]) > 1e-3


def test_an_example_does_not_depend_on_its_company(config):
  tiny.assert_company_does_not_matter(config, PADDED)


def test_chunks_change_nothing(config, model, monkeypatch):
  whole = model(PADDED)
  monkeypatch.setattr(attention, 'MOST_LOGITS', 1)
  tiny.assert_close(tiny.model_of(config)(PADDED), whole)


def test_every_parameter_reaches_the_logits(config):
  assert tiny.idle_parameters(config, PADDED) == tiny.key_biases(config)


def test_what_is_captured(config):
  tiny.assert_captured(
    config, {'tokens': TOKENS}, cross_attends=(1, 3, 2, 4, LENGTH), latents=(3, 4, 16), self_attends=(2, 1, 3, 2, 4, 4),
    decoder=(3, 1, 1, 4))


@pytest.mark.parametrize('change, message', [
  ({'tokens': TOKENS[0]}, r'tokens is \[batch, tokens\], not \[32\]'),
  ({'tokens': np.zeros((3, 33), np.int32)}, r'33 tokens \[3, 33\], but the model has 32 positions'),
  ({'tokens': TOKENS.astype(np.float32)}, 'float32 but expected'),
  ({'valid': VALID[:, :10]}, r'shape \(3, 10\) but expected \(3, 32\)'),
])
def test_another_batch_is_the_users_mistake(config, change, message):
  tiny.assert_refused(config, {**PADDED, **change}, message)
