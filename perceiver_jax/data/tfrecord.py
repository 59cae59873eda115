"""Converts a directory of TFDS from tfrecord, its default, to array_record, which is read at random. No TensorFlow.

  SOURCE/cifar10-train.tfrecord-00000-of-00001 -> DEST/cifar10-train.array_record-00000-of-00001

A tfrecord file is a run of: the length of a record (8 bytes, little endian), its masked CRC-32C (4), the record, its
masked CRC-32C (4). Records are copied as they are. Files are written into DEST.incomplete, one by one, and DEST gets
its name when all are there: a second start goes on with the first file that is missing.
"""

from __future__ import annotations

import json
import pathlib
import shutil
import struct
from collections.abc import Iterator

import google_crc32c
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from tqdm import tqdm

from perceiver_jax.data import tfds_directory
from perceiver_jax.types import UserError

MASK = 0xA282EAD8                           # what TensorFlow adds to a checksum, so that one of a checksum is another


def convert(source: pathlib.Path, dest: pathlib.Path) -> int:
  """Writes DEST, the set at SOURCE as array_record. Shows a bar; returns the number of records.

  Args:
    source: a version's directory, or DIR/<name> with one version.
    dest: the directory to make; the one above it is made as well.

  Raises:
    UserError: SOURCE is no set of TFDS, is no tfrecord, or has a missing or broken file; DEST is there.
    OSError: the disk is full, or may not be written.
  """
  source = tfds_directory.find(source)
  info = tfds_directory.open_directory(source).info
  if info.file_format != tfds.core.FileFormat.TFRECORD:
    raise UserError(f'{source} is stored as {info.file_format.value}, not as tfrecord.')
  if dest.exists():
    raise UserError(f'{dest} is there already: choose another DEST.')
  unfinished = dest.with_name(f'{dest.name}.incomplete')
  unfinished.mkdir(parents=True, exist_ok=True)
  total = sum(split.num_examples for split in info.splits.values())
  with tqdm(total=total, unit=' records', dynamic_ncols=True) as bar:
    for split in info.splits.values():
      for path, length in zip(map(pathlib.Path, split.filepaths), split.shard_lengths, strict=True):
        _convert_file(path, unfinished / path.name.replace('.tfrecord-', '.array_record-'), length)
        bar.update(length)
  for path in source.iterdir():
    if path.is_file() and '.tfrecord-' not in path.name:
      shutil.copyfile(path, unfinished / path.name)
  description = json.loads((source / 'dataset_info.json').read_text())
  (unfinished / 'dataset_info.json').write_text(json.dumps({**description, 'fileFormat': 'array_record'}, indent=2))
  unfinished.rename(dest)
  return total


def _convert_file(source: pathlib.Path, dest: pathlib.Path, length: int) -> None:
  """Converts one file, of `length` records, unless that was done before."""
  if dest.exists():
    return
  part = dest.with_name(f'{dest.name}.part')
  writer = ArrayRecordWriter(str(part), 'group_size:1')  # as TFDS has it: each can be read without its neighbours
  num_records = 0
  for record in read(source):
    writer.write(record)
    num_records += 1
  writer.close()
  if num_records != length:
    raise UserError(f'{source} has {num_records} records; by dataset_info.json it has {length}.')
  part.rename(dest)


def read(path: pathlib.Path) -> Iterator[bytes]:
  """Yields the records of a tfrecord file. Raises UserError where it is missing, cut short or damaged."""
  try:
    with path.open('rb') as file:
      left = path.stat().st_size
      while left:
        place = file.tell()
        header = file.read(12)
        length = int.from_bytes(header[:8], 'little')
        if length > left - 16 or _masked(header[:8]) != header[8:]:
          raise UserError(f'{path} is cut short or damaged at byte {place}: copy it again.')
        record = file.read(length)
        if _masked(record) != file.read(4):
          raise UserError(f'{path} is damaged after byte {place}: copy it again.')
        yield record
        left -= length + 16
  except OSError as error:
    raise UserError(f'cannot read {path}: {error.strerror}') from error


def _masked(content: bytes) -> bytes:
  """Returns the checksum as it stands in the file, 4 bytes."""
  checksum = google_crc32c.value(content)
  return struct.pack('<I', ((checksum >> 15 | checksum << 17) + MASK) & 0xFFFFFFFF)
