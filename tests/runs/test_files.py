"""A save that fails, in one line."""

from __future__ import annotations

import logging as std_logging
import sys
from types import SimpleNamespace

import pytest
from absl import logging

from perceiver_jax.runs.files import check_local, disk_errors, quiet_orbax, write_atomically
from perceiver_jax.types import UserError

FULL = ('RESOURCE_EXHAUSTED: Error opening "zarr" driver: Error writing "params.w/.zarray" in OCDBT database at local '
        'file "/run/1.orbax-checkpoint-tmp/": Failed writing: "/run/d/9226": Failed to write 171 bytes to file 6: '
        "No space left on device [os_error_code='28'] [tensorstore_spec='{\"context\":{}, \"driver\":\"zarr\"}']")


@pytest.mark.parametrize(('error', 'message'), [
  (ValueError(FULL), 'No space left on device'),
  (ValueError('something else\nand more of it'), 'something else'),
  (OSError(28, 'No space left on device'), '[Errno 28] No space left on device'),
])
def test_what_the_system_says_is_all_that_is_told(error, message):
  with pytest.raises(UserError) as told, disk_errors('step 3 was not written'):
    raise error
  assert str(told.value) == f'step 3 was not written: {message}'


def test_errors_of_ours_pass():
  with pytest.raises(ZeroDivisionError), disk_errors('nothing'):
    raise ZeroDivisionError


@pytest.mark.parametrize(('path', 'level', 'is_shown'), [
  ('/lib/orbax/checkpoint/future.py', std_logging.ERROR, False),
  ('/lib/orbax/checkpoint/future.py', std_logging.WARNING, True),
  ('/perceiver_jax/training/loop.py', std_logging.ERROR, True),
])
def test_of_failures_only_those_of_orbax_itself_are_not_logged(path, level, is_shown, caplog):
  quiet_orbax()
  logging.get_absl_logger().handle(std_logging.LogRecord('absl', level, path, 1, 'it failed', None, None))
  assert [record.getMessage() for record in caplog.records] == ['it failed'] * is_shown


@pytest.mark.parametrize(('error', 'is_shown'), [
  (RuntimeError('Event loop is closed'), False), (RuntimeError('something else'), True), (ValueError(), True)])
def test_a_write_that_nobody_waits_for_is_not_shown(error, is_shown, monkeypatch):
  shown = []
  monkeypatch.setattr(sys, 'unraisablehook', shown.append)
  quiet_orbax()
  quiet_orbax()
  sys.unraisablehook(SimpleNamespace(exc_value=error))
  assert [unraisable.exc_value for unraisable in shown] == [error] * is_shown


@pytest.mark.parametrize(('error', 'is_shown'), [(ValueError(FULL), False), (ValueError('something else'), True)])
def test_of_what_asyncio_tells_of_failed_futures_those_of_a_full_disk_are_not_logged(error, is_shown, caplog):
  quiet_orbax()
  record = std_logging.LogRecord(
    'asyncio', std_logging.ERROR, 'x.py', 1, 'never retrieved', None, (type(error), error, None))
  std_logging.getLogger('asyncio').handle(record)
  assert [record.getMessage() for record in caplog.records] == ['never retrieved'] * is_shown


@pytest.mark.parametrize('address, advice', [
  ('gs://bucket/run', 'gcsfuse bucket /mnt/bucket'), ('s3://bucket/run', 'mount-s3 bucket'), ('GS://b', 'gcsfuse b'),
  ('hdfs://name/run', 'copy it to a disk'), ('file:///tmp/run', 'leave out the scheme: /tmp/run'),
  ('https://x/y', 'copy it to a disk'), ('az+x://y', 'copy it')])
def test_an_address_is_refused_with_what_to_do(address, advice):
  with pytest.raises(UserError) as caught:
    check_local('--workdir', address)
  assert f'--workdir={address} is an address' in str(caught.value) and advice in str(caught.value)


@pytest.mark.parametrize('path', [None, '', 'runs/a', '/a:b', 'c://d'.replace('//', '/'), '://x', '1a://x', 'a b://c'])
def test_a_path_is_no_address(path):
  assert check_local('--workdir', path) is None


def test_a_file_is_replaced_in_one_move(tmp_path):
  (tmp_path / 'x').write_text('old')
  write_atomically(tmp_path / 'x', 'new')
  assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [('x', 'new')]
