"""Small models of Hugging Face's, with random weights: what ours are compared with.

Every size differs from those released, biases, norms, tables and BatchNorm's statistics are random too, and all are
large enough that logits depend on the input, on every path through the model and on the form of GELU.
"""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import haiku as hk
import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from perceiver_jax.interop import huggingface, huggingface_config, huggingface_inputs


def _library(name: str) -> Any:
  """Without it these tests are skipped on a person's machine, and fail where CI=true."""
  if os.environ.get('CI') == 'true':
    return importlib.import_module(name)
  return pytest.importorskip(name, reason=f'{name} is not installed: nothing here is compared with Hugging Face')


torch = _library('torch')
transformers = _library('transformers')


class Case(NamedTuple):
  """One model: their class, their config, and the arguments of its forward pass, drawn by a NumPy generator."""

  architecture: str
  sizes: dict[str, Any]
  inputs: Callable[[np.random.Generator], dict[str, Any]]


def _latents(**sizes: Any) -> dict[str, Any]:
  return {
    'num_latents': 5, 'd_latents': 12, 'num_blocks': 2, 'num_self_attends_per_block': 1,
    'num_self_attention_heads': 3, 'num_cross_attention_heads': 1, **sizes}


def _text(length: int, is_masked: bool, name: str = 'input_ids') -> Callable[[np.random.Generator], dict[str, Any]]:
  """Of three texts one is whole, one has holes, and one has nothing that counts."""

  def draw(generator: np.random.Generator) -> dict[str, Any]:
    tokens = generator.permuted(np.tile(np.arange(1, 1 + length), (3, 1)), axis=1)
    mask = np.stack([np.ones(length), np.arange(length) % 3 != 1, np.zeros(length)]).astype(np.int64)
    return {name: tokens, **({'attention_mask': mask} if is_masked else {})}

  return draw


def _pixels(
  *shape: int, num_elements: int | None = None, name: str = 'inputs',
) -> Callable[[np.random.Generator], dict[str, Any]]:
  """Noise; with `num_elements` the first example is masked in part, the second whole, and the third masked entirely."""

  def draw(generator: np.random.Generator) -> dict[str, Any]:
    pixels = {name: generator.normal(size=shape).astype(np.float32)}
    if num_elements is None:
      return pixels
    mask = np.stack([np.arange(num_elements) % 3 != 1, np.ones(num_elements), np.zeros(num_elements)])
    return {**pixels, 'attention_mask': mask.astype(np.int64)}

  return draw


def _video(
  num_frames: int, size: int, num_samples: int, num_classes: int, image_points: list[int], audio_points: list[int],
  num_elements: int | None = None,
) -> Callable[[np.random.Generator], dict[str, Any]]:
  def draw(generator: np.random.Generator) -> dict[str, Any]:
    image = generator.uniform(size=(3, num_frames, 3, size, size)).astype(np.float32)
    audio = generator.uniform(-1, 1, size=(3, num_samples, 1)).astype(np.float32)
    label = np.eye(num_classes, dtype=np.float32)[generator.integers(num_classes, size=3)]
    drawn: dict[str, Any] = {
      'inputs': {'image': image, 'audio': audio, 'label': label},
      'subsampled_output_points': {'image': np.array(image_points), 'audio': np.array(audio_points), 'label': None},
    }
    if num_elements is not None:
      mask = np.stack([np.arange(num_elements) % 3 != 1, np.ones(num_elements), np.zeros(num_elements)])
      drawn['attention_mask'] = mask.astype(np.int64)
    return drawn

  return draw


_MASKED_LM = 'PerceiverForMaskedLM'
_SEQUENCE = 'PerceiverForSequenceClassification'
_FOURIER = 'PerceiverForImageClassificationFourier'
_LEARNED = 'PerceiverForImageClassificationLearned'
_CONV = 'PerceiverForImageClassificationConvProcessing'
_FLOW = 'PerceiverForOpticalFlow'
_MULTIMODAL = 'PerceiverForMultimodalAutoencoding'
_WIDE = {'cross_attention_widening_factor': 2, 'self_attention_widening_factor': 2}

