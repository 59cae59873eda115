"""Our models compute what Hugging Face's do, from the same weights, for each of their seven classes; and back."""

from __future__ import annotations

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perceiver_jax.interop import huggingface, huggingface_config, torch_file
from perceiver_jax.types import UserError
from tests.interop.huggingface_models import (
  CASES,
  error,
  fresh,
  our_logits,
  ours,
  pair,
  state_dict,
  template,
  tensors,
  their_logits,
  torch,
  transformers,
)

pytestmark = pytest.mark.usefixtures('quick_compilation')

TOLERANCE = 2e-5  # ||ours - theirs|| / ||theirs||, in float32


def test_every_class_has_models_to_compare():
  architectures = [case.architecture for case in CASES.values()]
  assert set(architectures) == set(huggingface_config.ARCHITECTURES)
  assert min(map(architectures.count, architectures)) == 2


@pytest.mark.parametrize('name', CASES)
def test_logits_are_theirs(name):
  logits = their_logits(pair(name).theirs, pair(name).inputs)
  assert jax.tree.map(np.shape, our_logits(name)) == jax.tree.map(np.shape, logits)
  assert error(our_logits(name), logits) <= TOLERANCE


def _moved(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """The same, but two tokens have changed places, or everything has gone one pixel to the side."""
  if 'tokens' in batch:
    tokens = batch['tokens'].copy()
    tokens[:, [0, 2]] = tokens[:, [2, 0]]
    return {**batch, 'tokens': tokens}
  return {
    name: np.roll(array, 1, axis=-2) if name in ('image', 'patches', 'video') else array
    for name, array in batch.items()}


@pytest.mark.parametrize('name', CASES)
def test_logits_depend_on_where_things_are(name):
  assert error(our_logits(name, batch=_moved(pair(name).batch)), our_logits(name)) > 50 * TOLERANCE


@pytest.mark.parametrize('name', CASES)
def test_logits_depend_on_the_form_of_gelu(name):
  config = pair(name).config.copy_and_resolve_references()
  config.model.gelu = {'exact': 'tanh', 'tanh': 'exact'}[config.model.gelu]
  assert error(our_logits(name, config=config), our_logits(name)) > 50 * TOLERANCE


@pytest.mark.parametrize(
  'name', [name for name, case in CASES.items() if 'attention_mask' in case.inputs(np.random.default_rng(0))])
def test_logits_depend_on_the_mask(name):
  without = {key: array for key, array in pair(name).batch.items() if key != 'valid'}
  assert error(our_logits(name, batch=without), our_logits(name)) > 50 * TOLERANCE


@pytest.mark.parametrize('name', ['masked_lm', 'conv', 'multimodal'])
@pytest.mark.parametrize('is_pickled', [False, True])
def test_a_directory_that_they_saved_gives_the_same_model(tmp_path, name, is_pickled):
  each = pair(name)
  each.theirs.save_pretrained(tmp_path)
  if is_pickled:
    (tmp_path / 'model.safetensors').unlink()
    torch.save(each.theirs.state_dict(), tmp_path / 'pytorch_model.bin')
  config = huggingface_config.read_config(tmp_path)
  assert config == each.config
  assert huggingface_config.architecture_of(tmp_path) == CASES[name].architecture
  trees = huggingface.convert(torch_file.read(tmp_path), config, template(each.model, each.batch))
  jax.tree.map(np.testing.assert_array_equal, trees, (each.params, each.state))


@pytest.mark.parametrize('name', ['masked_lm', 'conv', 'flow_wide'])
def test_gradients_are_theirs(name):
  each = pair(name)
  # Not of the last example, of which nothing counts: what they add to its logits is lost in rounding, and yet passes
  # gradients on.
  inputs, batch = jax.tree.map(lambda array: array[:2], (each.inputs, each.batch))
  theirs = fresh(CASES[name])
  theirs.load_state_dict(each.theirs.state_dict())
  logits = theirs(**tensors(inputs)).logits
  direction = np.random.default_rng(3).normal(size=logits.shape).astype(np.float32)
  (logits * tensors(direction)).sum().backward()
  expected = {parameter: tensor.grad.numpy() for parameter, tensor in theirs.named_parameters()}

  def loss(params):
    (logits,) = each.model.apply(params, each.state, None, batch, is_training=False)[0].values()
    return jnp.sum(logits * direction)

  gradients = huggingface.to_state_dict(jax.jit(jax.grad(loss))(each.params), {}, each.config)
  assert gradients.keys() == expected.keys()
  norm = np.sqrt(sum(np.sum(gradient**2) for gradient in expected.values()))
  for parameter, gradient in expected.items():
    assert np.linalg.norm(gradients[parameter] - gradient) <= 1e-4 * norm, parameter


@pytest.mark.parametrize('name', CASES)
def test_their_class_takes_our_parameters_and_computes_the_same(name):
  each = pair(name)
  back = huggingface.to_state_dict(each.params, each.state, each.config)
  for parameter, array in state_dict(each.theirs).items():
    if not parameter.endswith('num_batches_tracked'):
      assert back[parameter].dtype == array.dtype
      np.testing.assert_array_equal(back[parameter], array, err_msg=parameter)
  values = huggingface_config.write_config(each.config)
  (architecture,) = values['architectures']
  # There are two implementations of the approximate GELU, which round differently.
  values['hidden_act'] = each.theirs.config.hidden_act
  config = transformers.PerceiverConfig(**values, attn_implementation='eager')
  theirs = getattr(transformers, architecture)(config).eval()
  theirs.load_state_dict(tensors(back), strict=True)
  jax.tree.map(
    np.testing.assert_array_equal, their_logits(theirs, each.inputs), their_logits(each.theirs, each.inputs))


@pytest.mark.parametrize('name', CASES)
def test_there_and_back_again_is_the_same_bit_for_bit(name):
  each = pair(name)
  back = huggingface.to_state_dict(each.params, each.state, each.config)
  again = huggingface.convert(back, each.config, template(each.model, each.batch))
  for arrays, before in zip(jax.tree.leaves(again), jax.tree.leaves((each.params, each.state)), strict=True):
    assert arrays.dtype == before.dtype
    np.testing.assert_array_equal(arrays, before)
  assert jax.tree.structure(again) == jax.tree.structure((each.params, each.state))


@functools.cache
def _trained(name):
  """A pass of training through our model, compiled."""
  return jax.jit(functools.partial(pair(name).model.apply, is_training=True))


@pytest.mark.parametrize('num_batches', [None, 0, 3, 123_456])
def test_batchnorm_goes_on_from_their_averages(num_batches):
  each = pair('conv')
  theirs = state_dict(each.theirs)
  counter = 'perceiver.input_preprocessor.convnet.batchnorm.num_batches_tracked'
  theirs = {key: array for key, array in theirs.items() if key != counter}
  if num_batches is not None:
    theirs[counter] = np.array(num_batches)
  _, state = huggingface.convert(theirs, each.config, template(each.model, each.batch))
  for average, name in (('mean', 'running_mean'), ('var', 'running_var')):
    np.testing.assert_array_equal(
      state[f'stem/norm/~/{average}_ema']['average'].ravel(), theirs[counter.replace('num_batches_tracked', name)])
  # After one more batch nine tenths of the average are the old one, as in PyTorch with momentum 0.1.
  _, after = _trained('conv')(each.params, state, jax.random.key(0), each.batch)
  module = each.theirs.perceiver.input_preprocessor.convnet
  images = tensors(each.inputs['inputs'])
  mean = module.conv(images).mean((0, 2, 3)).detach().numpy()
  np.testing.assert_allclose(
    after['stem/norm/~/mean_ema']['average'].ravel(),
    0.9 * state['stem/norm/~/mean_ema']['average'].ravel() + 0.1 * mean, atol=1e-5)


@pytest.mark.parametrize('dtype', ['float16', 'bfloat16', 'float64'])
def test_weights_of_any_precision_become_float32(dtype):
  each = pair('masked_lm')
  rounded = {name: array.astype(jnp.dtype(dtype)) for name, array in state_dict(each.theirs).items()}
  params, _ = huggingface.convert(rounded, each.config, template(each.model, each.batch))
  assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype('float32')}
  np.testing.assert_array_equal(
    params['tokens']['table'], rounded['perceiver.input_preprocessor.embeddings.weight'].astype(np.float32))


