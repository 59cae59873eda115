"""What the building of a set refuses before it needs TensorFlow; tests/tf tries the rest."""

from __future__ import annotations

import pathlib
import subprocess
import sys
import tarfile

import pytest

from perceiver_jax.data.build import _is_whole, build
from perceiver_jax.types import UserError

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
TRAIN, VALIDATION = 'ILSVRC2012_img_train.tar', 'ILSVRC2012_img_val.tar'


@pytest.mark.parametrize('present, missing', [((), f'{TRAIN} and {VALIDATION}'), ((TRAIN,), VALIDATION)])
def test_missing_tars_are_asked_for_with_the_command(tmp_path, present, missing):
  for name in present:
    (tmp_path / name).touch()
  with pytest.raises(UserError) as caught:
    build('imagenet2012', tmp_path)
  assert str(caught.value).startswith(f'{missing} must lie in {tmp_path}: register at https://image-net.org')
  assert str(caught.value).endswith(f'\n  make imagenet DATA={tmp_path}')


@pytest.mark.parametrize('content', [
  b'', b'<html>Log in</html>', bytes(1024)[:-1], bytes(1025), b'\xff' + bytes(1023), bytes(512)])
def test_what_does_not_end_as_a_tar_does_is_refused_before_an_hour_is_spent_on_it(tmp_path, content):
  (tmp_path / TRAIN).write_bytes(bytes(1024))
  (tmp_path / VALIDATION).write_bytes(content)
  with pytest.raises(UserError, match=rf'{VALIDATION} does not end as a tar does: .* Download it again\.'):
    build('imagenet2012', tmp_path)


def test_a_tar_that_python_wrote_is_whole_and_without_its_last_block_is_not(tmp_path):
  for name in (TRAIN, VALIDATION):
    with tarfile.open(tmp_path / name, 'w') as archive:
      archive.add(ROOT / 'README.md', 'n01440764_1.JPEG')
  assert _is_whole(tmp_path / TRAIN)
  content = (tmp_path / TRAIN).read_bytes()
  (tmp_path / TRAIN).write_bytes(content.rstrip(b'\0')[:-1])
  assert not _is_whole(tmp_path / TRAIN)


def test_a_tar_that_cannot_be_read_is_named(tmp_path):
  with pytest.raises(UserError, match=r'nothing\.tar cannot be read: No such file'):
    _is_whole(tmp_path / 'nothing.tar')


def test_a_disk_that_is_too_small_is_found_out_at_once(tmp_path):
  for name in (TRAIN, VALIDATION):
    with open(tmp_path / name, 'wb') as file:
      file.truncate(4 * 10**12)  # a hole: it takes no room
  with pytest.raises(UserError, match=r'GB free; building needs 8800, beside the tars'):
    build('imagenet2012', tmp_path)


def test_a_set_in_another_format_is_left_alone(tmp_path):
  directory = tmp_path / 'cifar10' / '3.0.2'
  directory.mkdir(parents=True)
  for name in ('dataset_info.json', 'cifar10-train.tfrecord-00000-of-00001'):
    (directory / name).touch()
  with pytest.raises(UserError, match=r'cifar10 is there already, as tfrecord\. Move it away, or choose another DATA'):
    build('cifar10', tmp_path)


@pytest.mark.slow
def test_the_command_answers_a_mistake_with_a_line_and_exit_code_1(tmp_path):
  command = [sys.executable, '-m', 'perceiver_jax.data.build', f'--data={tmp_path / "nowhere"}']
  done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
  assert (done.returncode, done.stdout) == (1, '')
  assert done.stderr == f'error: there is no directory {tmp_path / "nowhere"}\n'
