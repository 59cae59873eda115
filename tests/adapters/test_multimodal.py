"""Several modalities as one input array: widths, order, masks, and what an example's fate depends on."""

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perceiver_jax.adapters.audio import audio_inputs
from perceiver_jax.adapters.multimodal import drop_modality, pack, random_mask, split
from perceiver_jax.core.input_array import InputArray, dense, valid_elements
from perceiver_jax.core.position_encoding import fourier_grid
from perceiver_jax.types import UserError

pytestmark = pytest.mark.usefixtures('quick_compilation')

GENERATOR = np.random.default_rng(0)
INPUTS = {  # neither inserted nor, by width or length, in the order of their names
  'video': InputArray(GENERATOR.normal(size=(2, 6, 3)).astype(np.float32), fourier_grid((2, 3), 2)),
  'audio': InputArray(GENERATOR.normal(size=(2, 4, 5)).astype(np.float32)),
  'label': InputArray(GENERATOR.normal(size=(2, 1, 7)).astype(np.float32)),
}
WIDTH = 3 + 2 * 5 + 4
MASKED = {'label': np.array([[True], [False]]), 'audio': np.array([[0, 1, 0, 0], [1, 1, 0, 0]], bool)}


def _packed(inputs, masked=None):
  function = hk.without_apply_rng(hk.transform(lambda inputs, masked: pack(inputs, 4, masked)))
  params = function.init(jax.random.key(0), inputs, masked)
  return params, function.apply(params, inputs, masked)


def _unmasked(params):
  return dense(hk.without_apply_rng(hk.transform(lambda: pack(INPUTS, 4))).apply(params))


def test_modalities_follow_each_other_by_name_all_as_wide_as_the_widest_and_some():
  params, packed = _packed(INPUTS)
  assert jax.tree.map(np.shape, params) == {
    'audio_padding': {'table': (1, 12)}, 'label_padding': {'table': (1, 10)}, 'video_padding': {'table': (1, 4)}}
  joined = np.asarray(dense(packed))
  assert joined.shape == (2, 11, WIDTH) and valid_elements(packed) is None
  start = 0
  for name in ('audio', 'label', 'video'):
    elements, padding = np.asarray(dense(INPUTS[name])), params[f'{name}_padding']['table']
    num_elements, num_channels = elements.shape[1:]
    part = joined[:, start:start + num_elements]
    np.testing.assert_array_equal(part[..., :num_channels], elements)
    np.testing.assert_array_equal(part[..., num_channels:], np.broadcast_to(padding, (2, num_elements, padding.size)))
    start += num_elements


def test_a_masked_element_is_wholly_its_modalitys_token():
  params, packed = _packed(INPUTS, MASKED)
  assert {name: table['table'].shape for name, table in params.items() if name.endswith('token')} == {
    'audio_mask_token': (1, WIDTH), 'label_mask_token': (1, WIDTH)}
  expected = np.array(_unmasked(params))
  expected[0, 1] = expected[1, 0] = expected[1, 1] = params['audio_mask_token']['table'][0]
  expected[0, 4] = params['label_mask_token']['table'][0]
  np.testing.assert_array_equal(dense(packed), expected)


def test_what_a_mask_hides_wholly_or_not_at_all_keeps_its_factors():
  masked = {'label': np.ones((2, 1), bool), 'video': np.zeros((2, 6), bool)}
  params, packed = _packed(INPUTS, masked)
  expected = np.array(_unmasked(params))
  expected[:, 4] = params['label_mask_token']['table'][0]
  np.testing.assert_array_equal(dense(packed), expected)
  audio, label, video = hk.transform(lambda: pack(INPUTS, 4, masked)).apply(params, None).parts
  assert video.positions is INPUTS['video'].positions and label.features.shape == (2, 1, 0)
  np.testing.assert_array_equal(audio.features, INPUTS['audio'].features)


def test_a_token_is_a_parameter_though_nothing_is_masked():
  params, packed = _packed(INPUTS, {'video': np.zeros((2, 6), bool)})
  assert params['video_mask_token']['table'].shape == (1, WIDTH)
  np.testing.assert_array_equal(dense(packed), _unmasked(params))


def test_the_released_models_padding_and_tokens_have_their_sizes():
  video = InputArray(np.zeros((1, 16 * 56 * 56, 48), np.float32), fourier_grid((16, 56, 56), 32))
  inputs = {
    'video': video,
    'audio': audio_inputs(np.zeros((1, 30_720), np.float32), 16, 192, (30_720,)),
    'label': InputArray(np.zeros((1, 1, 700), np.float32)),
  }
  masked = {name: np.zeros(each.features.shape[:2], bool) for name, each in inputs.items()}

  def run(key):
    function = hk.transform(lambda: pack(inputs, 4, masked))
    params = function.init(key)
    return params, dense(function.apply(params, None))

  params, features = jax.eval_shape(run, jax.random.key(0))
  assert features.shape == (1, 52_097, 704)
  assert {name: table['table'].shape for name, table in params.items()} == {
    'video_padding': (1, 461), 'audio_padding': (1, 303), 'label_padding': (1, 4),
    'video_mask_token': (1, 704), 'audio_mask_token': (1, 704), 'label_mask_token': (1, 704)}


