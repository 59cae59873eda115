"""Weights and inputs of Hugging Face's models as people have them: wrapped, on other devices, of other kinds."""

import logging

import jax.numpy as jnp
import numpy as np
import pytest

import perceiver_jax
from perceiver_jax.types import UserError

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')

pytestmark = pytest.mark.usefixtures('quick_compilation')


@pytest.fixture(scope='module')
def theirs(tmp_path_factory):
  """A tiny classifier of theirs, and the directory that holds it."""
  directory = tmp_path_factory.mktemp('theirs')
  torch.manual_seed(0)
  config = transformers.PerceiverConfig(
    num_latents=4, d_latents=16, num_blocks=1, num_self_attends_per_block=1, num_self_attention_heads=2, image_size=16,
    num_labels=3)
  model = transformers.PerceiverForImageClassificationLearned(config).eval()
  model.save_pretrained(directory)
  return model, directory


@pytest.fixture(scope='module')
def predictor(theirs):
  return perceiver_jax.load(theirs[1])


IMAGE = np.random.default_rng(0).standard_normal((2, 3, 16, 16)).astype(np.float32)


@pytest.mark.parametrize('prefix', ['_orig_mod.', 'module.', 'module._orig_mod.', 'model.'])
def test_the_prefixes_of_wrappers_are_taken_off_and_said(theirs, tmp_path, caplog, prefix):
  model, directory = theirs
  (tmp_path / 'config.json').write_bytes((directory / 'config.json').read_bytes())
  torch.save({prefix + name: value for name, value in model.state_dict().items()}, tmp_path / 'pytorch_model.bin')
  with caplog.at_level(logging.WARNING, logger='absl'):
    logits = perceiver_jax.load(tmp_path).logits(pixel_values=IMAGE)
  assert f'begin with {prefix}, which is left out' in caplog.text
  with torch.no_grad():
    np.testing.assert_allclose(logits, model(pixel_values=torch.from_numpy(IMAGE)).logits, atol=2e-5)


def test_names_that_do_not_fit_are_told_ten_at_a_time(theirs, tmp_path):
  model, directory = theirs
  (tmp_path / 'config.json').write_bytes((directory / 'config.json').read_bytes())
  torch.save({f'{name}.x': value for name, value in model.state_dict().items()}, tmp_path / 'pytorch_model.bin')
  with pytest.raises(UserError, match=r'is missing; .*; and \d+ more, \d+ in all$') as refusal:
    perceiver_jax.load(tmp_path)
  assert len(str(refusal.value)) < 2_000


@pytest.mark.parametrize('made', [
  lambda x: torch.from_numpy(x).bfloat16(), lambda x: torch.from_numpy(x).half(),
  lambda x: torch.from_numpy(x).requires_grad_(), lambda x: torch.from_numpy(x).double(),
  lambda x: jnp.asarray(x, jnp.bfloat16), lambda x: list(torch.from_numpy(x)),
  lambda x: list(torch.from_numpy(x).bfloat16()), lambda x: x.tolist(), lambda x: torch.from_numpy(x)[:, :, ::1],
], ids=['bf16', 'half', 'gradient', 'double', 'jax bf16', 'list of tensors', 'list of bf16', 'list', 'view'])
def test_numbers_of_any_library_are_taken(predictor, made):
  expected = predictor.logits(pixel_values=IMAGE)
  np.testing.assert_allclose(predictor.logits(pixel_values=made(IMAGE)), expected, atol=0.05)


@pytest.mark.parametrize('value', [[[1, 2], [3]], torch.eye(3).to_sparse(), 'x.png', [[None]], {'a': 1}],
                         ids=['ragged', 'sparse', 'text', 'None', 'dict'])
def test_what_is_no_array_is_answered_in_a_line(predictor, value):
  with pytest.raises(UserError, match='an image'):
    predictor.logits(pixel_values=value)


def test_arguments_that_change_nothing_are_taken(predictor):
  plain = predictor.logits(pixel_values=IMAGE)
  asked = predictor.logits(
    pixel_values=IMAGE, return_dict=True, labels=None, output_attentions=False, interpolate_pos_encoding=False)
  np.testing.assert_array_equal(asked, plain)


@pytest.mark.parametrize('name, why', [
  ('labels', 'they serve a loss'), ('output_attentions', r'capture=True\) returns the attention maps'),
  ('output_hidden_states', 'returns the latents'), ('interpolate_pos_encoding', 'resize the images'),
  ('head_mask', 'no heads are left out'),
])
def test_the_other_arguments_are_refused_by_name_and_with_why(predictor, name, why):
  with pytest.raises(UserError, match=f'not {name}: .*{why}'):
    predictor.logits(pixel_values=IMAGE, **{name: True})