CASES = {
  'masked_lm': Case(_MASKED_LM, _latents(
    d_model=24, vocab_size=31, max_position_embeddings=11, num_cross_attention_heads=2), _text(11, True)),
  'masked_lm_wide': Case(_MASKED_LM, _latents(
    d_model=16, vocab_size=17, max_position_embeddings=13, qk_channels=6, v_channels=12, num_self_attention_heads=2,
    num_self_attends_per_block=2, num_blocks=1, hidden_act='gelu_new', use_query_residual=False, **_WIDE,
  ), _text(9, True, 'inputs')),
  'masked_lm_q': Case(_MASKED_LM, _latents(
    d_model=8, vocab_size=19, max_position_embeddings=8, cross_attention_shape_for_attention='q',
    num_cross_attention_heads=4, num_labels=3), _text(7, False)),
  'sequence': Case(_SEQUENCE, _latents(
    d_model=10, vocab_size=23, max_position_embeddings=12, num_labels=4, num_cross_attention_heads=2), _text(12, True)),
  'sequence_wide': Case(_SEQUENCE, _latents(
    d_model=9, vocab_size=14, max_position_embeddings=10, num_labels=1, num_blocks=1, num_self_attends_per_block=2,
    qk_channels=8, v_channels=12, num_self_attention_heads=4, hidden_act='gelu_pytorch_tanh', **_WIDE,
  ), _text(6, True, 'inputs')),
  'fourier': Case(_FOURIER, _latents(num_labels=7), _pixels(3, 3, 6, 9, num_elements=54)),
  'fourier_wide': Case(_FOURIER, _latents(
    num_labels=3, num_blocks=1, num_self_attends_per_block=2, num_cross_attention_heads=3, d_latents=18,
    num_self_attention_heads=2, use_query_residual=False, **_WIDE), _pixels(2, 3, 7, 5, name='pixel_values')),
  'learned': Case(_LEARNED, _latents(num_labels=6, image_size=7), _pixels(3, 3, 7, 7, num_elements=49)),
  'learned_wide': Case(_LEARNED, _latents(
    num_labels=2, image_size=5, num_blocks=1, qk_channels=20, v_channels=12, num_cross_attention_heads=4,
    num_self_attention_heads=2, **_WIDE), _pixels(2, 3, 5, 5, name='pixel_values')),
  'conv': Case(_CONV, _latents(num_labels=5), _pixels(3, 3, 16, 22, num_elements=15)),
  'conv_odd': Case(_CONV, _latents(
    num_labels=8, num_blocks=1, num_self_attends_per_block=2, qk_channels=10, v_channels=12, num_self_attention_heads=2,
    num_cross_attention_heads=2, hidden_act='gelu_new', **_WIDE), _pixels(2, 3, 17, 13, name='pixel_values')),
  'flow': Case(_FLOW, _latents(train_size=[6, 9]), _pixels(3, 2, 27, 6, 9, num_elements=54)),
  'flow_wide': Case(_FLOW, _latents(
    train_size=[7, 4], num_blocks=1, num_self_attends_per_block=2, qk_channels=14, v_channels=12,
    num_self_attention_heads=2, num_cross_attention_heads=2, **_WIDE), _pixels(2, 2, 27, 7, 4)),
  'multimodal': Case(_MULTIMODAL, _latents(
    num_labels=5, num_frames=2, image_size=2, output_shape=[1, 2, 8, 8], audio_samples_per_frame=24,
    samples_per_patch=6, output_num_channels=14, _label_trainable_num_channels=40,
  ), _video(2, 8, 48, 5, [0, 127, 5, 64, 65], [7, 0, 3], num_elements=17)),
  'multimodal_wide': Case(_MULTIMODAL, _latents(
    num_labels=410, num_frames=3, image_size=4, output_shape=[3, 3, 12, 12], audio_samples_per_frame=8,
    samples_per_patch=4, output_num_channels=10, _label_trainable_num_channels=400, num_blocks=1,
    num_self_attends_per_block=2, qk_channels=6, v_channels=12, num_cross_attention_heads=2, **_WIDE,
  ), _video(3, 12, 24, 410, list(range(100, 120)), [5])),
}


