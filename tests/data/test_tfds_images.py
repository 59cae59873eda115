"""Sets in the layout of TensorFlow Datasets, written by the test: what is read, in which order, and mistakes in it."""

from __future__ import annotations

import io
import itertools
import json
import logging
import os
import pathlib
import shutil
import subprocess
import sys

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds
from ml_collections import ConfigDict
from PIL import Image

from benchmarks.photos import example, write_records
from perceiver_jax.commands.train import train
from perceiver_jax.data import augmentation, pipeline, tfds_images
from perceiver_jax.data.order import generator, order
from perceiver_jax.types import Field, UserError

SPEC = {'image': Field((16, 16, 3), 'uint8'), 'label': Field((), 'int32')}
CLASSES = ('n01440764', 'n01443537')
GRAY, CMYK, BROKEN = 3, 4, 5                # places in imagenet2012's validation split
KINDS = {
  'image': tfds.features.Image(), 'label': tfds.features.ClassLabel(names=CLASSES), 'file_name': tfds.features.Text()}


# Writing


def _pixels(seed: int) -> np.ndarray:
  """[H, W, 3], a smooth picture that JPEG changes little, of a size and a blue of its own."""
  height, width = 70 + seed % 7, 80 + seed % 5
  red = np.linspace(0, 200, width)[None, :] + np.zeros((height, 1))
  green = np.linspace(0, 200, height)[:, None] + np.zeros((1, width))
  return np.stack([red, green, np.full((height, width), 3.0 * seed)], -1).astype(np.uint8)


def _jpeg(seed: int, mode: str = 'RGB') -> bytes:
  file = io.BytesIO()
  Image.fromarray(_pixels(seed)).convert(mode).save(file, 'JPEG', quality=95)
  return file.getvalue()


def _write(directory: pathlib.Path, splits: dict[str, list[list[bytes]]], kinds=KINDS, **changes) -> pathlib.Path:
  """A version's directory, its splits given as lists of records by shard; returns the set's, DIR/<name>."""
  directory.mkdir(parents=True)
  name = directory.parent.name
  for split, shards in splits.items():
    for i, records in enumerate(shards):
      write_records(directory / f'{name}-{split}.array_record-{i:05}-of-{len(shards):05}', records)
  tfds.features.FeaturesDict(kinds).save_config(directory)
  sizes = [{'name': split, 'shardLengths': [str(len(records)) for records in shards],
            'filepathTemplate': '{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}'} for split, shards in splits.items()]
  info = {'name': name, 'version': directory.name, 'fileFormat': 'array_record', 'splits': sizes, **changes}
  (directory / 'dataset_info.json').write_text(json.dumps(info))
  return directory.parent


def _imagenet(root: pathlib.Path, **changes) -> pathlib.Path:
  """30 pictures for training in 3 uneven shards, 7 for validation, among them a gray, a CMYK and a broken one."""
  train = [example(file_name=b'train_%d.JPEG' % i, image=_jpeg(i), label=i % 2) for i in range(30)]
  modes, held_out = {GRAY: 'L', CMYK: 'CMYK'}, []
  for i in range(7):
    jpeg = _jpeg(40 + i, modes.get(i, 'RGB'))
    held_out.append(example(file_name=b'val_%d.JPEG' % i, image=jpeg[:40] if i == BROKEN else jpeg, label=i % 2))
  splits = {'train': [train[:13], train[13:14], train[14:]], 'validation': [held_out[:2], held_out[2:]]}
  return _write(root / 'imagenet2012' / '5.1.0', splits, **changes)


def _small(root: pathlib.Path, splits=None, **changes) -> pathlib.Path:
  """A set without names of files, ten records a split."""
  records = [example(id=b'train_0', image=_jpeg(i), label=i % 2) for i in range(10)]
  splits = {split: [records] for split in splits or ('train', 'test')}
  return _write(root / 'cifar10' / '3.0.2', splits, **changes)


@pytest.fixture(scope='module')
def imagenet(tmp_path_factory):
  return _imagenet(tmp_path_factory.mktemp('data'))


def _config(path: pathlib.Path | None, **changes) -> ConfigDict:
  path = None if path is None else str(path)
  return ConfigDict({'path': path, 'image_size': 16, 'num_channels': 3, 'num_classes': 2, **changes})


def _sources(path: pathlib.Path) -> dict[str, tfds_images.TfdsSource]:
  return {
    split: tfds_images.load(_config(path), split, is_training=False).source
    for split in ('train', 'validation', 'test')}