def test_all_that_does_not_fit_is_named_at_once():
  each = pair('conv')
  theirs = state_dict(each.theirs)
  del theirs['perceiver.embeddings.latents']
  del theirs['perceiver.input_preprocessor.convnet.batchnorm.running_var']
  theirs['perceiver.decoder.decoder.final_layer.weight'] = np.zeros([12, 5], np.float32)  # not transposed
  theirs['perceiver.input_preprocessor.convnet.conv.weight'] = np.zeros([7, 7, 3, 64], np.float32)
  theirs['perceiver.encoder.self_attends.1.layernorm.bias'] = np.zeros(12, np.float32)
  theirs['perceiver.decoder.decoder.final_layer.bias'] = np.zeros(5, np.int64)
  theirs['classifier.num_batches_tracked'] = np.array(3)
  with pytest.raises(UserError) as caught:
    huggingface.convert(theirs, each.config, template(each.model, each.batch))
  problems = str(caught.value).partition(': ')[2].split('; ')
  assert sorted(set(problems)) == [
    'perceiver.decoder.decoder.final_layer.bias is of int64, not of floats',
    'perceiver.decoder.decoder.final_layer.weight is [12, 5], not [5, 12]',
    'perceiver.embeddings.latents is missing',
    'perceiver.encoder.self_attends.1.layernorm.bias is unknown',
    'perceiver.input_preprocessor.convnet.batchnorm.running_var is missing',
    'perceiver.input_preprocessor.convnet.conv.weight is [7, 7, 3, 64], not [64, 3, 7, 7]',
  ]
  assert len(problems) == len(set(problems))


