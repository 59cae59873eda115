"""`load`: from every kind of place, and what a person is told where there is no model."""

import pathlib
import pickle
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

import perceiver_jax
from perceiver_jax.commands.convert import convert
from perceiver_jax.commands.train import train
from perceiver_jax.data.labels import class_names
from perceiver_jax.inference.predictor import load
from perceiver_jax.interop import deepmind, zoo
from perceiver_jax.runs import weights
from perceiver_jax.runs.checkpoint import load_weights
from perceiver_jax.tasks import image_classification, masked_lm, optical_flow, video_autoencoding
from perceiver_jax.types import UserError
from tests.tasks.tiny import num_parameters, random_trees, read_config

pytestmark = pytest.mark.usefixtures('quick_compilation')

EXPERIMENTS = {
  'picture': 'imagenet:conv,debug', 'text': 'masked_lm:debug', 'flow': 'optical_flow:debug',
  'clip': 'video_autoencoding:debug',
}
RNG = np.random.default_rng(0)
BATCHES = {
  'picture': {'image': RNG.integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)},
  'text': {'tokens': RNG.integers(6, 262, (2, 32)).astype(np.int32)},
  'flow': {'frames': RNG.integers(0, 256, (2, 2, 12, 16, 3), dtype=np.uint8)},
  'clip': {
    'video': RNG.integers(0, 256, (2, 2, 8, 8, 3), dtype=np.uint8),
    'audio': RNG.uniform(-1, 1, (2, 64)).astype(np.float32),
    'label': np.zeros((2, 5), np.float32),
  },
}


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
  """The directory that holds a model of each name in EXPERIMENTS, in our own format."""
  root = tmp_path_factory.mktemp('models')
  for name, experiment in EXPERIMENTS.items():
    config = read_config(experiment)
    weights.save(root / name, config, *random_trees(config), source='a test', licence='Nobody in particular, CC0')
  return root


def _assert_same_tree(found, expected):
  assert jax.tree.structure(found) == jax.tree.structure(expected)
  jax.tree.map(np.testing.assert_array_equal, found, expected)


# Converted weights.


@pytest.mark.parametrize('name', EXPERIMENTS)
def test_a_directory_of_weights_is_read_as_it_was_written(saved, name, capsys):
  predictor = load(saved / name)
  config = read_config(EXPERIMENTS[name])
  assert predictor.config.to_dict() == config.to_dict()
  params, state = random_trees(config)
  _assert_same_tree(predictor.params, params)
  _assert_same_tree(predictor.state, state)
  assert predictor.credit == 'Nobody in particular, CC0'
  said = capsys.readouterr()
  assert said.err == f'{saved / name}: weights by Nobody in particular, CC0\n' and not said.out


def test_nothing_is_said_of_weights_without_a_licence(tmp_path, capsys):
  config = read_config('masked_lm:debug')
  weights.save(tmp_path / 'mine', config, *random_trees(config))
  assert load(tmp_path / 'mine').credit == ''
  assert capsys.readouterr().err == ''


@pytest.mark.parametrize('name, shape', [('picture', (2, 5)), ('text', (2, 32, 262)), ('flow', (2, 12, 16, 2))])
def test_the_logits_of_a_batch_are_the_only_output(saved, name, shape):
  predictor = load(saved / name)
  logits = predictor.logits(**BATCHES[name])
  assert isinstance(logits, np.ndarray) and logits.shape == shape
  (output,) = predictor.run(BATCHES[name]).values()
  np.testing.assert_array_equal(output, logits)


def test_the_logits_of_a_clip_are_all_three_outputs(saved):
  predictor = load(saved / 'clip')
  logits = predictor.logits(**BATCHES['clip'])
  assert {name: x.shape for name, x in logits.items()} == {'video': (2, 2, 8, 8, 3), 'audio': (2, 64), 'label': (2, 5)}
  some = predictor.logits(**BATCHES['clip'], video_points=np.array([[0, 77]] * 2), audio_points=np.array([[1]] * 2))
  np.testing.assert_allclose(some['video'], logits['video'].reshape(2, -1, 3)[:, [0, 77]], rtol=1e-4, atol=1e-5)


