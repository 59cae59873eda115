"""A person's own images: folders, archives, and mistakes in them."""

import logging
import os

import cv2
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from perceiver_jax import types
from perceiver_jax.data import images, labelled_images, pipeline
from perceiver_jax.data.dataset import SPLITS


def _config(path, **changes):
  path = None if path is None else str(path)
  return ConfigDict({'path': path, 'image_size': 8, 'num_channels': 3, 'num_classes': 2, **changes})


def _picture(height=12, width=16, seed=0):
  """A smooth RGB picture, redder to the right and greener downwards, which JPEG changes little."""
  red = np.linspace(20, 220, width)[None, :] + np.zeros((height, 1))
  green = np.linspace(20, 220, height)[:, None] + np.zeros((1, width))
  return np.stack([red, green, np.full((height, width), 20.0 * seed)], -1).astype(np.uint8)


def _write(path, picture=None):
  path.parent.mkdir(parents=True, exist_ok=True)
  assert cv2.imwrite(str(path), cv2.cvtColor(_picture() if picture is None else picture, cv2.COLOR_RGB2BGR))
  return path


def _folder(root, num_images=10, classes=('cat', 'dog')):
  for label, name in enumerate(classes):
    for index in range(num_images):
      _write(root / name / f'{index:02}.png', _picture(seed=label))
  return root


def _npz(path, num_images=20, **changes):
  arrays = {'images': np.stack([_picture(8, 8, index % 2) for index in range(num_images)]),
            'labels': np.arange(num_images) % 2, **changes}
  np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
  return path


def _names(source):
  return [source.name(index) for index in range(len(source))]


def _load_all(config):
  return {split: images.load(config, split, is_training=False).source for split in SPLITS}


def _all_names(sources):
  return [name for source in sources.values() for name in _names(source)]


def _find(sources, name):
  """The source that holds the record of this name, and the record's index in it."""
  return next((source, _names(source).index(name)) for source in sources.values() if name in _names(source))


# Folders


def test_a_folder_by_class_is_split_70_10_20(tmp_path):
  root = _folder(tmp_path)
  sources = _load_all(_config(root))
  assert {split: len(source) for split, source in sources.items()} == {'train': 14, 'validation': 2, 'test': 4}
  assert sorted(_all_names(sources)) == sorted(map(str, root.glob('*/*.png')))
  assert images.load(_config(root), 'test', is_training=False).class_names == ['cat', 'dog']
  for source in sources.values():
    for index in range(len(source)):
      example = source[index]
      assert ['cat', 'dog'][example['label']] in source.name(index)
      assert (example['image'].shape, example['image'].dtype) == ((8, 8, 3), np.uint8)
      assert (example['label'].shape, example['label'].dtype) == ((), np.int32)


def test_a_split_does_not_depend_on_where_the_folder_lies_or_how_it_is_listed(tmp_path, monkeypatch):
  first, second = _folder(tmp_path / 'one'), _folder(tmp_path / 'two')
  names = [name.removeprefix(str(first)) for name in _names(_load_all(_config(first))['test'])]
  scandir = images.os.scandir
  monkeypatch.setattr(images.os, 'scandir', lambda path: reversed(list(scandir(path))))
  assert [name.removeprefix(str(second)) for name in _names(_load_all(_config(second))['test'])] == names


def test_a_folder_that_is_split_already_stays_as_it_is(tmp_path):
  for split, num_images in [('train', 5), ('validation', 1), ('test', 2)]:
    _folder(tmp_path / split, num_images)
  (tmp_path / 'test' / 'dog' / '01.png').unlink()
  for split, num_images in [('train', 10), ('validation', 2), ('test', 3)]:
    source = images.load(_config(tmp_path), split, is_training=False).source
    assert _names(source) == sorted(map(str, (tmp_path / split).glob('*/*.png')))
    assert len(source) == num_images
  assert [int(source[index]['label']) for index in range(3)] == [0, 0, 1]


