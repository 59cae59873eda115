"""What kind of text it is: what the model reads, and which classes are named."""

import numpy as np
import pytest

from perceiver_jax.inference.model import Model
from perceiver_jax.inference.text_classification import predict
from perceiver_jax.types import UserError
from tests.tasks.test_text_classification import read_config
from tests.tasks.tiny import random_model

pytestmark = pytest.mark.usefixtures('quick_compilation')


@pytest.fixture(scope='module')
def model():
  """On texts of 30 bytes, with 5 classes."""
  return random_model(read_config())


def test_a_text_stands_between_the_class_and_the_separator_tokens():
  batches = []

  def run(batch, *, capture=False):
    batches.append(batch)
    return {'logits': np.array([[0, 2, 1, 3, 0]], np.float32)}

  predict(Model(read_config(), {}, {}, run), 'é!')
  (batch,) = batches
  assert batch['tokens'].shape == batch['valid'].shape == (1, 32)
  assert batch['tokens'][0, :7].tolist() == [4, 0xc3 + 6, 0xa9 + 6, ord('!') + 6, 5, 0, 0]
  assert batch['valid'][0].tolist() == [1] * 5 + [0] * 27


def test_all_classes_come_the_most_probable_first(model):
  found = predict(model, 'A text.')
  assert len(found.names) == 5 and found.captured is None
  assert np.all(np.diff(found.probabilities) <= 0)
  np.testing.assert_allclose(found.probabilities.sum(), 1, rtol=1e-5)
  named = predict(model, 'A text.', class_names=tuple('abcde'))
  assert [f'class {"abcde".index(name)}' for name in named.names] == list(found.names)
  assert predict(model, 'Another.').probabilities[0] != found.probabilities[0]


@pytest.mark.parametrize('text', ['', 'x' * 30, '日本語', 'a\ud800', '🙂' * 7])
def test_every_text_that_fits_has_a_class(model, text):
  assert np.isfinite(predict(model, text).probabilities).all()


@pytest.mark.parametrize('text, message', [
  ('x' * 31, 'the text has 31 bytes, but the model reads 30; shorten it'),
  ('🙂' * 8, 'the text has 32 bytes'),
  (b'bytes', 'a text is a str, not bytes'),
])
def test_a_text_that_cannot_be_read_is_the_users_mistake(model, text, message):
  with pytest.raises(UserError, match=message):
    predict(model, text)


def test_another_number_of_names_is_the_users_mistake(model):
  with pytest.raises(UserError, match='there are 2 class_names, but the model has 5 classes'):
    predict(model, 'text', class_names=('a', 'b'))


def test_a_model_of_word_pieces_is_the_users_mistake(model):
  config = read_config()
  config.data.vocab_size = 32_000
  with pytest.raises(UserError, match='only bytes, 262, can be made here'):
    predict(model._replace(config=config), 'text')


def test_answers_that_are_not_finite_are_not_given():
  def run(batch, *, capture=False):
    return {'logits': np.array([[0, np.inf, 1, 3, 0]], np.float32)}

  with pytest.raises(UserError, match=r'numbers that are not finite \(logits\)'):
    predict(Model(read_config(), {}, {}, run), 'text')


def test_attention_comes_if_it_is_asked_for(model):
  assert predict(model, 'text', capture=True).captured['decoder'].shape == (1, 1, 1, 4)