def _batches(path, split, *, is_training=False, **settings):
  dataset = tfds_images.load(_config(path), split, is_training=is_training)
  return pipeline.batches(dataset, split, is_training=is_training, **settings)


def _names(source: tfds_images.TfdsSource) -> list[str]:
  return [source.name(index) for index in range(len(source))]


# Reading


def test_imagenet_is_split_into_three_that_do_not_overlap(imagenet):
  sources = _sources(imagenet)
  assert _names(sources['validation']) == [f'train_{i}.JPEG' for i in range(3)]
  assert _names(sources['train']) == [f'train_{i}.JPEG' for i in range(3, 30)]
  assert _names(sources['test']) == [f'val_{i}.JPEG' for i in range(7)]
  assert tfds_images.load(_config(imagenet), 'test', is_training=False).class_names == list(CLASSES)


def test_of_a_large_set_ten_thousand_are_held_out(tmp_path):
  directory = _write(tmp_path / 'imagenet2012' / '5.1.0', {'train': [[], []], 'validation': [[]]}) / '5.1.0'
  info = json.loads((directory / 'dataset_info.json').read_text())
  for split, lengths in zip(info['splits'], (['640000', '641167'], ['50000']), strict=True):
    split['shardLengths'] = lengths  # no file is read to count
  (directory / 'dataset_info.json').write_text(json.dumps(info))
  lengths = {split: (source.first, len(source)) for split, source in _sources(directory).items()}
  assert lengths == {'train': (10_000, 1_271_167), 'validation': (0, 10_000), 'test': (0, 50_000)}


def test_a_record_comes_as_large_as_it_is_with_its_label(imagenet):
  source = _sources(imagenet)['train']
  for index in range(len(source)):
    example = source[index]
    pixels = cv2.imdecode(np.frombuffer(_jpeg(3 + index), np.uint8), cv2.IMREAD_COLOR_RGB)
    np.testing.assert_array_equal(example['image'], pixels)
    assert int(example['label']) == (3 + index) % 2
    assert (example['label'].shape, example['label'].dtype) == ((), np.int32)


def test_gray_and_cmyk_pictures_become_rgb(imagenet):
  source = _sources(imagenet)['test']
  gray, cmyk = source[GRAY]['image'].astype(int), source[CMYK]['image'].astype(int)
  brightness = _pixels(40 + GRAY) @ np.array([0.299, 0.587, 0.114])
  assert gray.shape == _pixels(40 + GRAY).shape and np.abs(gray - brightness[..., None]).mean() < 3
  assert cmyk.shape == _pixels(40 + CMYK).shape and np.abs(cmyk - _pixels(40 + CMYK)).mean() < 6


def test_a_gray_model_gets_gray_pictures(imagenet):
  example = tfds_images.load(_config(imagenet, num_channels=1), 'test', is_training=False).source[0]
  assert example['image'].shape == (*_pixels(40).shape[:2], 1)
  assert tfds_images.view(example['image'], ConfigDict({'image_size': 16})).shape == (16, 16, 1)


def test_a_rotation_noted_by_a_camera_is_not_applied(tmp_path):
  exif, file = Image.Exif(), io.BytesIO()
  exif[0x112] = 6  # a quarter turn
  Image.fromarray(_pixels(0)).save(file, 'JPEG', exif=exif)
  records = [example(image=file.getvalue(), label=0)] * 10
  path = _write(tmp_path / 'pets' / '1.0.0', {'train': [records], 'test': [records]})
  source = tfds_images.load(_config(path), 'test', is_training=False).source
  assert source[0]['image'].shape == _pixels(0).shape


@pytest.mark.parametrize('splits, places', [
  (('train', 'test'), {'train': ('train', 1, 9), 'validation': ('train', 0, 1), 'test': ('test', 0, 10)}),
  (('train', 'validation'), {'train': ('train', 1, 9), 'validation': ('train', 0, 1), 'test': ('validation', 0, 10)}),
  (('train', 'validation', 'test'),
   {'train': ('train', 0, 10), 'validation': ('validation', 0, 10), 'test': ('test', 0, 10)}),
])
def test_a_third_split_is_taken_from_train_only_where_the_set_has_none(tmp_path, splits, places):
  sources = _sources(_small(tmp_path, splits))
  found = {split: (source.split, source.first, len(source)) for split, source in sources.items()}
  assert found == {split: (f'cifar10/{place[0]}', *place[1:]) for split, place in places.items()}
  assert sources['train'].name(2) == f'cifar10/train[{places["train"][1] + 2}]'


