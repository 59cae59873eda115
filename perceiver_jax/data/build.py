"""Builds an image classification set of TensorFlow Datasets, stored as array_record: `make imagenet DATA=DIR`.

  DATA/ILSVRC2012_img_{train,val}.tar -> DATA/imagenet2012/5.1.0/     what data/tfds_images.py reads

TFDS's own builder does it: it alone needs TensorFlow, hence an environment of its own, requirements-tf.txt. It writes
into a directory called incomplete.*, which gets its name when all is done: an interrupted build never looks finished.
"""

from __future__ import annotations

import argparse
import io
import pathlib
import shutil
import sys
import tarfile

from perceiver_jax.types import UserError

TARS = ('ILSVRC2012_img_train.tar', 'ILSVRC2012_img_val.tar')
END = bytes(2 * tarfile.BLOCKSIZE)          # of any tar
NUM_RECORDS = {'train': 1_281_167, 'validation': 50_000}  # of imagenet2012


def build(name: str, data: pathlib.Path) -> pathlib.Path:
  """Builds DATA/<name>/<version>, which is returned, unless it is there.

  Args:
    name: what TFDS calls the set.
    data: the directory of the archives that TFDS does not download itself; what it downloads goes below it as well.

  Raises:
    UserError: there is no such set, an archive is missing or broken, it cannot be downloaded, the disk is too small, or
      the set is there in another format.
  """
  is_built = any((data / name).glob('**/dataset_info.json'))
  if is_built and any((data / name).glob('**/*.tfrecord*')):
    raise UserError(f'{data / name} is there already, as tfrecord. Move it away, or choose another DATA.')
  if name == 'imagenet2012' and not is_built:
    _check_tars(data)
  import tensorflow_datasets as tfds

  try:
    builder = tfds.builder(name, data_dir=data, file_format='array_record')
  except (ValueError, AssertionError, ImportError) as error:  # no such name, configuration or version; no such library
    raise UserError(f'TFDS {tfds.__version__} has no data set {name!r}: {_first_line(error)}') from error
  directory = pathlib.Path(builder.data_path)
  if (directory / 'dataset_info.json').is_file():
    print(f'{directory} is there already.', file=sys.stderr)
  else:
    _report_left_over(directory.parent)
    # Its downloads, as of cifar10, may also be put beside DATA/<name> by hand.
    download_config = tfds.download.DownloadConfig(manual_dir=data)
    try:
      builder.download_and_prepare(download_dir=data / 'downloads', download_config=download_config)
    except (
      OSError, AssertionError, tarfile.TarError, tfds.download.DownloadError,
      tfds.core.download.download_manager.NonMatchingChecksumError, tfds.core.download.extractor.ExtractError,
    ) as error:
      raise UserError(f'{name} cannot be built: {type(error).__name__}: {str(error).strip()}') from error
  for split, info in builder.info.splits.items():
    print(f'{split}: {info.num_examples} records in {info.num_shards} files')
    if name == 'imagenet2012' and info.num_examples != NUM_RECORDS.get(split, info.num_examples):
      print(f'warning: {split} of ImageNet has {NUM_RECORDS[split]} records: these tars are not those of ILSVRC 2012',
            file=sys.stderr)
  return directory


def _check_tars(data: pathlib.Path) -> None:
  missing = [tar for tar in TARS if not (data / tar).is_file()]
  if missing:
    raise UserError(
      f'{" and ".join(missing)} must lie in {data}: register at https://image-net.org/download-images, put '
      f'{" and ".join(TARS)} there, and run\n  make imagenet DATA={data}')
  for tar in TARS:
    if not _is_whole(data / tar):
      raise UserError(f'{data / tar} does not end as a tar does: it was not downloaded to its end, or is something '
                      'else. Download it again.')
  # TFDS sorts through a copy of the pictures; as it is read, the result is written, so that both are one.
  wanted = round(1.1 * sum((data / tar).stat().st_size for tar in TARS))
  free = shutil.disk_usage(data).free
  if free < wanted:
    raise UserError(f'{data} has {free / 1e9:.0f} GB free; building needs {wanted / 1e9:.0f}, beside the tars.')


def _is_whole(tar: pathlib.Path) -> bool:
  """Whether it ends as every tar does. TFDS notices after an hour, or takes what there is for all of it."""
  try:
    with tar.open('rb') as file:
      size = file.seek(0, io.SEEK_END)
      file.seek(max(0, size - len(END)))
      return size % tarfile.BLOCKSIZE == 0 and file.read() == END
  except OSError as error:
    raise UserError(f'{tar} cannot be read: {error.strerror}') from error


def _first_line(error: Exception) -> str:
  return (str(error).strip() or type(error).__name__).splitlines()[0]


def _report_left_over(directory: pathlib.Path) -> None:
  for path in sorted(directory.glob('incomplete.*')):
    print(f'{path} was left by a build that was killed; unless one is running now: rm -r {path}', file=sys.stderr)


def main() -> int:
  """The command; returns its exit code."""
  parser = argparse.ArgumentParser(
    prog='python -m perceiver_jax.data.build', description='Builds DATA/NAME, stored as array_record.')
  parser.add_argument('--name', default='imagenet2012', help='what TFDS calls the set (default: %(default)s)')
  parser.add_argument('--data', required=True, type=pathlib.Path, help='where the archives are, and the result goes')
  arguments = parser.parse_args()
  data = arguments.data.expanduser().resolve()
  try:
    if not data.is_dir():
      raise UserError(f'there is no directory {data}')
    directory = build(arguments.name, data)
  except UserError as error:
    print(f'error: {error}', file=sys.stderr)
    return 1
  except KeyboardInterrupt:
    return 130
  print(f'Built. To train on it: --config.data.name=tfds_images --config.data.path={directory.parent}')
  return 0


if __name__ == '__main__':
  sys.exit(main())
