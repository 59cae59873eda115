"""Sets built by TFDS itself, in the environment that has TensorFlow, read in ours, which has neither."""

from __future__ import annotations

import gzip
import io
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tarfile
import time

import cv2
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from perceiver_jax.data import pipeline, tfds_images
from perceiver_jax.types import Field, UserError

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
SYNSETS = ('n01440764', 'n01443537', 'n15075141')
LABELS = (0, 1, 999)
NUM_PER_SYNSET, NUM_VALIDATION = 20, 12
# Python runs it before the program: from then on there is no network.
NO_NETWORK = """
import socket
def refuse(self, address):
  raise OSError(f'tests have no network: refused to connect to {address}')
socket.socket.connect = socket.socket.connect_ex = refuse
"""


def _pixels(seed: int) -> np.ndarray:
  """[H, W, 3]: a smooth picture that JPEG changes little, of a size and colour of its own."""
  height, width = 60 + seed % 7, 70 + seed % 5
  red = np.linspace(0, 200, width)[None, :] + np.zeros((height, 1))
  green = np.linspace(0, 200, height)[:, None] + np.zeros((1, width))
  return np.stack([red, green, np.full((height, width), 40.0 + 3 * seed)], -1).astype(np.uint8)


def _jpeg(seed: int, mode: str = 'RGB') -> bytes:
  file = io.BytesIO()
  Image.fromarray(_pixels(seed)).convert(mode).save(file, 'JPEG', quality=95)
  return file.getvalue()


def _tar(files: dict[str, bytes]) -> bytes:
  file = io.BytesIO()
  with tarfile.open(fileobj=file, mode='w') as archive:
    for name, content in files.items():
      member = tarfile.TarInfo(name)
      member.size = len(content)
      archive.addfile(member, io.BytesIO(content))
  return file.getvalue()


def _training_files() -> dict[str, dict[str, bytes]]:
  """{synset: {file: JPEG}}; the third of each is gray, the fourth of the first CMYK, the fifth no picture."""
  files = {
    synset: {f'{synset}_{i}.JPEG': _jpeg(20 * row + i, 'L' if i == 2 else 'RGB') for i in range(NUM_PER_SYNSET)}
    for row, synset in enumerate(SYNSETS)}
  files[SYNSETS[0]][f'{SYNSETS[0]}_3.JPEG'] = _jpeg(3, 'CMYK')
  files[SYNSETS[0]][f'{SYNSETS[0]}_4.JPEG'] = _jpeg(4)[:30]
  return files


def _write_tars(folder: pathlib.Path) -> None:
  """In the layout of ILSVRC 2012: a tar of a tar per synset, and a flat one."""
  folder.mkdir(exist_ok=True)
  synsets = {f'{synset}.tar': _tar(files) for synset, files in _training_files().items()}
  (folder / 'ILSVRC2012_img_train.tar').write_bytes(_tar(synsets))
  validation = {f'ILSVRC2012_val_{i + 1:08}.JPEG': _jpeg(100 + i) for i in range(NUM_VALIDATION)}
  (folder / 'ILSVRC2012_img_val.tar').write_bytes(_tar(validation))


def _environment(tmp_path: pathlib.Path) -> dict[str, str]:
  (tmp_path / 'site').mkdir(exist_ok=True)
  (tmp_path / 'site' / 'sitecustomize.py').write_text(NO_NETWORK)
  return {**os.environ, 'PYTHONPATH': f'{tmp_path / "site"}:{ROOT}'}


def _command(*arguments: object) -> list[str]:
  return [os.environ['PERCEIVER_TF_PYTHON'], '-m', 'perceiver_jax.data.build', *map(str, arguments)]


def _build(tmp_path: pathlib.Path, *arguments: object) -> subprocess.CompletedProcess:
  return subprocess.run(
    _command(*arguments), cwd=ROOT, env=_environment(tmp_path), capture_output=True, text=True, timeout=600)


def _config(path: pathlib.Path, **changes: object) -> ConfigDict:
  return ConfigDict({'path': str(path), 'image_size': 32, 'num_channels': 3, 'num_classes': 1000, **changes})