def test_imagenets_own_test_split_which_has_no_labels_is_left_alone(tmp_path):
  records = [example(file_name=b'0', image=_jpeg(0), label=0)] * 10
  path = _write(tmp_path / 'imagenet2012' / '5.1.0', {split: [records] for split in ('train', 'validation', 'test')})
  assert _sources(path)['test'].split == 'imagenet2012/validation'


def test_a_directory_of_a_version_will_do_and_may_be_moved(tmp_path, imagenet):
  shutil.copytree(imagenet / '5.1.0', tmp_path / 'elsewhere')
  assert _names(_sources(tmp_path / 'elsewhere')['test']) == _names(_sources(imagenet)['test'])


# In the pipeline


def test_training_sees_random_parts_of_whole_pictures(imagenet):
  source = _sources(imagenet)['train']
  batch = next(_batches(imagenet, 'train', is_training=True, batch_size=27, seed=5))
  places = order(5, 0, 27)
  assert batch['label'].tolist() == [(3 + place) % 2 for place in places]
  for position, place in enumerate(places):
    expected = augmentation.augment_training(source[place]['image'], 16, generator('augment', 5, position))
    np.testing.assert_array_equal(batch['image'][position], expected)


def _tiny(height: int = 32, width: int = 32) -> np.ndarray:
  return np.random.default_rng(0).integers(0, 100, (height, width, 3), np.uint8)  # nowhere as bright as the border


def test_tiny_pictures_are_shifted_by_up_to_4_pixels_in_gray_and_mirrored_alone():
  image, shifts = _tiny(), set()
  bordered = np.full((40, 40, 3), 128, np.uint8)
  bordered[4:36, 4:36] = image
  parts = {}
  for top, left in itertools.product(range(9), range(9)):
    part = bordered[top:top + 32, left:left + 32]
    parts |= {part.tobytes(): (top, left, False), part[:, ::-1].tobytes(): (top, left, True)}
  for seed in range(300):
    seen = tfds_images.augment(image, 32, np.random.default_rng(seed))
    assert seen.shape == (32, 32, 3)
    shifts.add(parts[seen.tobytes()])
  tops, lefts, mirrored = zip(*shifts, strict=True)
  assert (set(tops), set(lefts), set(mirrored)) == (set(range(9)), set(range(9)), {False, True})
  assert len(shifts) > 120  # of 162: rows, columns and mirroring are drawn apart


@pytest.mark.parametrize('height, width', [(63, 80), (80, 63), (28, 28)])
def test_a_picture_is_tiny_by_its_shorter_side_and_fits_a_model_of_any_size(height, width):
  image = _tiny(height, width)
  assert tfds_images.augment(image, 48, np.random.default_rng(0)).shape == (48, 48, 3)
  side = min(height, width)
  top, left = (height - side + 1) // 2, (width - side + 1) // 2
  whole = image[top:top + side, left:left + side]
  np.testing.assert_array_equal(tfds_images.view(image, ConfigDict({'image_size': 48})), augmentation.resize(whole, 48))


def test_an_evaluation_sees_all_of_a_tiny_picture_and_the_centre_of_a_larger_one():
  tiny, larger = _tiny(), _tiny(64, 64)
  np.testing.assert_array_equal(tfds_images.view(tiny, ConfigDict({'image_size': 32})), tiny)
  np.testing.assert_array_equal(tfds_images.view(larger, ConfigDict({'image_size': 56})), larger[4:60, 4:60])
  seen = tfds_images.augment(larger, 56, np.random.default_rng(0))
  np.testing.assert_array_equal(seen, augmentation.augment_training(larger, 56, np.random.default_rng(0)))


def test_training_resumed_at_any_step_continues_as_if_uninterrupted(imagenet):
  settings = {'batch_size': 8, 'seed': 1, 'is_training': True}
  whole = list(itertools.islice(_batches(imagenet, 'train', **settings), 5))
  for step in (1, 4):
    resumed = next(_batches(imagenet, 'train', first_step=step, num_threads=1, **settings))
    for name in resumed:
      np.testing.assert_array_equal(resumed[name], whole[step][name])