def test_padding_may_be_marked(saved):
  predictor = load(saved / 'text')
  tokens, valid = BATCHES['text']['tokens'].copy(), np.ones((2, 32), np.uint8)
  valid[:, 9:] = 0
  logits = predictor.logits(tokens=tokens, valid=valid)
  tokens[:, 9:] = 0
  np.testing.assert_allclose(predictor.logits(tokens=tokens, valid=valid), logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('name', EXPERIMENTS)
def test_attention_and_latents_come_if_they_are_asked_for(saved, name):
  predictor = load(saved / name)
  plain, outputs = predictor.run(BATCHES[name]), predictor.run(BATCHES[name], capture=True)
  captured = outputs.pop('captured')
  assert plain.keys() == outputs.keys()
  assert {'cross_attends', 'self_attends', 'latents'} <= captured.keys()
  assert captured['latents'].shape == (2, 4, 16)
  assert all(isinstance(x, np.ndarray) for x in [*plain.values(), *captured.values()])


@pytest.mark.parametrize('name, inputs, message', [
  ('text', {'token': 1}, r"this model has no input 'token'; it takes tokens"),
  ('text', {}, r'tokens is missing: the batch has nothing'),
  ('text', {'tokens': [1, 2]}, r'tokens is \[batch, tokens\], not \[2\]'),
  ('text', {'tokens': [[1, 262]]}, r'tokens are from 1 to 262; this model knows 0 to 261'),
  ('text', {'tokens': [[-100, 6]]}, r'tokens are from -100 to 6'),
  ('text', {'tokens': [[6.0, 7.0]]}, r'tokens are integers, not float'),
  ('picture', {'pixel_values': 1}, r"no input 'pixel_values'; it takes image"),
  ('picture', {'image': np.zeros((1, 3, 16, 16))}, r'image is \[batch, height, width, 3\], not \[1, 3, 16, 16\]'),
  ('flow', {'frames': np.zeros((2, 12, 16, 3))}, r'frames is \[batch, 2, height, width, 3\], not \[2, 12, 16, 3\]'),
  ('clip', {'video': BATCHES['clip']['video']}, r'audio is missing: the batch has video'),
])
def test_inputs_that_the_model_does_not_take_are_the_users_mistake(saved, name, inputs, message):
  with pytest.raises(UserError, match=message):
    load(saved / name).logits(**inputs)


@pytest.mark.parametrize('batch, message', [
  (None, 'a batch is a dict of arrays by name, tokens, not NoneType'),
  ([1], 'not list'),
  ({'tokens': [[7]], 'token': [[7]]}, "no input 'token'; it takes tokens"),
  ({3: [[7]], 'tokens': [[7]]}, "no input '3'"),
  ({'tokens': np.zeros((0, 32), int)}, r'tokens is \[0, 32\]: the batch is empty'),
  ({'tokens': []}, r'tokens is \[0\]: the batch is empty'),
  ({'tokens': [[7, 8], [9]]}, 'tokens cannot be made an array: .*inhomogeneous'),
  ({'tokens': [['a']]}, 'tokens is of <U1, but a model takes real numbers'),
  ({'tokens': None}, 'tokens is of object'),
  ({'tokens': [[262]]}, 'tokens are from 262 to 262; this model knows 0 to 261'),
])
def test_a_batch_that_is_none_is_the_users_mistake(saved, batch, message):
  with pytest.raises(UserError, match=message):
    load(saved / 'text').run(batch)


def test_an_empty_batch_has_no_logits_and_points_are_per_example(saved):
  with pytest.raises(UserError, match=r'frames is \[0, 2, 12, 16, 3\]: the batch is empty'):
    load(saved / 'flow').logits(frames=BATCHES['flow']['frames'][:0])
  some = load(saved / 'clip').run({**BATCHES['clip'], 'video_points': np.array([[3], [4]]), 'mask': np.ones(2)})
  assert some['video'].shape == (2, 1, 3)


def test_a_batch_may_hold_whatever_is_made_an_array(saved):
  torch = pytest.importorskip('torch')
  predictor = load(saved / 'text')
  tokens = BATCHES['text']['tokens']
  expected = predictor.run({'tokens': tokens})['logits']
  for each in (tokens.tolist(), torch.from_numpy(tokens), jax.numpy.asarray(tokens)):
    np.testing.assert_array_equal(predictor.run({'tokens': each})['logits'], expected)
  learned = torch.zeros(1, 16, 16, 3, requires_grad=True)
  assert np.isfinite(load(saved / 'picture').run({'image': learned})['logits']).all()


def test_logits_without_a_name_are_told_the_names(saved):
  with pytest.raises(UserError, match='logits takes its inputs by name: tokens=, valid=; of a model of Hugging Face'):
    load(saved / 'text').logits(BATCHES['text']['tokens'])


def test_a_predictor_is_shown_in_a_line(saved):
  predictor = load(saved / 'text')
  assert predictor.num_parameters == num_parameters(read_config(EXPERIMENTS['text']))
  assert repr(predictor) == (
    f'Predictor(masked_lm, {predictor.num_parameters:,} parameters, weights by Nobody in particular, CC0)')
  assert repr(predictor._replace(credit='')).endswith(' parameters)')


@pytest.mark.parametrize('name, ask', [
  ('picture', lambda predict: predict(np.zeros((9, 9, 3), np.uint8))),
  ('text', lambda predict: predict('[words]')),
  ('flow', lambda predict: predict(*np.zeros((2, 9, 20, 3), np.uint8))),
  ('clip', lambda predict: predict(BATCHES['clip']['video'][0], np.zeros(64))),
])
def test_answers_that_are_not_finite_are_not_given(tmp_path, name, ask):
  config = read_config(EXPERIMENTS[name])
  params, state = random_trees(config)
  weights.save(tmp_path / 'model', config, jax.tree.map(lambda x: np.full_like(x, 3e38), params), state)
  with pytest.raises(UserError, match=r'answered with numbers that are not finite \(.*its weights are damaged'):
    ask(load(tmp_path / 'model').predict)


@pytest.mark.parametrize('name, task, ask', [
  ('picture', image_classification, lambda predict, i: predict(RNG.integers(0, 256, (20 + i, 30, 3), dtype=np.uint8))),
  ('text', masked_lm, lambda predict, i: predict('x' * i + '[words]')),
  ('flow', optical_flow, lambda predict, i: predict(*RNG.integers(0, 256, (2, 9 + 2 * i, 20, 3), dtype=np.uint8))),
  ('clip', video_autoencoding, lambda predict, i: predict(BATCHES['clip']['video'][0] // (i + 1), np.zeros(64))),
])
def test_whatever_a_person_brings_the_model_is_compiled_once(saved, monkeypatch, name, task, ask):
  traces, forward = [], task._forward
  monkeypatch.setattr(task, '_forward', lambda *args, **kwargs: traces.append(None) or forward(*args, **kwargs))
  predictor = load(saved / name)
  traces.clear()                           # of finding out the shapes of parameters
  for i in range(4):
    ask(predictor.predict, i)
  assert len(traces) == 1


def test_the_package_offers_it():
  assert perceiver_jax.load is load


# Names of classes.


def test_released_models_have_a_name_for_every_class():
  released = ('imagenet:debug', 1000, 'tench'), ('video_autoencoding:latents784', 700, 'abseiling')
  for experiment, count, first in released:
    config = read_config(experiment)
    config.data.num_classes = count
    names = class_names(config.data)
    assert len(names) == count and first in names[0]
    assert all(name and name == name.strip() for name in names)


def test_names_may_come_from_a_file_of_ones_own(tmp_path):
  config = read_config('imagenet:debug', **{'data.class_names': str(tmp_path / 'names.txt'), 'data.num_classes': 5})
  (tmp_path / 'names.txt').write_text('cat\ndog\nemu\nfox\nÿ\n', encoding='utf-8')
  params, state = random_trees(config)
  weights.save(tmp_path / 'model', config, params, state, class_names=class_names(config.data))
  predict = load(tmp_path / 'model').predict
  assert set(predict(BATCHES['picture']['image'][0]).names) == {'cat', 'dog', 'emu', 'fox', 'ÿ'}
  assert set(predict(BATCHES['picture']['image'][0], class_names=tuple('abcde')).names) == set('abcde')


def test_names_of_the_package_of_another_number_of_classes_are_none_and_a_missing_file_is_named(tmp_path):
  assert class_names(read_config('imagenet:debug').data) is None  # 5 classes, 1,000 names
  with pytest.raises(UserError, match=r"data.class_names is '.*missing.txt', which cannot be read"):
    class_names(read_config('imagenet:debug', **{'data.class_names': str(tmp_path / 'missing.txt')}).data)


# A run.


@pytest.mark.slow
def test_a_run_and_its_converted_weights_know_the_names_of_the_folders(tmp_path, capsys):
  names = ('Kätzchen', 'big dog')
  for name in names:
    (tmp_path / 'photos' / name).mkdir(parents=True)
    for index in range(5):
      Image.fromarray(BATCHES['picture']['image'][0]).save(tmp_path / 'photos' / name / f'{index}.png')
  config = pathlib.Path(__file__).resolve().parents[2] / 'configs' / 'images.py'
  assert train([
    'train', f'--config={config}:debug', f'--workdir={tmp_path}/run', f'--config.data.path={tmp_path}/photos',
    '--config.data.num_classes=2', '--config.num_steps=2', '--config.optimizer.warmup_steps=0']) == 0
  shutil.rmtree(tmp_path / 'photos')        # the run needs it no more
  assert convert(['convert', str(tmp_path / 'run'), str(tmp_path / 'model')]) == 0
  capsys.readouterr()
  for model in ('run', 'model'):
    assert set(load(tmp_path / model).predict(BATCHES['picture']['image'][0]).names) == set(names)
  (tmp_path / 'run' / 'class_names.json').write_text('{"0": "cat"}')
  with pytest.raises(UserError, match=r'class_names\.json is damaged: it is no list of names'):
    load(tmp_path / 'run')


@pytest.mark.slow
def test_a_run_is_loaded_and_answers_and_a_config_that_was_changed_since_is_named(tmp_path, capsys):
  config = pathlib.Path(__file__).resolve().parents[2] / 'configs' / 'digits.py'
  arguments = [
    f'--config={config}:debug', f'--workdir={tmp_path}/run', '--config.num_steps=2',
    '--config.optimizer.warmup_steps=0']
  assert train(['train', *arguments]) == 0
  capsys.readouterr()
  predictor = load(tmp_path / 'run')
  assert capsys.readouterr().err == '' and predictor.credit == ''
  _, params, state = load_weights(tmp_path / 'run')
  _assert_same_tree((predictor.params, predictor.state), (params, state))
  assert predictor.config.num_steps == 2
  found = predictor.predict(RNG.integers(0, 256, (8, 8), dtype=np.uint8), top_k=3)
  assert len(found.names) == 3 and found.image.shape == (8, 8, 1)
  written = tmp_path / 'run' / 'config.json'
  written.write_text(written.read_text().replace('"num_latents": 4', '"num_latents": 5'))
  with pytest.raises(UserError, match=r'run does not fit this model: .*latents is \[4, 16\], expected \[5, 16\]'):
    load(tmp_path / 'run')


# Released models.


def _write_as_released(path, config, trees):
  """The pickle of the authors, with their names."""
  foreign = {'params': {}, 'state': {}}
  for kind, tree in zip(foreign, trees, strict=True):
    for module, leaves in tree.items():
      for leaf, value in leaves.items():
        path_of, name = deepmind.foreign_name(config.task, f'{module}:{leaf}').rsplit(':', 1)
        foreign[kind].setdefault(path_of, {})[name] = value
  path.write_bytes(pickle.dumps(foreign, protocol=4))
  return path


@pytest.mark.slow
def test_a_released_name_reads_the_authors_file_at_full_size(tmp_path, capsys):
  config = zoo.config('video_autoencoding')
  params, state = random_trees(config)
  predictor = load('video_autoencoding', _write_as_released(tmp_path / 'video.pystate', config, (params, state)))
  _assert_same_tree(predictor.params, params)
  assert 'Jaegle' in predictor.credit and 'CC BY 4.0' in predictor.credit
  assert capsys.readouterr().err == f'video_autoencoding: weights by {predictor.credit}\n'
  assert len(predictor.predict.keywords['class_names']) == 700
  logits = predictor.logits(
    video=np.zeros((1, 16, 224, 224, 3), np.uint8), audio=np.zeros((1, 30_720), np.float32),
    label=np.zeros((1, 700), np.float32), video_points=np.arange(3)[None], audio_points=np.arange(2)[None])
  assert {name: x.shape for name, x in logits.items()} == {'video': (1, 3, 3), 'audio': (1, 32), 'label': (1, 700)}


def test_a_file_of_another_model_is_named_with_what_does_not_fit(tmp_path):
  config = read_config('masked_lm:debug')
  path = _write_as_released(tmp_path / 'tiny.pickle', config, random_trees(config))
  with pytest.raises(UserError, match=r'tiny\.pickle does not fit this model: .*is \[\d+.*\], expected \[.*more'):
    load('masked_lm', path)
  with pytest.raises(UserError, match=r'missing\.pickle'):
    load('masked_lm', tmp_path / 'missing.pickle')


def test_without_a_connection_a_person_is_told_what_to_fetch_and_where_to_put_it(tmp_path, monkeypatch):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  for name in ('https_proxy', 'HTTPS_PROXY'):
    monkeypatch.setenv(name, 'http://127.0.0.1:9')  # where nobody answers
  with pytest.raises(UserError) as error:
    load('optical_flow')
  said = str(error.value)
  assert said.startswith('cannot fetch https://storage.googleapis.com/perceiver_io/optical_flow_checkpoint.pystate: ')
  assert f'{tmp_path}/perceiver_jax/optical_flow_checkpoint.pystate' in said and 'path=' in said
  assert not list(tmp_path.rglob('*.part'))


def test_a_path_is_a_directory_though_it_is_called_like_a_released_model(saved, tmp_path, monkeypatch):
  (tmp_path / 'masked_lm').symlink_to(saved / 'text')
  monkeypatch.chdir(tmp_path)
  for name in (pathlib.Path('masked_lm'), './masked_lm'):
    assert load(name).config.data.max_length == 32


# No model.


def test_what_is_neither_a_name_nor_a_directory_is_told_with_the_names(tmp_path):
  for name in ('imagenet', tmp_path / 'missing'):
    with pytest.raises(UserError, match=r'neither a released model \(imagenet_fourier, .*\) nor a directory'):
      load(name)
  (tmp_path / 'file').touch()
  with pytest.raises(UserError, match='nor a directory'):
    load(tmp_path / 'file')


@pytest.mark.parametrize('name, path, message', [
  (None, None, 'the name of a model is a str or a Path, and not empty; it is None'),
  (3, None, 'it is 3'),
  (b'x', None, "it is b'x'"),
  ('', None, "it is ''"),
  ('masked_lm', 3, 'path is a str or a Path, and not empty; it is 3'),
  ('masked_lm', '', "path is .* it is ''"),
  ('x' * 5000, None, 'the name of a model, .* is no path: File name too long'),
  ('masked_lm', 'x' * 5000, 'path, .* is no path: File name too long'),
  ('a\0b', None, 'is no path: embedded null'),
])
def test_what_cannot_be_a_name_or_a_path_is_the_users_mistake(name, path, message):
  with pytest.raises(UserError, match=message):
    load(name, path)


@pytest.mark.parametrize('content', [None, '{}', '[1]', 'damaged', '{"architecture": "x"}'])
def test_a_directory_without_a_model_is_told_with_the_three_kinds_that_there_are(tmp_path, content):
  if content is not None:
    (tmp_path / 'config.json').write_text(content)
  with pytest.raises(UserError) as error:
    load(tmp_path)
  for kind in ('Hugging Face', 'a run of ours', 'converted weights'):
    assert kind in str(error.value)


def test_a_run_without_a_checkpoint_is_named(tmp_path, saved):
  (tmp_path / 'checkpoints').mkdir()
  (tmp_path / 'config.json').write_text((saved / 'text' / 'config.json').read_text())
  with pytest.raises(UserError, match='no checkpoint in'):
    load(tmp_path)


def test_a_path_means_nothing_for_a_directory(saved, tmp_path):
  with pytest.raises(UserError, match='is no released model, so `path` means nothing; those are: imagenet_fourier'):
    load(saved / 'text', tmp_path / 'x.pickle')


def test_weights_that_do_not_fit_their_config_are_named(saved, tmp_path):
  config = read_config('masked_lm:debug')
  params, state = random_trees(config)
  config.model.num_latents = 5
  weights.save(tmp_path / 'model', config, params, state)
  with pytest.raises(UserError, match=r'encoder/latents is \[4, 16\], expected \[5, 16\]'):
    load(tmp_path / 'model')
