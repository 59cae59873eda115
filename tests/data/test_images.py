"""A person's own images: folders, archives, and mistakes in them."""

import logging
import os

import cv2
import numpy as np
import pytest
from ml_collections import ConfigDict

from perceiver_jax import types
from perceiver_jax.data import images, pipeline
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
  with pytest.raises(OSError, match=r'03\.png'):
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
  (tmp_path / 'dog' / 'film.gif').write_bytes(b'GIF89a')
  message = _error(_config(tmp_path))
  assert f'There are no images (.jpg, .jpeg, .png, .webp, .bmp) in the class folders of {tmp_path}.' in message


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
