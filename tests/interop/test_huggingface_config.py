"""What config.json of Hugging Face's says, in our words, and back. test_huggingface.py compares the models."""

from __future__ import annotations

import json
import re

import pytest

from perceiver_jax.config.saved import differences
from perceiver_jax.interop import zoo
from perceiver_jax.interop.huggingface_config import (
  ARCHITECTURES,
  architecture_of,
  class_names,
  read_config,
  write_config,
)
from perceiver_jax.types import UserError

TASKS = {
  'PerceiverForMaskedLM': 'masked_lm',
  'PerceiverForSequenceClassification': 'text_classification',
  'PerceiverForImageClassificationFourier': 'image_classification',
  'PerceiverForImageClassificationLearned': 'image_classification',
  'PerceiverForImageClassificationConvProcessing': 'image_classification',
  'PerceiverForOpticalFlow': 'optical_flow',
  'PerceiverForMultimodalAutoencoding': 'video_autoencoding',
}
FOURIER, LEARNED = 'PerceiverForImageClassificationFourier', 'PerceiverForImageClassificationLearned'
FLOW, MULTIMODAL = 'PerceiverForOpticalFlow', 'PerceiverForMultimodalAutoencoding'


def _read(architecture: str, **values):
  return read_config({'architectures': [architecture], **values})


@pytest.mark.parametrize('architecture', TASKS)
def test_each_class_is_a_task_of_ours(architecture):
  assert set(TASKS) == set(ARCHITECTURES)
  config = _read(architecture)
  assert config.is_locked and config.task == TASKS[architecture]
  assert (config.model.gelu, config.model.masked_rows, config.model.encoder_residual) == ('exact', 'mean', True)
  assert config.model.query_residual == ('Classification' in architecture)


# The sizes of the released models, in Hugging Face's words.
RELEASED_SIZES = {
  'imagenet_fourier': (FOURIER, {
    'd_latents': 1024, 'd_model': 261, 'num_blocks': 8, 'num_self_attends_per_block': 6,
    'num_cross_attention_heads': 1, 'num_latents': 512, 'id2label': {str(i): f'class {i}' for i in range(1000)}}),
  'imagenet_learned': (LEARNED, {
    'd_latents': 1024, 'd_model': 512, 'num_blocks': 8, 'num_self_attends_per_block': 6, 'image_size': 224,
    'num_cross_attention_heads': 1, 'num_latents': 512, 'num_labels': 1000}),
  'imagenet_conv': ('PerceiverForImageClassificationConvProcessing', {
    'd_latents': 1024, 'd_model': 322, 'num_blocks': 8, 'num_self_attends_per_block': 6,
    'num_cross_attention_heads': 1, 'num_latents': 512, 'num_labels': 1000}),
  'masked_lm': ('PerceiverForMaskedLM', {'qk_channels': 256, 'v_channels': 1280}),
  'optical_flow': (FLOW, {
    'd_latents': 512, 'd_model': 322, 'num_self_attends_per_block': 24, 'num_self_attention_heads': 16,
    'num_cross_attention_heads': 1, 'num_latents': 2048}),
  'video_autoencoding': (MULTIMODAL, {
    'd_latents': 512, 'd_model': 704, 'num_self_attends_per_block': 8, 'num_self_attention_heads': 8,
    'num_cross_attention_heads': 1, 'num_latents': 784, 'num_labels': 700}),
}


@pytest.mark.parametrize('name', RELEASED_SIZES)
def test_a_released_model_differs_from_the_authors_in_what_theirs_does_otherwise(name):
  architecture, sizes = RELEASED_SIZES[name]
  config = _read(architecture, attention_probs_dropout_prob=0, **sizes)
  expected = {
    "model.gelu: 'tanh' in the workdir, 'exact' now", "model.masked_rows: 'zero' in the workdir, 'mean' now"}
  if name.startswith('imagenet'):
    expected.add("data.class_names: 'imagenet' in the workdir, None now")
  if name == 'video_autoencoding':
    expected.add("data.class_names: 'kinetics700' in the workdir, None now")
  if name == 'imagenet_learned':
    expected.add('model.query_residual: False in the workdir, True now')
  if name == 'imagenet_conv':
    expected.add("model.stem.padding: 'same' in the workdir, 'symmetric' now")
  assert set(differences(zoo.config(name), config)) == expected