def test_a_class_may_be_called_train(tmp_path):
  root = _folder(tmp_path, classes=('car', 'train'))
  assert images.load(_config(root), 'train', is_training=False).class_names == ['car', 'train']


def test_a_split_may_lack_a_class_but_not_add_one(tmp_path):
  for split in SPLITS:
    _folder(tmp_path / split, 2, classes=('cat',) if split == 'test' else ('cat', 'dog'))
  assert len(images.load(_config(tmp_path), 'test', is_training=False).source) == 2
  _folder(tmp_path / 'test', 2, classes=('cow',))
  with pytest.raises(types.UserError, match='test has class folders that train has not: cow'):
    images.load(_config(tmp_path), 'train', is_training=False)


def test_files_that_are_no_images_are_left_out(tmp_path):
  root = _folder(tmp_path, 3)
  (root / 'notes.txt').write_text('hello')
  (root / 'cat' / 'notes.txt').write_text('hello')
  (root / 'cat' / '._00.png').write_text('what a Mac leaves behind')
  (root / '.ipynb_checkpoints').mkdir()
  (root / 'cat' / 'folder.png').mkdir()
  assert len(_all_names(_load_all(_config(root)))) == 6


@pytest.mark.parametrize('name', ['a.jpg', 'a.JPEG', 'a.PNG', 'a.webp', 'a.bmp'])
def test_every_format_is_read(tmp_path, name):
  _folder(tmp_path, 3, classes=('cat',))
  path = _write(tmp_path / 'dog' / name, _picture(20, 20))
  for index in range(2):
    _write(tmp_path / 'dog' / f'{index}.png')
  source, index = _find(_load_all(_config(tmp_path, image_size=20)), str(path))
  assert np.abs(source[index]['image'].astype(int) - _picture(20, 20)).mean() < 4


def test_broken_and_lost_files_keep_their_places_and_are_named(tmp_path, caplog):
  dataset = images.load(_config(_folder(tmp_path)), 'test', is_training=False)
  source, settings = dataset.source, {'batch_size': 4, 'is_training': False}
  whole, = pipeline.batches(dataset, 'test', **settings)
  with open(source.name(1), 'r+b') as file:
    file.truncate(40)
  os.remove(source.name(2))
  with caplog.at_level(logging.WARNING, logger='absl'):
    damaged, = pipeline.batches(dataset, 'test', **settings)
  assert damaged['mask'].tolist() == [1, 0, 0, 1]
  np.testing.assert_array_equal(damaged['label'], whole['label'] * [1, 0, 0, 1])
  np.testing.assert_array_equal(damaged['image'][[0, 3]], whole['image'][[0, 3]])
  assert [source.name(index) in caplog.text for index in range(4)] == [False, True, True, False]


def test_a_link_to_a_lost_file_is_a_record_that_cannot_be_read(tmp_path):
  root = _folder(tmp_path, 3)
  (root / 'cat' / '03.png').symlink_to(tmp_path / 'nowhere.png')
  sources = _load_all(_config(root))
  assert len(_all_names(sources)) == 7
  source, index = _find(sources, str(root / 'cat' / '03.png'))
  with pytest.raises(ValueError, match=r'03\.png'):
    source[index]


# Archives


@pytest.mark.parametrize('num_channels', [1, 3])
@pytest.mark.parametrize('shape', [(20, 8, 8), (20, 8, 8, 1), (20, 8, 8, 3), (20, 10, 12, 3), (20, 6, 4)])
def test_an_archive_is_split_and_fitted(tmp_path, shape, num_channels):
  pixels = np.broadcast_to(np.arange(20, dtype=np.uint8).reshape(20, *[1] * (len(shape) - 1)), shape)
  path = _npz(tmp_path / 'set.npz', images=pixels, labels=(np.arange(20) % 2).astype(np.uint8))
  sources = _load_all(_config(path, num_channels=num_channels))
  assert {split: len(source) for split, source in sources.items()} == {'train': 14, 'validation': 2, 'test': 4}
  assert sorted(_all_names(sources)) == sorted(f'{path}[{index}]' for index in range(20))
  assert images.load(_config(path), 'test', is_training=False).class_names == ['0', '1']
  for source in sources.values():
    for index in range(len(source)):
      example = source[index]
      place = int(source.name(index).partition('.npz[')[2].rstrip(']'))
      assert example['image'].shape == (8, 8, num_channels)
      np.testing.assert_array_equal(example['image'], place)
      assert (int(example['label']), example['label'].dtype) == (place % 2, np.int32)


