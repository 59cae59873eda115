"""Any command line is answered: by the config that it asks for, or by a line that says what is wrong with it."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path

import pytest
from hypothesis import strategies as st

from perceiver_jax.commands.answer import answer as run_command
from perceiver_jax.commands.eval import _read as read_eval
from perceiver_jax.commands.train import train
from perceiver_jax.config import overrides
from perceiver_jax.config.values import flatten
from tests.conftest import ROOT
from tests.fuzz.edits import NUMBERS, TEXTS, VALUES, edited_bytes
from tests.fuzz.harness import answer, cases

DIGITS = ROOT / 'configs' / 'digits.py'
KEYS = sorted(flatten(overrides.load(f'{DIGITS}:debug')))

_keys = st.one_of(
  st.sampled_from([*KEYS, 'model', 'model.position', '']),
  st.sampled_from(KEYS).flatmap(lambda key: edited_bytes([key.encode()])).map(lambda key: key.decode('latin1')), TEXTS)
_values = st.one_of(
  VALUES.map(repr), VALUES.map(json.dumps), NUMBERS.map(str), TEXTS,
  st.sampled_from(
    ['nan', '-inf', '1e400', '9' * 5_000, '(' * 300, '[' * 3_000 + ']' * 3_000, '-' * 5_000 + '1', 'None']))
_overrides = st.builds('{}{}{}{}'.format, st.sampled_from(['--config.', '-config.', '--noconfig.']), _keys,
                       st.sampled_from(['=', '=', '=', '', ' ']), _values)
_flags = st.builds('--{}{}'.format, st.sampled_from([
  'workdir=', 'profile=', 'config=', 'noworkdir', 'undefok=', 'help=', 'helpfull', 'version', 'flagfile=x', 'peer=',
  '']), _values)
# --print_config comes first, so that nothing is trained; nothing here may take it back or swallow it.
_arguments = st.lists(st.one_of(_overrides, _overrides, _flags, TEXTS), max_size=4)


def _said(command, argv: list[str]) -> tuple[int, str, str]:
  """Exit code, stdout and stderr of a command on streams as a process has them."""
  out, err = io.TextIOWrapper(io.BytesIO(), 'utf-8'), io.TextIOWrapper(io.BytesIO(), 'utf-8', 'backslashreplace')
  with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
    exit_code = command(argv)
    out.flush()
    err.flush()
  return exit_code, out.buffer.getvalue().decode(), err.buffer.getvalue().decode()


@cases(120, arguments=_arguments)
def test_any_overrides_are_answered(arguments):
  argv = ['train.py', '--print_config', f'--config={DIGITS}:debug', *arguments]
  exit_code, out, err = _said(train, argv)
  assert exit_code in (0, 2), err
  assert (exit_code == 0) == bool(out) and (exit_code == 2) == err.startswith('error: '), err


@cases(50, key=st.sampled_from(KEYS), value=_values)
def test_any_value_of_a_key_is_taken_as_it_is_shown_or_refused(key, value):
  argv = ['train.py', '--print_config', f'--config={DIGITS}', f'--config.{key}={value}']
  exit_code, out, err = _said(train, argv)
  assert exit_code in (0, 2), err
  assert exit_code == 2 or isinstance(json.loads(out), dict)


@cases(60, arguments=st.lists(st.one_of(
  st.builds('--{}{}'.format, st.sampled_from(
    ['workdir=', 'model=', 'path=', 'checkpoint=', 'split=', 'batch_size=', 'config=', 'data_path=', 'nomodel=']),
    _values),
  TEXTS.filter(lambda text: text != '--')), max_size=3))
def test_any_command_line_of_eval_is_read_or_refused(arguments):
  """Without the work itself, which has its own subjects."""
  exit_code, _, err = _said(lambda argv: run_command(_read_only, argv), ['eval.py', *arguments])
  assert exit_code in (0, 2), err


def _read_only(argv: list[str]):
  assert callable(read_eval(argv))
  return lambda: 0


@pytest.fixture(scope='module')
def path(tmp_path_factory) -> Path:
  (folder := tmp_path_factory.mktemp('experiment') / 'configs').mkdir()
  return folder / 'stranger.py'


@cases(60, name=st.one_of(
  TEXTS, TEXTS.map(lambda text: f'{DIGITS}{text}'), TEXTS.map(lambda text: f'{DIGITS}:{text}'),
  edited_bytes([f'{DIGITS}:perceiver,debug'.encode()]).map(lambda name: name.decode('utf-8', 'surrogateescape'))))
def test_any_name_of_a_config_is_found_or_refused(name):
  answer(overrides.load, name)


@cases(60, content=edited_bytes([DIGITS.read_bytes(), b'\xef\xbb\xbf# coding: latin1\nget_config = 1\n']))
def test_a_broken_config_file_is_refused(path, content):
  path.write_bytes(content)
  answer(overrides.load, str(path))