@pytest.fixture(scope='module')
def data(tmp_path_factory):
  """imagenet2012, built by the command."""
  folder = tmp_path_factory.mktemp('imagenet')
  _write_tars(folder)
  started = time.monotonic()
  done = _build(folder, f'--data={folder}')
  assert done.returncode == 0, done.stderr
  size = sum(path.stat().st_size for path in (folder / 'imagenet2012').rglob('*'))
  print(f'\nbuilt in {time.monotonic() - started:.1f} s, {size:,} bytes\n{done.stdout}{done.stderr}')
  return folder


def test_what_tfds_builds_from_the_tars_is_what_is_read(data):
  config = _config(data / 'imagenet2012')
  sources = {split: tfds_images.load(config, split) for split in ('train', 'validation', 'test')}
  assert {split: len(source) for split, source in sources.items()} == {'train': 54, 'validation': 6, 'test': 12}
  assert sources['test'].class_names[:2] == list(SYNSETS[:2]) and sources['test'].class_names[999] == SYNSETS[2]
  jpegs = {name: jpeg for files in _training_files().values() for name, jpeg in files.items()}
  names = []
  for source in (sources['train'], sources['validation']):
    for index in range(len(source)):
      name = source.name(index)
      names.append(name)
      if name == f'{SYNSETS[0]}_4.JPEG':
        with pytest.raises(ValueError, match='broken'):
          source[index]
        continue
      example = source[index]
      assert example['label'] == LABELS[SYNSETS.index(name.partition('_')[0])]
      expected = cv2.imdecode(np.frombuffer(jpegs[name], np.uint8), cv2.IMREAD_COLOR_RGB)
      np.testing.assert_array_equal(example['image'], expected)
  assert sorted(names) == sorted(jpegs)
  # The labels of the validation set come with TFDS; its files are numbered.
  names = [sources['test'].name(index) for index in range(NUM_VALIDATION)]
  assert sorted(names) == [f'ILSVRC2012_val_{i + 1:08}.JPEG' for i in range(NUM_VALIDATION)]
  labels = {name: int(sources['test'][index]['label']) for index, name in enumerate(names)}
  assert [labels[name] for name in sorted(names)][:5] == [65, 970, 230, 809, 516]  # of the true ILSVRC 2012
  assert 'tensorflow' not in sys.modules and 'tensorflow_datasets' not in sys.modules


def test_what_tfds_builds_goes_through_the_pipeline(data):
  source = tfds_images.load(_config(data / 'imagenet2012'), 'train')
  spec = {'image': Field((32, 32, 3), 'uint8'), 'label': Field((), 'int32')}
  batches = list(pipeline.eval_batches(source, spec, batch_size=20, view=tfds_images.view))
  assert sum(batch['mask'].sum() for batch in batches) >= 53


def test_a_set_that_is_built_is_not_built_again(data, tmp_path):
  shutil.copytree(data / 'imagenet2012', tmp_path / 'imagenet2012')  # the tars need not be kept
  before = {path: path.stat().st_mtime_ns for path in (tmp_path / 'imagenet2012').rglob('*')}
  done = _build(tmp_path, f'--data={tmp_path}')
  assert done.returncode == 0 and 'is there already' in done.stderr, done.stderr
  assert {path: path.stat().st_mtime_ns for path in (tmp_path / 'imagenet2012').rglob('*')} == before


def test_a_tar_of_which_a_part_is_missing_leaves_nothing_behind(tmp_path):
  _write_tars(tmp_path)
  tar = tmp_path / 'ILSVRC2012_img_train.tar'
  content = tar.read_bytes()
  tar.write_bytes(content[:70_000] + content[80_752:])
  done = _build(tmp_path, f'--data={tmp_path}')
  assert done.returncode == 1 and 'error: imagenet2012 cannot be built: ' in done.stderr
  assert list((tmp_path / 'imagenet2012').iterdir()) == []