def test_sizes_come_from_their_file():
  config = _read(
    MULTIMODAL, num_frames=3, image_size=5, output_shape=[7, 3, 20, 20], audio_samples_per_frame=12,
    samples_per_patch=4, output_num_channels=6, _label_trainable_num_channels=9, num_labels=2, num_latents=11,
    d_latents=8, num_blocks=13, num_self_attends_per_block=14, num_self_attention_heads=4, num_cross_attention_heads=2,
    qk_channels=16, v_channels=24, cross_attention_widening_factor=3, self_attention_widening_factor=5,
    use_query_residual=False, attention_probs_dropout_prob=0.25, hidden_act='gelu_new')
  data, model = config.data, config.model
  assert (data.num_frames, data.image_size, data.samples_per_frame, data.num_classes) == (3, 20, 12, 2)
  assert (model.video.max_resolution, model.audio.max_resolution, model.audio.patch_size) == ((3, 5, 5), (36,), 4)
  assert (model.video.num_bands, model.audio.num_bands, model.video.patch_size) == (32, 192, 4)
  assert (model.output_channels, model.label_query_channels) == (6, 9)
  assert (model.num_latents, model.latent_channels, model.num_blocks) == (11, 8, 13)
  assert (model.num_self_attends_per_block, model.num_self_heads, model.num_cross_heads) == (14, 4, 2)
  assert (model.qk_channels, model.v_channels, model.cross_widening, model.self_widening) == (16, 24, 3, 5)
  assert (model.encoder_residual, model.attention_dropout_prob, model.gelu) == (False, 0.25, 'tanh')


def test_an_image_size_counts_where_their_class_reads_it():
  learned = _read(LEARNED)
  assert (learned.data.image_size, learned.model.stem.kind, learned.model.position.channels) == (56, 'conv1x1', 256)
  assert _read(FOURIER).data.image_size == _read(FOURIER, image_size=56).data.image_size == 224
  assert _read(FOURIER, image_size=32).data.image_size == 32
  assert _read(FOURIER, image_size=32).model.position.max_resolution == (224, 224)
  flow = _read(FLOW, train_size=[6, 8])
  assert flow.data.frame_size == flow.model.max_resolution == (6, 8)


def test_widths_of_the_latents_are_spelt_out():
  config = _read('PerceiverForMaskedLM', d_latents=64, cross_attention_shape_for_attention='q')
  assert (config.model.qk_channels, config.model.v_channels) == (64, None)
  config = _read('PerceiverForMaskedLM', d_latents=64, cross_attention_shape_for_attention='q', qk_channels=32)
  assert config.model.qk_channels == 32
  assert _read('PerceiverForMaskedLM', d_latents=64).model.qk_channels is None


@pytest.mark.parametrize(('values', 'message'), [
  ({'architectures': ['PerceiverModel']}, r'PerceiverModel.*must name one of PerceiverForMaskedLM, .*Autoencoding$'),
  ({'architectures': ['BertForMaskedLM']}, 'BertForMaskedLM'),
  ({'architectures': None}, 'architectures is None'),
  ({}, 'architectures is None'),
  ({'architectures': 'PerceiverForMaskedLM'}, 'must name one of'),
  ({'architectures': [FOURIER], 'hidden_act': 'relu'}, "hidden_act is 'relu'; ours has gelu, .*gelu_new"),
  ({'architectures': [FOURIER], 'num_latents': '12', 'd_latents': 0}, "num_latents is '12'; d_latents is 0"),
  ({'architectures': [FOURIER], 'num_blocks': True}, 'num_blocks is True'),
  ({'architectures': [FOURIER], 'qk_channels': 2.5}, r'qk_channels is 2\.5'),
  ({'architectures': [FLOW], 'train_size': [6, 8, 2]}, r'train_size is \[6, 8, 2\]'),
  ({'architectures': [LEARNED], 'image_size': [6, 8]}, r'image_size is \[6, 8\]'),
  ({'architectures': [FOURIER], 'attention_probs_dropout_prob': 1.5}, r'attention_dropout_prob is 1\.5'),
  ({'architectures': [FOURIER], 'cross_attention_shape_for_attention': 'v'}, "'kv' or 'q', not 'v'"),
  ({'architectures': [FLOW], 'cross_attention_shape_for_attention': 'q'}, "only 'kv' can be read"),
  ({'architectures': [MULTIMODAL], 'cross_attention_shape_for_attention': 'q'}, "only 'kv' can be read"),
  ({'architectures': [MULTIMODAL], 'num_frames': 8}, r'output_shape is \(1, 16, 224, 224\) and num_frames 8'),
  ({'architectures': [MULTIMODAL], 'output_shape': [1, 16, 224, 96]}, 'square videos only'),
])
def test_what_ours_cannot_be_is_the_users_mistake(values, message):
  with pytest.raises(UserError, match=message):
    read_config(values)


