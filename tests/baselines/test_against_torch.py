"""The ViT and the small ResNet against PyTorch's own layers, with the same numbers in them, in float64."""

from __future__ import annotations

import functools

import haiku as hk
import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from perceiver_jax.baselines.resnet import resnet20
from perceiver_jax.baselines.vit import vit
from tests.core.test_attention import compiled, randomise

torch = pytest.importorskip('torch', reason='torch is not installed: no baseline is compared with it')

NUM_CLASSES, NUM_LAYERS, NUM_HEADS = 5, 2, 2
MODEL = ConfigDict({
  'latent_channels': 8, 'num_blocks': 1, 'num_self_attends_per_block': NUM_LAYERS, 'share_blocks': True,
  'num_self_heads': NUM_HEADS, 'self_widening': 4, 'qk_channels': None, 'v_channels': None, 'gelu': 'exact',
  'dropout_prob': 0.0, 'attention_dropout_prob': 0.0, 'stem': {'patch_size': 4},
})
PIXELS = np.random.default_rng(0).normal(size=(3, 8, 12, 5))


def _tensor(array):
  return torch.tensor(np.asarray(array, np.float64))


def _ours(forward, pixels):
  """The parameters and the state, random, and the outputs."""
  function = hk.transform_with_state(functools.partial(forward, is_training=False))
  init = hk.transform_with_state(functools.partial(forward, is_training=True)).init  # which makes BatchNorm's averages
  params, state = jax.eval_shape(init, jax.random.key(0), pixels)
  params = randomise(params, np.float64)
  generator = np.random.default_rng(1)
  state = jax.tree.map(lambda x: generator.uniform(0.5, 2, x.shape).astype(x.dtype), state)
  return params, state, compiled(function.apply)(params, state, None, pixels)[0]


@pytest.fixture(autouse=True)
def _float64():
  with jax.enable_x64(True):
    yield


def _torch_layer(params, path):
  """torch.nn.TransformerEncoderLayer with the parameters of one of our layers."""
  layer = torch.nn.TransformerEncoderLayer(
    8, NUM_HEADS, 32, 0.0, torch.nn.functional.gelu, layer_norm_eps=1e-5, batch_first=True, norm_first=True,
    dtype=torch.float64)
  attention, projected = f'{path}/attention', ('query', 'key', 'value')
  values = {
    'self_attn.in_proj_weight': np.concatenate([params[f'{attention}/{name}']['w'].T for name in projected]),
    'self_attn.in_proj_bias': np.concatenate([params[f'{attention}/{name}']['b'] for name in projected]),
  }
  linears = {'self_attn.out_proj': 'attention/output', 'linear1': 'mlp/hidden', 'linear2': 'mlp/output'}
  for theirs, ours in linears.items():
    values |= {f'{theirs}.weight': params[f'{path}/{ours}']['w'].T, f'{theirs}.bias': params[f'{path}/{ours}']['b']}
  for theirs, ours in {'norm1': 'attention_norm', 'norm2': 'mlp_norm'}.items():
    values |= {
      f'{theirs}.weight': params[f'{path}/{ours}']['scale'], f'{theirs}.bias': params[f'{path}/{ours}']['offset']}
  layer.load_state_dict({name: _tensor(value) for name, value in values.items()})
  return layer.eval()


def test_a_vit_is_torchs_pre_norm_encoder_on_patches_and_a_class_token():
  params, _, logits = _ours(lambda pixels, is_training: vit(
    pixels, NUM_CLASSES, MODEL, is_training=is_training), PIXELS)
  kernels = params['patches']['w'].reshape(4, 4, 5, 8).transpose(3, 2, 0, 1)
  with torch.no_grad():
    patches = torch.nn.functional.conv2d(
      _tensor(PIXELS.transpose(0, 3, 1, 2)), _tensor(kernels), _tensor(params['patches']['b']), stride=4)
    class_token = _tensor(params['class_token']['table']).expand(3, 1, 8)
    tokens = torch.cat([class_token, patches.flatten(2).mT], 1) + _tensor(params['token_positions']['table'])
    for index in range(NUM_LAYERS):
      tokens = _torch_layer(params, f'processor/self_attend_{index}')(tokens)
    norm = params['final_norm']
    normed = torch.nn.functional.layer_norm(tokens[:, 0], (8,), _tensor(norm['scale']), _tensor(norm['offset']))
    expected = normed @ _tensor(params['output']['w']) + _tensor(params['output']['b'])
  assert logits.dtype == np.float64
  np.testing.assert_allclose(logits, expected, rtol=1e-9, atol=1e-9)


def test_resnet20_is_nineteen_convolutions_and_a_linear():
  params, state, logits = _ours(lambda pixels, is_training: resnet20(
    pixels, NUM_CLASSES, None, is_training=is_training), PIXELS)

  def convolve(x, conv, norm, stride=1):
    kernel = _tensor(params[conv]['w']).permute(3, 2, 0, 1)
    if kernel.shape[-1] == 3:
      x = torch.nn.functional.pad(x, (1, 1, 1, 1) if stride == 1 else (0, 1, 0, 1))
    mean, variance = (
      _tensor(state[f'{norm}/~/{name}']['average']).flatten() for name in ('mean_ema', 'var_ema'))
    return torch.nn.functional.batch_norm(
      torch.nn.functional.conv2d(x, kernel, stride=stride), mean, variance,
      _tensor(params[norm]['scale']).flatten(), _tensor(params[norm]['offset']).flatten())

  x = convolve(_tensor(PIXELS.transpose(0, 3, 1, 2)), 'stem', 'stem_norm').relu()
  num_convolutions = 1
  for group in range(3):
    for block in range(3):
      path, changes = f'group_{group}/~/block_{block}/~/', group > 0 and block == 0
      hidden = convolve(x, path + 'conv_0', path + 'batchnorm_0', 1 + changes).relu()
      hidden = convolve(hidden, path + 'conv_1', path + 'batchnorm_1')
      shortcut = convolve(x, path + 'shortcut_conv', path + 'shortcut_batchnorm', 2) if changes else x
      x, num_convolutions = (hidden + shortcut).relu(), num_convolutions + 2
  assert num_convolutions == 19 and x.shape == (3, 64, 2, 3)
  expected = x.mean((2, 3)) @ _tensor(params['output']['w']) + _tensor(params['output']['b'])
  np.testing.assert_allclose(logits, expected, rtol=1e-6, atol=1e-6)