def test_a_killed_build_does_not_look_finished_and_the_next_one_succeeds(tmp_path):
  _write_tars(tmp_path)
  process = subprocess.Popen(
    _command(f'--data={tmp_path}'), cwd=ROOT, env=_environment(tmp_path), stdout=subprocess.DEVNULL,
    stderr=subprocess.DEVNULL)
  directory = tmp_path / 'imagenet2012'
  while not list(directory.glob('incomplete.*')):
    assert process.poll() is None
    time.sleep(0.01)
  process.send_signal(signal.SIGKILL)
  process.wait()
  with pytest.raises(UserError, match=r'only what an interrupted build left: incomplete\.'):
    tfds_images.load(_config(directory), 'train')
  done = _build(tmp_path, f'--data={tmp_path}')
  assert done.returncode == 0 and 'was left by a build that was killed' in done.stderr
  assert len(tfds_images.load(_config(directory), 'test')) == NUM_VALIDATION


@pytest.mark.parametrize('name', ['cifar11', '../cifar10', 'imagenette/tiny', 'cifar10:9.9.9'])
def test_an_unknown_set_configuration_or_version_is_named(tmp_path, name):
  done = _build(tmp_path, f'--name={name}', f'--data={tmp_path}')
  assert done.returncode == 1 and f'has no data set {name!r}: ' in done.stderr and 'Traceback' not in done.stderr
  assert [path.name for path in tmp_path.iterdir()] == ['site']


# The archive that stands in for CIFAR's has another checksum, which TFDS is told to pass over.
UNCHECKED = """
import sys
from tensorflow_datasets.core.download.download_manager import DownloadManager
DownloadManager._register_or_validate_checksums = lambda *arguments, **named: None
from perceiver_jax.data import build
sys.exit(build.main())
"""
CIFAR_CLASSES = ('airplane', 'automobile', 'bird', 'cat', 'deer', 'dog', 'frog', 'horse', 'ship', 'truck')


def _write_cifar(folder: pathlib.Path) -> np.ndarray:
  """Six files of 20 records: a label, then 32 x 32 of red, of green, of blue. Returns [120, 32, 32, 3]."""
  pixels = np.random.default_rng(0).integers(0, 256, (120, 32, 32, 3), np.uint8)
  files = {'batches.meta.txt': '\n'.join(CIFAR_CLASSES).encode() + b'\n\n'}
  for row, name in enumerate([*(f'data_batch_{i}.bin' for i in range(1, 6)), 'test_batch.bin']):
    files[name] = b''.join(
      bytes([i % 10]) + pixels[i].transpose(2, 0, 1).tobytes() for i in range(20 * row, 20 * row + 20))
  archive = io.BytesIO(_tar({f'cifar-10-batches-bin/{name}': content for name, content in files.items()}))
  (folder / 'cifar-10-binary.tar.gz').write_bytes(gzip.compress(archive.getvalue()))
  return pixels


def test_cifar_is_built_from_an_archive_that_was_put_there_by_hand(tmp_path):
  pixels = _write_cifar(tmp_path)
  command = [os.environ['PERCEIVER_TF_PYTHON'], '-c', UNCHECKED, '--name=cifar10', f'--data={tmp_path}']
  done = subprocess.run(command, cwd=ROOT, env=_environment(tmp_path), capture_output=True, text=True, timeout=600)
  assert done.returncode == 0, done.stderr
  config = _config(tmp_path / 'cifar10', num_classes=10)
  sources = [tfds_images.load(config, split) for split in ('validation', 'train', 'test')]
  assert [len(source) for source in sources] == [10, 90, 20]
  assert sources[0].class_names == list(CIFAR_CLASSES)
  examples = [source[index] for source in sources for index in range(len(source))]
  place = {image.tobytes(): i for i, image in enumerate(pixels)}
  places = [place[example['image'].tobytes()] for example in examples]  # PNG keeps every bit
  assert sorted(places[:100]) == list(range(100)) and sorted(places[100:]) == list(range(100, 120))
  assert [int(example['label']) for example in examples] == [i % 10 for i in places]


def test_a_download_that_is_not_what_it_should_be_is_refused(tmp_path):
  _write_cifar(tmp_path)
  done = _build(tmp_path, '--name=cifar10', f'--data={tmp_path}')
  assert done.returncode == 1 and 'error: cifar10 cannot be built: NonMatchingChecksumError' in done.stderr
  assert 'Traceback' not in done.stderr