def test_an_evaluation_sees_the_centre_of_each_picture_and_names_the_broken_one(imagenet, caplog):
  source = _sources(imagenet)['test']
  with caplog.at_level(logging.WARNING, logger='absl'):
    batch, = _batches(imagenet, 'test', batch_size=8)
  assert batch['mask'].tolist() == [1, 1, 1, 1, 1, 0, 1, 0]
  assert batch['label'].tolist() == [0, 1, 0, 1, 0, 0, 0, 0]
  for index in (0, 3, 6):
    np.testing.assert_array_equal(batch['image'][index], augmentation.central_crop(source[index]['image'], 16))
  assert 'val_5.JPEG cannot be read, and is left out: it is broken' in caplog.text
  assert 'val_5.JPEG' in pipeline.unreadable()


def test_a_flipped_bit_costs_one_record_and_a_damaged_index_those_of_its_shard(tmp_path):
  directory = _imagenet(tmp_path) / '5.1.0'
  first, _, third = sorted(directory.glob('*train*'))
  content = bytearray(first.read_bytes())
  content[content.index(b'train_4.JPEG') + 200] ^= 1
  first.write_bytes(content)
  third.write_bytes(third.read_bytes()[:-2**16] + bytes(2**16))
  mask = np.concatenate([batch['mask'] for batch in _batches(directory, 'train', batch_size=9)])
  assert mask.tolist() == [1, 0, *[1] * 9, *[0] * 16]
  assert {'imagenet2012/train[4]', 'imagenet2012/train[29]'} <= set(pipeline.unreadable())


@pytest.mark.slow
@pytest.mark.parametrize('experiment', ['configs/imagenet.py:debug', 'configs/cifar10.py:debug'])
def test_a_config_trains_on_such_a_set_to_its_end_and_names_what_it_could_not_read(
    imagenet, tmp_path, capsys, experiment):
  settings = {
    'num_steps': 6, 'batch_size': 8, 'eval.batch_size': 8, 'data.path': imagenet, 'data.num_classes': 2}
  command = ['train.py', f'--config={experiment}', f'--workdir={tmp_path / "run"}']
  assert train([*command, *(f'--config.{key}={value}' for key, value in settings.items())]) == 0
  assert 'could not be read, and were left out: ' in capsys.readouterr().err
  last = json.loads((tmp_path / 'run' / 'metrics.jsonl').read_text().splitlines()[-1])
  assert last['step'] == 6 and np.isfinite(last['test/loss']) and 0 <= last['test/accuracy'] <= 1


PROGRAM = """
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 1000))
from ml_collections import ConfigDict
from perceiver_jax.data import tfds_images
config = ConfigDict({'path': sys.argv[1], 'image_size': 16, 'num_channels': 3, 'num_classes': 2})
source = tfds_images.load(config, 'train', is_training=False).source
print(len({source[index]['label'].item() for index in range(len(source))}), len(source))
del source
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 100))
try:
  tfds_images.load(config, 'train', is_training=False)
finally:
  assert 'tensorflow' not in sys.modules
"""


@pytest.mark.slow
def test_a_hundred_files_are_read_without_tensorflow_where_a_process_opens_64(tmp_path):
  records = [example(image=_jpeg(0), label=0), example(image=_jpeg(1), label=1)]
  path = _write(tmp_path / 'cifar10' / '3.0.2', {'train': [records] * 100, 'test': [records]})
  command, environment = [sys.executable, '-c', PROGRAM, str(path)], {**os.environ, 'PYTHONPATH': os.getcwd()}
  done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
  assert done.stdout == '2 180\n', done.stderr
  assert 'train of' in done.stderr and 'has 100 files, but a process may open 100: raise that to 356' in done.stderr


# Mistakes


def _error(config: ConfigDict, split: str = 'train') -> str:
  with pytest.raises(UserError) as caught:
    tfds_images.load(config, split, is_training=False)
  assert str(caught.value).count('\n') <= 1
  return str(caught.value)


def test_a_path_that_is_not_set_or_does_not_exist_is_asked_for(tmp_path):
  tars = 'put ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar into'
  message = _error(_config(None))
  assert f'set --config.data.path=DIR/imagenet2012. To build it: {tars} DIR, then make imagenet DATA=DIR ' in message
  message = _error(_config(tmp_path / 'imagenet2012'))
  assert f'there is no directory {tmp_path / "imagenet2012"}. To build it: {tars} {tmp_path}' in message
  assert f', then make imagenet DATA={tmp_path} (see docs/data.md)' in message
  assert f'make imagenet NAME=cifar10 DATA={tmp_path} ' in _error(_config(tmp_path / 'cifar10'))


