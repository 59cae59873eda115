"""The command `prepare_records`: a set of TensorFlow Datasets, stored as tfrecord, into array_record for training.

    python -m perceiver_jax prepare_records SOURCE DEST

Exit codes are those of `train`; see commands/answer.py.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path

from absl import flags

from perceiver_jax.commands.answer import answer, asks_for_help, show_text, source_and_dest
from perceiver_jax.runs.files import disk_errors


def prepare_records(argv: Sequence[str] | None = None) -> int:
  """Converts SOURCE, a directory of TFDS stored as tfrecord, to DEST, the same as array_record, without TensorFlow.

  `--config.data.path=DEST` reads it. What was interrupted goes on when it is started again. Returns the exit code.
  """
  return answer(_read, argv)


def _read(argv: list[str]) -> Callable[[], int]:
  if asks_for_help(argv):
    return functools.partial(show_text, prepare_records.__doc__ or '')
  source, dest = source_and_dest(flags.FlagValues()(argv))
  return functools.partial(_convert, Path(source), Path(dest))


def _convert(source: Path, dest: Path) -> int:
  from perceiver_jax.data import tfrecord

  with disk_errors(f'{dest} cannot be written'):
    num_records = tfrecord.convert(source, dest)
  return show_text(f'{dest} holds {num_records} records; train on it with --config.data.path={dest}')