def _error(config, split='train'):
  with pytest.raises(types.UserError) as caught:
    images.load(config, split, is_training=False)
  message = str(caught.value)
  assert message.count('\n') <= 1
  return message


@pytest.mark.parametrize('changes, expected', [
    ({'labels': None}, 'holds images; it needs the arrays images and labels'),
    ({'images': np.zeros((20, 8, 8, 3))}, 'images is (20, 8, 8, 3) float64; it must be uint8'),
    ({'images': np.zeros((20, 64), np.uint8)}, 'images is (20, 64) uint8; it must be uint8, [N, H, W]'),
    ({'images': np.zeros((20, 8, 8, 4), np.uint8)}, 'images is (20, 8, 8, 4) uint8'),
    ({'images': np.zeros((20, 0, 8), np.uint8)}, 'images is (20, 0, 8) uint8'),
    ({'labels': np.arange(20.0)}, 'labels is (20,) float64; it must be integers'),
    ({'labels': np.zeros(19, int)}, 'labels is (19,) int64; it must be integers, [20]'),
    ({'labels': np.zeros((20, 2), int)}, 'labels is (20, 2) int64'),
    ({'labels': np.arange(20)}, 'labels run from 0 to 19, but config.data.num_classes is 2'),
    ({'labels': np.arange(20) % 2 - 1}, 'labels run from -1 to 0'),
    ({'labels': np.zeros(20, int)}, "Class '1' has 0 images"),
    ({'labels': np.array([object()] * 20)}, 'Object arrays cannot be loaded'),
])
def test_a_mistake_in_an_archive_is_named(tmp_path, changes, expected):
  message = _error(_config(_npz(tmp_path / 'set.npz', **changes)))
  assert expected in message
  assert str(tmp_path / 'set.npz') in message or 'Class' in message


@pytest.mark.parametrize('content', [b'', b'not an archive', None])
def test_an_archive_that_cannot_be_read_is_named(tmp_path, content):
  path = _npz(tmp_path / 'set.npz')
  path.write_bytes(path.read_bytes()[:-200] if content is None else content)
  assert f'{path} cannot be read' in _error(_config(path))


def test_an_array_that_is_called_an_archive_is_named(tmp_path):
  np.save(tmp_path / 'set.npy', np.zeros(3))
  (tmp_path / 'set.npy').rename(tmp_path / 'set.npz')
  assert 'set.npz cannot be read' in _error(_config(tmp_path / 'set.npz'))


# Mistakes


def test_a_path_that_is_not_set_is_asked_for():
  assert 'set --config.data.path=' in _error(_config(None))


def test_a_path_that_does_not_exist_is_named(tmp_path):
  assert f'there is no {tmp_path / "pets"}' in _error(_config(tmp_path / 'pets'))


def test_a_file_that_is_no_archive_is_named(tmp_path):
  path = _write(tmp_path / 'cat.jpg')
  assert f'{path} is neither a folder nor an .npz file' in _error(_config(path))


def test_a_home_directory_may_be_written_as_a_tilde(tmp_path, monkeypatch):
  monkeypatch.setenv('HOME', str(_folder(tmp_path / 'home' / 'pets').parent))
  assert len(images.load(_config('~/pets'), 'train', is_training=False).source) == 14


def test_another_number_of_classes_lists_the_folders(tmp_path):
  message = _error(_config(_folder(tmp_path), num_classes=3))
  assert f'config.data.num_classes is 3, but {tmp_path} has 2 class folders: cat, dog.' in message


