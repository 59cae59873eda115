"""Converts sets stored as tfrecord, written by tensorboardX's own writer; damage is named, an interruption goes on."""

from __future__ import annotations

import json
import pathlib

import numpy as np
import pytest
from tensorboardX.record_writer import RecordWriter

from benchmarks.photos import example
from perceiver_jax.commands.prepare_records import prepare_records
from perceiver_jax.data import tfds_images, tfrecord
from perceiver_jax.types import UserError
from tests.data.test_tfds_images import _config, _jpeg, _small, _write


def _write_tfrecord(path: pathlib.Path, records: list[bytes]) -> None:
  writer = RecordWriter(str(path))
  for record in records:
    writer.write(record)
  writer.close()


@pytest.fixture
def source(tmp_path):
  """A set of 11 records in two files for training, 3 in one for a test."""
  shards = [[example(image=_jpeg(i), label=i % 2) for i in range(first, stop)] for first, stop in ((0, 4), (4, 11))]
  splits = {'train': shards, 'test': [shards[0][:3]]}
  directory = _write(tmp_path / 'old' / 'pets' / '1.0.0', splits, fileFormat='tfrecord') / '1.0.0'
  for split, files in splits.items():
    for shard, records in enumerate(files):
      name = f'pets-{split}.array_record-{shard:05}-of-{len(files):05}'
      (directory / name).unlink()
      _write_tfrecord(directory / name.replace('array_record', 'tfrecord'), records)
  return directory


def _first(directory: pathlib.Path) -> pathlib.Path:
  return directory / 'pets-train.tfrecord-00000-of-00002'


def test_a_set_is_converted_by_the_command_that_its_refusal_names(source, tmp_path, capsys):
  with pytest.raises(UserError) as refused:
    tfds_images.load(_config(source), 'train', is_training=False)
  dest = tmp_path / 'new' / 'pets' / '1.0.0'
  command = str(refused.value).partition('python -m perceiver_jax ')[2].replace('ANOTHER_DIR', str(tmp_path / 'new'))
  assert prepare_records(command.split()) == 0
  assert f'{dest} holds 14 records' in capsys.readouterr().out
  found = tfds_images.load(_config(dest), 'train', is_training=False).source
  expected = tfds_images.load(
    _config(_write(tmp_path / 'same' / 'pets' / '1.0.0', {
      'train': [[example(image=_jpeg(i), label=i % 2) for i in range(11)]],
      'test': [[example(image=_jpeg(0), label=0)]],
    })), 'train', is_training=False).source
  assert len(found) == len(expected) == 10
  for index in range(10):
    np.testing.assert_array_equal(found[index]['image'], expected[index]['image'])
    assert found[index]['label'] == expected[index]['label']
  assert not dest.with_name('1.0.0.incomplete').exists()


def test_what_was_interrupted_goes_on(source, tmp_path, monkeypatch):
  dest, done = tmp_path / 'new', []
  convert_file = tfrecord._convert_file

  def stop_at_the_second(path, *others):
    if len(done) == 1:
      raise KeyboardInterrupt
    done.append(path)
    convert_file(path, *others)

  monkeypatch.setattr(tfrecord, '_convert_file', stop_at_the_second)
  with pytest.raises(KeyboardInterrupt):
    tfrecord.convert(source, dest)
  assert not dest.exists()
  monkeypatch.undo()
  written = next((tmp_path / 'new.incomplete').glob('*-00000-of-00002'))
  before = written.stat().st_mtime_ns
  assert tfrecord.convert(source, dest) == 14
  assert (dest / written.name).stat().st_mtime_ns == before


def test_records_are_read_as_another_writer_wrote_them(tmp_path):
  records = [b'', b'x', bytes(range(256)) * 300]
  _write_tfrecord(tmp_path / 'file', records)
  assert list(tfrecord.read(tmp_path / 'file')) == records


def test_a_file_cut_at_any_byte_or_with_any_byte_changed_is_named(tmp_path):
  path = tmp_path / 'file'
  _write_tfrecord(path, [b'one', b'three'])
  whole = path.read_bytes()
  for place in range(len(whole)):
    changed = bytearray(whole)
    changed[place] ^= 4
    path.write_bytes(changed)
    with pytest.raises(UserError, match=r'file is (cut short or )?damaged'):
      list(tfrecord.read(path))
    path.write_bytes(whole[:place])
    if place == 16 + len(b'one'):
      assert list(tfrecord.read(path)) == [b'one']  # convert counts
    elif place:
      with pytest.raises(UserError, match=r'file is cut short'):
        list(tfrecord.read(path))


@pytest.mark.parametrize('change, message', [
  (lambda path: path.unlink(), 'cannot read .*train.tfrecord-00000-of-00002: No such file'),
  (lambda path: path.write_bytes(path.read_bytes()[:-5]), 'train.tfrecord-00000-of-00002 is cut short'),
  (lambda path: path.write_bytes(b''), r'has 0 records; by dataset_info\.json it has 4'),
], ids=['missing', 'cut', 'empty'])
def test_a_file_that_is_not_whole_is_named_and_leaves_no_set(source, tmp_path, change, message):
  change(_first(source))
  with pytest.raises(UserError, match=message):
    tfrecord.convert(source, tmp_path / 'new')
  assert not (tmp_path / 'new').exists()


@pytest.mark.parametrize('arguments, exit_code, message', [
  (['nowhere', 'new'], 1, 'there is no directory nowhere'),
  (['one'], 2, 'SOURCE and DEST are needed; 1 arguments are given'),
  (['gs://bucket/set', 'new'], 2, 'SOURCE=gs://bucket/set is an address'),
  (['one', 'two', '--fast'], 2, 'Unknown command line flag'),
])
def test_mistakes_are_answered(arguments, exit_code, message, capsys, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert prepare_records(['prepare_records', *arguments]) == exit_code
  assert message in capsys.readouterr().err


def test_a_set_of_array_record_and_a_dest_that_is_there_are_refused(source, tmp_path):
  with pytest.raises(UserError, match='is stored as array_record, not as tfrecord'):
    tfrecord.convert(_small(tmp_path), tmp_path / 'new')
  with pytest.raises(UserError, match='is there already: choose another DEST'):
    tfrecord.convert(source, tmp_path)


def test_what_describes_the_set_comes_along(source, tmp_path):
  tfrecord.convert(source.parent, tmp_path / 'new')
  names = {path.name for path in (tmp_path / 'new').iterdir()}
  assert {'features.json', 'label.labels.txt', 'dataset_info.json'} <= names
  assert not [name for name in names if 'tfrecord' in name]
  assert json.loads((tmp_path / 'new' / 'dataset_info.json').read_text())['fileFormat'] == 'array_record'