def test_a_config_is_read_from_a_directory(tmp_path):
  values = {'architectures': [LEARNED], 'num_latents': 3, 'torch_dtype': 'float16', 'id2label': {'1': 'b', '0': 'a'}}
  (tmp_path / 'config.json').write_text(json.dumps(values))
  assert read_config(tmp_path) == read_config(values)
  assert read_config(tmp_path).data.num_classes == 2
  assert architecture_of(tmp_path) == LEARNED
  assert class_names(tmp_path) == ('a', 'b')


@pytest.mark.parametrize(('text', 'message'), [
  ('{"architectures": [', 'config.json is damaged'), ('[]', 'holds no table of keys'),
  ('{"a": ' * 100_000, 'config.json is damaged'),
  (None, 'cannot read .*config.json'),
])
def test_a_damaged_file_is_the_users_mistake(tmp_path, text, message):
  if text is not None:
    (tmp_path / 'config.json').write_text(text)
  with pytest.raises(UserError, match=message):
    read_config(tmp_path)


def test_classes_without_names_have_none():
  assert class_names({}) is None
  assert class_names({'id2label': {0: 'LABEL_0', 1: 'LABEL_1'}}) is None
  assert class_names({'id2label': {str(i): f'name {i}' for i in range(11)}}) == tuple(f'name {i}' for i in range(11))


@pytest.mark.parametrize('labels', [{'cat': 0}, {'0': 3}, {'0': None}, ['cat', 'dog'], 'cat', 3, True, {}])
def test_labels_of_a_wrong_form_name_nothing(labels):
  assert class_names({'id2label': labels}) is None
  read_config({'architectures': [LEARNED], 'id2label': labels})


def test_names_of_classes_are_written_both_ways_and_read_back():
  config = _read(LEARNED, num_labels=3)
  values = json.loads(json.dumps(write_config(config, ('cat', 'dog', 'emu'))))
  assert values['id2label'] == {'0': 'cat', '1': 'dog', '2': 'emu'}
  assert values['label2id'] == {'cat': 0, 'dog': 1, 'emu': 2}
  assert class_names(values) == ('cat', 'dog', 'emu') and read_config(values) == config
  with pytest.raises(UserError, match='there are 2 names of classes, but the model has 3 classes'):
    write_config(config, ('cat', 'dog'))


def test_names_are_nothing_to_a_model_without_classes():
  assert 'label2id' not in write_config(_read('PerceiverForMaskedLM'), ('cat', 'dog'))


@pytest.mark.parametrize('architecture', TASKS)
def test_what_we_write_we_read(architecture):
  config = _read(architecture, num_latents=3, d_latents=16, qk_channels=8, v_channels=16, num_labels=9,
                 hidden_act='gelu_new', image_size=24, output_shape=[1, 16, 96, 96], train_size=[10, 12])
  values = write_config(config)
  assert values['architectures'] == [architecture] and values['model_type'] == 'perceiver'
  assert read_config(json.loads(json.dumps(values))) == config


@pytest.mark.parametrize('name', RELEASED_SIZES)
def test_the_authors_models_are_written_once_they_are_told_to_mask_as_theirs(name):
  config = zoo.config(name).unlock()
  with pytest.raises(UserError, match=re.escape("model.masked_rows is 'zero' here, 'mean' there")):
    write_config(config)
  config.model.masked_rows = 'mean'
  if name in ('imagenet_learned', 'imagenet_conv'):
    with pytest.raises(UserError, match=r'nearest is PerceiverForImageClassification(Learned|Conv)'):
      write_config(config)
  else:
    assert write_config(config)['architectures'] == [RELEASED_SIZES[name][0]]
    assert write_config(config)['hidden_act'] == 'gelu_pytorch_tanh'


@pytest.mark.parametrize(('key', 'value'), [
  ('data.num_channels', 1), ('data.permutation', 'joint'), ('model.head', 'pool'), ('model.share_blocks', False),
  ('model.position.num_bands', 32), ('model.position.spacing', 'log'), ('model.stem.kind', 'patches'),
])
def test_a_model_that_theirs_is_not_is_refused(key, value):
  config = _read(FOURIER).unlock()
  config.update_from_flattened_dict({key: value})
  with pytest.raises(UserError, match=re.escape(f'nearest is {FOURIER}: {key} is {value!r} here')):
    write_config(config)


@pytest.mark.parametrize('key', ['model.dropout_prob', 'model.attention_dropout_prob'])
def test_dropout_is_no_matter_of_a_forward_pass(key):
  config = _read(FOURIER).unlock()
  config.update_from_flattened_dict({key: 0.5})
  assert write_config(config)['architectures'] == [FOURIER]