def test_elements_are_valid_where_their_modality_does_not_say_otherwise():
  valid = np.array([[1, 0, 0, 1], [1, 1, 1, 0]], np.float32)
  _, packed = _packed({**INPUTS, 'audio': INPUTS['audio']._replace(valid=valid)})
  assert valid_elements(packed).dtype == bool
  np.testing.assert_array_equal(valid_elements(packed), np.concatenate([valid != 0, np.ones((2, 7), bool)], axis=1))


def test_inputs_and_masks_that_do_not_fit_are_the_users_mistake():
  with pytest.raises(UserError, match=r"masks for \['image'\], but the modalities are \['audio', 'label', 'video'\]"):
    _packed(INPUTS, {'image': np.zeros((2, 6), bool)})
  with pytest.raises(AssertionError, match='shape'):
    _packed(INPUTS, {'label': np.zeros(2, bool)})
  with pytest.raises(AssertionError, match='shape'):
    _packed({**INPUTS, 'audio': InputArray(INPUTS['audio'].features[:1])})
  with pytest.raises(AssertionError, match='shape'):
    _packed({**INPUTS, 'label': InputArray(INPUTS['label'].features[:, 0])})
  with pytest.raises(AssertionError, match='shape'):
    _packed({**INPUTS, 'audio': INPUTS['audio']._replace(valid=np.ones((2, 5)))})


def test_outputs_are_split_in_the_order_of_packing():
  sizes = {name: each.features.shape[1] for name, each in INPUTS.items()}
  _, packed = _packed(INPUTS)
  parts = split(dense(packed), sizes)
  assert list(parts) == ['audio', 'label', 'video']
  for name, part in parts.items():
    elements = dense(INPUTS[name])
    np.testing.assert_array_equal(part[..., :elements.shape[-1]], elements)


def test_sizes_that_do_not_add_up_are_the_users_mistake():
  with pytest.raises(AssertionError, match='shape'):
    split(np.zeros((2, 5, 3)), {'b': 3, 'a': 1})
  with pytest.raises(AssertionError, match='shape'):
    split(np.zeros((4, 3)), {'b': 3, 'a': 1})


def _keys(num_examples):
  return jax.vmap(lambda example: jax.random.fold_in(jax.random.key(3), example))(jnp.arange(num_examples))


def test_a_mask_hides_about_as_many_as_asked_for_and_examples_differ():
  mask = np.asarray(random_mask(_keys(50), 0.3, 200))
  assert mask.shape == (50, 200) and mask.dtype == bool
  assert abs(mask.mean() - 0.3) < 5 * (0.3 * 0.7 / mask.size) ** 0.5
  assert len(np.unique(mask, axis=0)) == 50
  assert random_mask(_keys(50), 1.0, 2).all() and not random_mask(_keys(50), 0.0, 2).any()


def test_what_happens_to_an_example_depends_on_its_own_key_alone():
  keys, features = _keys(40), np.ones((40, 2, 3), np.float32)
  some = np.array([31, 2, 17])
  np.testing.assert_array_equal(random_mask(keys[some], 0.5, 6), random_mask(keys, 0.5, 6)[some])
  dropped = drop_modality(keys, 0.5, features)
  np.testing.assert_array_equal(drop_modality(keys[some], 0.5, features[some]), dropped[some])


def test_a_dropped_modality_is_zero_throughout_and_a_kept_one_is_untouched():
  features = GENERATOR.normal(size=(200, 2, 3, 4)).astype(np.float32)
  dropped = np.asarray(jax.jit(lambda keys, x: drop_modality(keys, 0.3, x))(_keys(200), features))
  gone = (dropped == 0).all(axis=(1, 2, 3))
  assert abs(gone.mean() - 0.3) < 5 * (0.3 * 0.7 / 200) ** 0.5
  np.testing.assert_array_equal(dropped, features * ~gone[:, None, None, None])


def test_probabilities_and_keys_that_make_no_sense_are_the_users_mistake():
  for prob in (-0.1, 1.5):
    with pytest.raises(UserError, match=f'from 0 to 1, not {prob}'):
      random_mask(_keys(2), prob, 3)
  with pytest.raises(AssertionError, match='shape'):
    drop_modality(_keys(2), 0.3, np.ones((3, 4)))
