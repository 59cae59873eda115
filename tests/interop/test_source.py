"""Directories that somebody else wrote: whatever their configs say, one line answers, and no file of ours is read."""

from __future__ import annotations

import json
import pathlib

import jax
import numpy as np
import pytest

from perceiver_jax.config import overrides
from perceiver_jax.inference.model import template
from perceiver_jax.inference.source import open_source
from perceiver_jax.interop import huggingface, huggingface_config
from perceiver_jax.runs import weights
from perceiver_jax.types import UserError

ROOT = pathlib.Path(__file__).resolve().parents[2]


def _saved(directory, class_names=(), **changes):
  config = overrides.load(f'{ROOT}/configs/imagenet.py:conv,debug')
  with config.unlocked():
    config.update_from_flattened_dict(changes)
  trees = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), template(config))
  weights.save(directory, config, *trees, class_names=class_names)


def _change(directory, **changes):
  path = directory / 'config.json'
  values = json.loads(path.read_text())
  for key, value in changes.items():
    *sections, leaf = key.split('__')
    inner = values
    for section in sections:
      inner = inner[section]
    inner[leaf] = value
  path.write_text(json.dumps(values))


def _refusal(*arguments) -> str:
  with pytest.raises(UserError) as error:
    open_source(*arguments)
  assert '\n' not in str(error.value)
  return str(error.value)


@pytest.mark.parametrize(('changes', 'message'), [
  ({'task': 'os'}, "there is no task 'os'. Did you mean"),
  ({'task': '__init__'}, "there is no task '__init__'"),
  ({'task': ['a']}, 'there is no task'),
  ({'task': None}, 'there is no task None'),
  ({'data': 3}, 'data'),
  ({'data': {}}, 'describes no model that can be built'),
  ({'data__image_size': 10**9}, 'describes no model that can be built'),
  ({'model': {}}, 'describes no model that can be built'),
  ({'model__latent_channels': 'many'}, 'describes no model that can be built'),
  ({'model__num_latents': 0}, 'num_latents is 0; it must be at least 1'),
  ({'model__position__max_resolution': 3}, 'describes no model that can be built'),
  ({'model__num_self_attends_per_block': 10**9}, 'layers; at most 10000'),
  ({'model__num_blocks': 10**4, 'model__num_self_attends_per_block': 10**4}, 'layers; at most 10000'),
])
def test_an_absurd_config_is_answered_in_a_line_that_names_the_directory(tmp_path, changes, message):
  _saved(tmp_path / 'model')
  _change(tmp_path / 'model', **changes)
  said = _refusal(tmp_path / 'model')
  assert message in said and str(tmp_path / 'model') in said


@pytest.mark.parametrize('depth', [400, 600, 900, 100_000])
@pytest.mark.parametrize('kind', ['architectures', 'task'])
def test_a_config_that_nests_without_end_is_damaged(tmp_path, depth, kind):
  _saved(tmp_path / 'model')
  nested = f'{{"{kind}": ["PerceiverForMaskedLM"], "a": ' + '[' * depth + ']' * depth + '}'
  (tmp_path / 'model' / 'config.json').write_text(nested)
  said = _refusal(tmp_path / 'model')
  assert str(tmp_path / 'model') in said


def test_a_directory_of_hugging_face_is_named_whatever_is_wrong_with_it(tmp_path):
  config = huggingface_config.read_config({
    'architectures': ['PerceiverForSequenceClassification'], 'num_latents': 3, 'd_latents': 16, 'd_model': 8,
    'num_self_attends_per_block': 1})
  trees = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), template(config))
  huggingface.save(tmp_path / 'theirs', config, *trees)
  whole = (tmp_path / 'theirs' / 'config.json').read_text()
  for changes, message in (
      ({'architectures': ['Bert']}, 'architectures is'), ({'num_latents': -1}, 'num_latents is -1'),
      ({'num_latents': 7}, 'do not fit their config'), ({'num_blocks': 10**9}, 'layers; at most 10000'),
      ({'num_self_attention_heads': 7}, '7 heads do not divide')):
    (tmp_path / 'theirs' / 'config.json').write_text(whole)
    _change(tmp_path / 'theirs', **changes)
    said = _refusal(tmp_path / 'theirs')
    assert message in said and said.count(str(tmp_path / 'theirs')) == 1


def test_a_file_is_not_read_because_somebody_elses_config_names_it(tmp_path):
  (tmp_path / 'secret.txt').write_text('a\nb\nc\nd\ne\n')
  for number, name in enumerate((str(tmp_path / 'secret.txt'), str(tmp_path / 'secret'), '../labels/imagenet', 3)):
    _saved(tmp_path / f'model_{number}', **{'data.num_classes': 5})
    _change(tmp_path / f'model_{number}', data__class_names=name)
    assert open_source(tmp_path / f'model_{number}').class_names is None


def test_names_of_classes_are_a_packaged_list_or_those_that_came_along(tmp_path):
  _saved(tmp_path / 'packaged', **{'data.num_classes': 1000, 'data.class_names': 'imagenet'})
  assert len(open_source(tmp_path / 'packaged').class_names) == 1000
  _saved(tmp_path / 'own', class_names=tuple('abcde'), **{'data.num_classes': 5, 'data.class_names': 'my/names.txt'})
  assert open_source(tmp_path / 'own').class_names == tuple('abcde')


def test_a_file_in_place_of_a_directory_and_the_other_way_round_are_told_what_to_say(tmp_path):
  (tmp_path / 'file.pystate').write_bytes(b'PK\3\4 and more')
  said = _refusal(tmp_path / 'file.pystate')
  for part in ('is a file', f"load(NAME, path='{tmp_path}/file.pystate')",
               f'--model=NAME --path={tmp_path}/file.pystate', 'imagenet_fourier'):
    assert part in said
  said = _refusal('imagenet_conv', tmp_path)
  assert f'{tmp_path} is a directory' in said and f'--model={tmp_path}' in said
  assert 'given by its directory' in _refusal('imagenet_conv', tmp_path / 'file.pystate')
