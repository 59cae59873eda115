"""The six models that the authors of Perceiver IO (2107.14795) released: where their files are, and a verified copy.

A file is fetched once, into `$XDG_CACHE_HOME/perceiver_jax` (`~/.cache/perceiver_jax` where that is not set). The
authors publish no checksums, so the SHA-256 of what came first is kept beside it, and every later use is held to it.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import urllib.request
from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict
from tqdm import tqdm

from perceiver_jax.config.saved import load_config
from perceiver_jax.types import UserError

LICENCE = 'CC BY 4.0'
CREDIT = 'Google DeepMind: the authors of Perceiver IO (Jaegle et al., arXiv 2107.14795)'

_PLACE = 'https://storage.googleapis.com/perceiver_io/'
_TIMEOUT = 60                               # [s] without a byte
_CHUNK = 2 ** 20                            # [bytes]


class Model(NamedTuple):
  """One released file, a pickle for `pystate.read`. Its size is not known before the server tells it."""

  url: str
  licence: str = LICENCE                    # of the parameters
  credit: str = CREDIT                      # which the licence asks to name


MODELS = {
  'imagenet_fourier': Model(_PLACE + 'imagenet_fourier_position_encoding.pystate'),
  'imagenet_learned': Model(_PLACE + 'imagenet_learned_position_encoding.pystate'),
  'imagenet_conv': Model(_PLACE + 'imagenet_conv_preprocessing.pystate'),
  'masked_lm': Model(_PLACE + 'language_perceiver_io_bytes.pickle'),
  'optical_flow': Model(_PLACE + 'optical_flow_checkpoint.pystate'),
  'video_autoencoding': Model(_PLACE + 'video_autoencoding_checkpoint.pystate'),
}


def fetch(name: str, cache_directory: str | os.PathLike | None = None) -> Path:
  """The path of a released file, downloaded if it is not in the cache; never half a file.

  A file that someone put into the cache by hand is taken as it is.

  Args:
    name: a key of `MODELS`.
    cache_directory: what holds the files, in place of the user's cache.

  Raises:
    UserError: an unknown name; no connection, or one that was cut; a file that is no pickle, or has changed since it
      was first used; a cache that cannot be written.
  """
  if name not in MODELS:
    raise UserError(f'there is no released model {name!r}. There are: {", ".join(MODELS)}')
  url = MODELS[name].url
  path = _cache(cache_directory) / url.rpartition('/')[2]
  if path.exists():
    _verify(path, path, url)
    return path
  unfinished = path.with_name(f'{path.name}.{os.getpid()}.part')
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise UserError(
      f'cannot make the cache {path.parent}: {error.strerror}. XDG_CACHE_HOME can name another place') from error
  try:
    _download(url, unfinished)
    _verify(unfinished, path, url)
    unfinished.replace(path)
  except (OSError, http.client.HTTPException) as error:
    raise UserError(
      f'cannot fetch {url}: {error}. Fetch it by hand and put it at {path}, or say where it is: load(..., path=FILE), '
      'or --path=FILE') from error
  finally:
    with contextlib.suppress(OSError):      # which would hide what went wrong before
      unfinished.unlink()
  return path


def config(name: str) -> ConfigDict:
  """The locked config of a released model, a key of `MODELS`."""
  return load_config(Path(__file__).parent / 'released' / name)


def _cache(directory: str | os.PathLike | None) -> Path:
  if directory is not None:
    return Path(directory)
  return Path(os.environ.get('XDG_CACHE_HOME') or '~/.cache').expanduser() / 'perceiver_jax'


def _download(url: str, path: Path) -> None:
  with urllib.request.urlopen(url, timeout=_TIMEOUT) as answer, path.open('wb') as file:
    size = answer.length                    # None where the server does not say
    with tqdm(total=size, desc=url.rpartition('/')[2], unit='B', unit_scale=True, unit_divisor=1024) as bar:
      while chunk := answer.read(_CHUNK):
        file.write(chunk)
        bar.update(len(chunk))
    if size is not None and file.tell() != size:  # which http.client does not tell
      raise ConnectionError(f'the connection was cut after {file.tell()} of {size} bytes')


def _verify(content: Path, path: Path, url: str) -> None:
  """Checks `content`, the file that is at `path` or will be, against the record beside `path`, made where missing."""
  record = path.with_name(f'{path.name}.sha256')
  try:
    with content.open('rb') as file:
      if file.read(1) != b'\x80':           # a page that says 'not found' must not be what the cache trusts from now on
        raise UserError(f'{content} is no pickle, so not what {url} should give. Fetch that by hand, to {path}')
      file.seek(0)
      digest = hashlib.file_digest(file, 'sha256').hexdigest()
    if not record.exists():
      unfinished = record.with_name(f'{record.name}.{os.getpid()}.part')
      unfinished.write_text(f'{digest}  {path.name}\n')  # as `sha256sum --check` reads it
      unfinished.replace(record)
    trusted = record.read_text().partition(' ')[0].strip()
  except (OSError, ValueError) as error:
    raise UserError(f'cannot verify {path}: {error}') from error
  if digest != trusted:
    raise UserError(
      f'{path} is not what it was when it was first used: its SHA-256 is {digest}, {record.name} says {trusted}. '
      f'If you trust {url} today, delete both and fetch it again')