def test_a_folder_without_classes_says_where_images_belong(tmp_path):
  _write(tmp_path / 'cat.jpg')
  message = _error(_config(tmp_path))
  assert f'{tmp_path} has 0 class folders: none.' in message
  assert 'ROOT/<class>/' in message


def test_many_wrong_classes_are_not_all_listed(tmp_path):
  for index in range(200):
    (tmp_path / f'class{index:03}').mkdir()
  message = _error(_config(tmp_path))
  assert 'has 200 class folders: class000, ' in message
  assert len(message) < 400 + len(str(tmp_path))


def test_folders_without_images_are_named(tmp_path):
  (tmp_path / 'cat').mkdir()
  (tmp_path / 'dog').mkdir()
  (tmp_path / 'dog' / 'film.mp4').write_bytes(b'')
  message = _error(_config(tmp_path))
  assert f'There are no images (.jpg, .png and others that Pillow reads) in the class folders of {tmp_path}.' in message


def test_a_split_without_images_is_named(tmp_path):
  for split in ('train', 'test'):
    _folder(tmp_path / split, 2)
  (tmp_path / 'validation').mkdir()
  assert f'in the class folders of {tmp_path / "validation"}.' in _error(_config(tmp_path))


def test_a_class_too_small_to_split_is_named(tmp_path):
  root = _folder(tmp_path)
  for index in range(2, 10):
    (root / 'dog' / f'{index:02}.png').unlink()
  assert "Class 'dog' has 2 images" in _error(_config(root))


@pytest.mark.parametrize('kind', ['folder', 'given', 'archive'])
def test_an_unknown_split_is_answered_with_the_list(tmp_path, kind):
  if kind == 'given':
    for split in SPLITS:
      _folder(tmp_path / split, 1)
  path = _npz(tmp_path / 'set.npz') if kind == 'archive' else tmp_path if kind == 'given' else _folder(tmp_path)
  assert "no split 'val'; the splits are train, validation, test" in _error(_config(path), 'val')


def test_an_unknown_number_of_channels_is_refused(tmp_path):
  assert 'num_channels is 4' in _error(_config(_folder(tmp_path), num_channels=4))


# What is taken for a picture, and for a split


@pytest.fixture
def said(caplog):
  """What the log says from here on."""
  caplog.set_level(logging.WARNING, logger='absl')
  return lambda: caplog.text


@pytest.mark.parametrize('name', [
  'a.tif', 'a.TIFF', 'a.gif', 'a.jfif', 'a.avif', 'a.jpe', 'a.ppm', 'a.pgm', 'a.tga', 'a.ico', 'a.jp2', 'a.webp',
  'a.dib'])
def test_every_kind_that_pillow_reads_is_used(tmp_path, name, said):
  root = _folder(tmp_path, 3)
  kind = {'.jfif': 'jpeg', '.jpe': 'jpeg', '.tif': 'tiff', '.pgm': 'ppm', '.jp2': 'jpeg2000'}
  suffix = (tmp_path / name).suffix.lower()
  Image.fromarray(_picture(16, 16)).save(root / 'dog' / name, kind.get(suffix, suffix[1:]))
  source, index = _find(_load_all(_config(root)), str(root / 'dog' / name))
  assert source[index]['image'].shape == (8, 8, 3) and source[index]['label'] == 1
  assert said() == ''


def test_pictures_in_folders_inside_a_class_are_used_and_what_is_left_out_is_counted_by_suffix(tmp_path, said):
  root = _folder(tmp_path, 3)
  nested = [_write(root / 'cat' / 'night' / 'indoors' / f'{index}.png') for index in range(4)]
  for name in ('cat/readme.txt', 'cat/night/notes.TXT', 'labels.csv', 'dog/noname', 'dog/.hidden'):
    (root / name).write_text('hello')
  (root / 'dog' / 'again').symlink_to(root / 'dog')  # would be walked for ever
  sources = _load_all(_config(root))
  assert set(map(str, nested)) <= set(_all_names(sources)) and len(_all_names(sources)) == 10
  assert said().count('are left out') == 1
  assert f'{root}: 5 files are left out, as they are no pictures that can be read: ' in said()
  assert '2 without a suffix, 1 .csv, 2 .txt' in said()