@pytest.mark.parametrize('value', [np.nan, np.inf, 1e300])
def test_a_damaged_number_is_told_of_by_the_name_of_its_entry(value):
  each = pair('conv')
  theirs = state_dict(each.theirs)
  name = 'perceiver.input_preprocessor.convnet.batchnorm.running_var'
  theirs[name] = theirs[name].astype(np.float64)
  theirs[name][3] = value
  with pytest.raises(UserError, match=rf'{re.escape(name)} holds numbers that are not finite: the file is damaged'):
    huggingface.convert(theirs, each.config, template(each.model, each.batch))


def test_a_model_that_theirs_cannot_express_is_refused():
  each = pair('fourier')
  config = each.config.copy_and_resolve_references()
  config.model.update({'masked_rows': 'zero', 'query_residual': False})
  message = (
    "nearest is PerceiverForImageClassificationFourier: model.masked_rows is 'zero' here, 'mean' there; "
    'model.query_residual is False here, True there')
  with pytest.raises(UserError, match=re.escape(message)):
    huggingface.to_state_dict(each.params, each.state, config)
  config = each.config.copy_and_resolve_references()
  config.model.num_cross_attends = 2
  with pytest.raises(UserError, match=r'model\.num_cross_attends is 2 here, 1 there'):
    huggingface.to_state_dict(each.params, each.state, config)
  with pytest.raises(UserError, match=r'encoder/cross_attend_1/.* has no counterpart'):
    huggingface.convert(state_dict(each.theirs), config, template(ours(config), each.batch))


def test_keys_that_a_file_leaves_out_have_their_defaults():
  theirs = transformers.PerceiverConfig().to_dict()
  for key, default in huggingface_config._DEFAULTS.items():
    if key != 'num_labels':                # which is the length of id2label
      assert theirs[key] == default or tuple(theirs[key]) == default, key
  assert transformers.PerceiverConfig().num_labels == huggingface_config._DEFAULTS['num_labels']


@pytest.mark.parametrize('name', huggingface_config._GELU)
def test_the_names_of_gelu_mean_what_we_take_them_for(name):
  x = np.linspace(-4, 4, 101, dtype=np.float32)
  found = transformers.activations.ACT2FN[name](tensors(x)).numpy()
  errors = {form: np.abs(jax.nn.gelu(x, approximate=form == 'tanh') - found).max() for form in ('tanh', 'exact')}
  assert errors.pop(huggingface_config._GELU[name]) < 1e-6
  assert min(errors.values()) > 1e-4