# Of weights, where not 1.5: GELU stays where its forms differ, and what it gives counts as much as the residual does.
_SCALES = {'dense1': 0.5, 'dense2': 60}


class Pair(NamedTuple):
  """A model of theirs, and the same of ours."""

  theirs: Any
  inputs: dict[str, Any]
  config: ConfigDict
  model: hk.TransformedWithState
  params: Any
  state: Any
  batch: dict[str, np.ndarray]


def tensors(tree: Any) -> Any:
  return jax.tree.map(torch.from_numpy, tree)


def fresh(case: Case) -> Any:
  """Their model, as they initialise it, in evaluation."""
  config = transformers.PerceiverConfig(**case.sizes, architectures=[case.architecture], attn_implementation='eager')
  return getattr(transformers, case.architecture)(config).eval()


def _randomise(model: Any) -> None:
  generator = torch.Generator().manual_seed(1)
  with torch.no_grad():
    for name, parameter in model.named_parameters():
      noise = torch.randn(parameter.shape, generator=generator)
      if 'norm' in name and name.endswith('weight'):
        noise = 1 + 0.3 * noise
      elif name.endswith('dense1.bias'):
        noise = 0.4 * noise - 2.3          # where the two forms of GELU differ by a hundredth
      elif parameter.ndim > 1 and name.endswith('weight') and 'embedding' not in name:
        scale = next((scale for part, scale in _SCALES.items() if part in name), 1.5)
        noise *= scale * parameter[0].numel() ** -0.5
      parameter.copy_(noise)
    for name, buffer in model.named_buffers():
      if name.endswith('running_mean'):
        buffer.copy_(torch.randn(buffer.shape, generator=generator))
      elif name.endswith('running_var'):
        buffer.copy_(0.5 + torch.rand(buffer.shape, generator=generator))


def ours(config: ConfigDict) -> hk.TransformedWithState:
  task = importlib.import_module(f'perceiver_jax.tasks.{config.task}').make(config)
  return hk.transform_with_state(task.forward)


def template(model: hk.TransformedWithState, batch: dict[str, np.ndarray]) -> Any:
  return jax.eval_shape(lambda key: model.init(key, batch, is_training=True), jax.random.key(0))


def state_dict(model: Any) -> dict[str, np.ndarray]:
  return {name: tensor.numpy() for name, tensor in model.state_dict().items()}


@functools.cache
def pair(name: str) -> Pair:
  case = CASES[name]
  theirs = fresh(case)
  _randomise(theirs)
  inputs = case.inputs(np.random.default_rng(2))
  config = huggingface_config.read_config(theirs.config.to_dict())
  batch = huggingface_inputs.inputs_of(config, case.architecture, inputs)
  model = ours(config)
  params, state = huggingface.convert(state_dict(theirs), config, template(model, batch))
  return Pair(theirs, inputs, config, model, params, state, batch)


def their_logits(model: Any, inputs: dict[str, Any]) -> Any:
  with torch.no_grad():
    return jax.tree.map(lambda logits: logits.numpy(), model(**tensors(inputs)).logits)


def _jitted(model: hk.TransformedWithState) -> Callable[..., Any]:
  return jax.jit(functools.partial(model.apply, is_training=False))


@functools.cache
def _apply(name: str) -> Callable[..., Any]:
  """That of the pair's own model, compiled once for each form of a batch."""
  return _jitted(pair(name).model)


def our_logits(name: str, batch: dict[str, np.ndarray] | None = None, config: ConfigDict | None = None) -> Any:
  """`batch` and `config` in place of the pair's own."""
  each = pair(name)
  apply = _apply(name) if config is None else _jitted(ours(config))
  outputs, _ = apply(each.params, each.state, None, each.batch if batch is None else batch)
  return huggingface_inputs.logits_of(each.config, CASES[name].architecture, outputs)


def error(a: Any, b: Any) -> float:
  """The largest relative difference ||a - b|| / ||b|| among the arrays of two trees."""
  return max(jax.tree.leaves(jax.tree.map(lambda x, y: float(np.linalg.norm(x - y) / np.linalg.norm(y)), a, b)))