def test_the_directory_around_a_set_and_that_of_the_tars_are_told_apart(tmp_path):
  path = _small(tmp_path)
  assert f'{tmp_path} is not itself a data set of TFDS, but {path} inside it is one' in _error(_config(tmp_path))
  (tmp_path / 'downloads').mkdir()
  (tmp_path / 'downloads' / 'ILSVRC2012_img_val.tar').touch()
  message = _error(_config(tmp_path / 'downloads'))
  assert f'then make imagenet DATA={tmp_path / "downloads"} ' in message


def test_what_an_interrupted_build_left_is_no_data_set(tmp_path):
  directory = _imagenet(tmp_path)
  (directory / '5.1.0').rename(directory / 'incomplete.AB12CD_5.1.0')
  message = _error(_config(directory))
  assert 'only what an interrupted build left: incomplete.AB12CD_5.1.0. To build it: put ' in message
  (tmp_path / 'cifar10').mkdir()
  assert f'in {tmp_path / "cifar10"} there is no data set of TFDS' in _error(_config(tmp_path / 'cifar10'))


def test_of_two_versions_one_is_to_be_chosen(tmp_path):
  path = _small(tmp_path)
  shutil.copytree(path / '3.0.2', path / '4.0.0')
  assert f'holds 3.0.2, 4.0.0: choose one of them, {path / "4.0.0"}' in _error(_config(path))


def test_another_version_of_imagenet_is_refused_and_of_other_sets_is_not(tmp_path):
  message = _error(_config(_imagenet(tmp_path, version='2.0.1')))
  assert 'is version 2.0.1 of imagenet2012; 5.*.* is needed. To build it: put ' in message
  assert len(tfds_images.load(_config(_small(tmp_path, version='2.0.1')), 'test', is_training=False).source) == 10


def test_tfrecord_is_answered_with_the_command_that_converts_it(tmp_path):
  message = _error(_config(_small(tmp_path, fileFormat='tfrecord')))
  assert 'is stored as tfrecord; array_record is needed. To convert it: ' in message
  assert 'python -m perceiver_jax prepare_records ' in message
  assert message.endswith('/cifar10/3.0.2 ANOTHER_DIR/cifar10/3.0.2')


@pytest.mark.parametrize('kinds, has', [
  ({'text': tfds.features.Text(), 'label': KINDS['label']}, 'it has label (ClassLabel), text (Text); it needs image'),
  ({'image': KINDS['image'], 'label': tfds.features.Scalar(np.int64)}, 'it has image (Image), label (Scalar)'),
  ({}, 'it has no features'),
])
def test_what_is_no_image_classification_is_refused(tmp_path, kinds, has):
  assert f'is no image classification: {has}' in _error(_config(_small(tmp_path, kinds=kinds)))


def test_missing_files_are_named(tmp_path):
  directory = _imagenet(tmp_path) / '5.1.0'
  shards = sorted(directory.glob('*train*'))
  shards[1].unlink()
  assert _error(_config(directory)) == (
    f'{directory} lacks imagenet2012-train.array_record-00001-of-00003. Copy the directory again, whole.')
  shards[2].unlink()
  assert 'lacks imagenet2012-train.array_record-00001-of-00003 and 1 more of its 3 files.' in _error(_config(directory))
  assert len(tfds_images.load(_config(directory), 'test', is_training=False).source) == 7


@pytest.mark.parametrize('size', [0, 50_000, 2**16 + 1, -4096])
def test_a_file_that_was_cut_off_is_named_before_training(tmp_path, size):
  directory = _imagenet(tmp_path) / '5.1.0'
  shard = sorted(directory.glob('*train*'))[2]
  shard.write_bytes(shard.read_bytes()[:size])
  assert _error(_config(directory)) == (
    f'{directory} has only a part of imagenet2012-train.array_record-00002-of-00003. Copy the directory again, whole.')
  assert len(tfds_images.load(_config(directory), 'test', is_training=False).source) == 7


def test_a_link_to_a_file_that_is_gone_is_a_missing_file(tmp_path):
  directory = _imagenet(tmp_path) / '5.1.0'
  shard = sorted(directory.glob('*train*'))[1]
  shard.unlink()
  shard.symlink_to('gone')
  assert f'lacks {shard.name}. Copy' in _error(_config(directory))