def test_nothing_is_said_where_nothing_is_left_out(tmp_path, said):
  _load_all(_config(_folder(tmp_path)))
  assert said() == ''


@pytest.mark.parametrize('names, taken', [
  (('train', 'val', 'test'), 'val/ is validation'), (('train', 'valid', 'test'), 'valid/ is validation'),
  (('train', 'dev', 'test'), 'dev/ is validation'), (('Train', 'Validation', 'Test'), 'Validation/ is validation'),
  (('TRAIN', 'VAL', 'TEST'), 'VAL/ is validation'), (('training', 'eval', 'testing'), 'eval/ is validation'),
])
def test_folders_of_splits_have_the_names_that_people_use(tmp_path, names, taken, said):
  for name, num_images in zip(names, (5, 1, 2), strict=True):
    _folder(tmp_path / name, num_images)
  sources = _load_all(_config(tmp_path))
  assert {split: len(source) for split, source in sources.items()} == {'train': 10, 'validation': 2, 'test': 4}
  assert taken in said()


@pytest.mark.parametrize('other, split, told', [
  ('test', 'test', 'a tenth of train is set aside for validation'),
  ('val', 'test', 'a tenth of train is set aside for validation, and validation is the test'),
])
def test_where_a_split_is_missing_a_tenth_of_train_serves(tmp_path, other, split, told, said):
  _folder(tmp_path / 'train', 20)
  _folder(tmp_path / other, 3)
  sources = _load_all(_config(tmp_path))
  assert {split: len(source) for split, source in sources.items()} == {'train': 36, 'validation': 4, 'test': 6}
  assert len(set(_all_names(sources))) == 46 and told in said()
  assert all(f'/{other}/' in name for name in _names(sources['test']))


@pytest.mark.parametrize('names, message', [
  (('train', 'val', 'valid', 'test'), 'test, train, val, valid are not one for each'),
  (('train', 'test', 'extra'), 'extra, test, train are not one for each: rename or move what is no split'),
])
def test_folders_of_which_some_are_splits_are_the_users_mistake(tmp_path, names, message):
  for name in names:
    _folder(tmp_path / name, 3)
  with pytest.raises(types.UserError, match=message):
    images.load(_config(tmp_path), 'train', is_training=False)


# Names of classes


@pytest.mark.parametrize('text', [
  'Kätzchen\nHund\n', '\ufeffKätzchen\nHund', 'Kätzchen\r\nHund\r\n', 'Kätzchen\nHund\n\n\n', '\n  Kätzchen \n\nHund'])
def test_names_come_from_a_file_with_whatever_an_editor_leaves_there(tmp_path, text):
  names = tmp_path / 'names.txt'
  names.write_bytes(text.encode())
  config = _labelled(_folder(tmp_path / 'set'), class_names=str(names))
  assert labelled_images.load(config, 'train', is_training=True).class_names == ('Kätzchen', 'Hund')


@pytest.mark.parametrize('data, message', [
  (b'cat\n', 'names.txt has 1 names, a line each, but data.num_classes is 2'),
  (b'cat\ndog\nemu\n', 'names.txt has 3 names, a line each, but data.num_classes is 2'),
  (b'', 'names.txt has 0 names'),
  ('Kätzchen\nHund'.encode('latin-1'), 'names.txt.*, which is no text in UTF-8: .*Save it as UTF-8'),
  (None, 'names.txt.*, which cannot be read: No such file'),
])
def test_names_that_do_not_serve_are_refused_before_training(tmp_path, data, message):
  names = tmp_path / 'names.txt'
  if data is not None:
    names.write_bytes(data)
  config = _labelled(_folder(tmp_path / 'set'), class_names=str(names))
  with pytest.raises(types.UserError, match=message):
    labelled_images.load(config, 'train', is_training=True)


def _labelled(root, **changes):
  return _config(root, name='images', permutation='none', mixing='none', **changes)