@pytest.mark.parametrize('name', ['dataset_info.json', 'features.json'])
@pytest.mark.parametrize('content', [
  b'{"name": "x", "featuresDict": {"features": {"image": {}}}}', b'{"featuresDict": 3}', b'[]', b'{', b'', b'\xff\xfe'])
def test_a_broken_description_is_named(tmp_path, name, content):
  directory = _small(tmp_path) / '3.0.2'
  (directory / name).write_bytes(content)
  message = _error(_config(directory))
  assert str(directory) in message and len(message) < 500


def test_a_missing_description_is_named(tmp_path):
  directory = _small(tmp_path) / '3.0.2'
  (directory / 'features.json').unlink()
  assert f'{directory / "features.json"} cannot be read' in _error(_config(directory))


def test_classes_without_names_are_numbered(tmp_path):
  directory = _small(tmp_path) / '3.0.2'
  (directory / 'label.labels.txt').unlink()
  assert tfds_images.load(_config(directory), 'test', is_training=False).class_names == ['0', '1']


@pytest.mark.parametrize('place', ['top', 'inside'])
def test_code_that_features_name_is_not_imported(tmp_path, monkeypatch, place):
  directory = _small(tmp_path) / '3.0.2'
  features = json.loads((directory / 'features.json').read_text())
  (features if place == 'top' else features['featuresDict']['features']['label'])['pythonClassName'] = 'evil.Feature'
  (directory / 'features.json').write_text(json.dumps(features))
  (tmp_path / 'evil.py').write_text('raise SystemExit("imported")')
  monkeypatch.syspath_prepend(tmp_path)
  assert 'names code that is not of TFDS, evil.Feature' in _error(_config(directory))


def test_another_number_of_classes_is_named(tmp_path):
  assert 'num_classes is 10, but ' in _error(_config(_small(tmp_path), num_classes=10))


def test_a_label_that_is_no_class_is_named(tmp_path):
  records = [example(image=_jpeg(0), label=2)] * 10
  path = _write(tmp_path / 'pets' / '1.0.0', {'train': [records], 'test': [records]})
  source = tfds_images.load(_config(path), 'test', is_training=False).source
  with pytest.raises(UserError, match=r'pets/test\[0\] has the label 2, of 2 classes'):
    source[0]


@pytest.mark.parametrize('features', [
  {'image': _jpeg(0)}, {'image': _jpeg(0), 'label': b'dog'}, {'image': 1, 'label': 1}, {}])
def test_a_record_without_what_it_should_have_counts_for_nothing(tmp_path, features):
  path = _small(tmp_path)
  odd, whole = example(file_name=7, **features), example(image=_jpeg(0), label=1)
  shutil.rmtree(path)
  source = _sources(_write(path / '3.0.2', {'train': [[whole] * 10], 'test': [[whole, odd]]}))['test']
  batch, = _batches(path, 'test', batch_size=2)
  assert batch['mask'].tolist() == [1, 0] and 'cifar10/test[1]' in pipeline.unreadable()
  with pytest.raises(ValueError, match=r'image or label|parsing feature'):
    source[1]


def test_a_split_without_records_does_not_count_and_nine_are_too_few_to_share(tmp_path):
  records = [example(image=_jpeg(0), label=0)] * 9
  path = _write(tmp_path / 'one' / '1.0.0', {'train': [records], 'test': [records], 'validation': [[]]})
  assert 'has no third split, and 9 records in train: it takes 10' in _error(_config(path))
  path = _write(tmp_path / 'two' / '1.0.0', {'train': [], 'test': [records]})
  assert 'has the splits test; it needs train' in _error(_config(path))


def test_a_set_that_cannot_be_split_says_why(tmp_path):
  assert 'it needs train, and validation or test' in _error(_config(_small(tmp_path / 'one', ('train',))))
  assert 'not mixed: no part of train' in _error(_config(_small(tmp_path / 'two', disableShuffling=True)))
  assert _sources(_small(tmp_path / 'three', ('train', 'validation', 'test'), disableShuffling=True))


def test_an_unknown_split_and_number_of_channels_are_refused(imagenet):
  assert "no split 'val'; the splits are train, validation, test" in _error(_config(imagenet), 'val')
  assert 'num_channels is 4' in _error(_config(imagenet, num_channels=4))
