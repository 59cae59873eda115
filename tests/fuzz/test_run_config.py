"""Any config.json in a folder is a config or one UserError."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import strategies as st
from ml_collections import ConfigDict

from perceiver_jax.config import overrides
from perceiver_jax.config.saved import check_workdir, differences, load_config, to_json
from perceiver_jax.config.values import check, flatten
from perceiver_jax.types import UserError
from tests.conftest import ROOT
from tests.fuzz.edits import VALUES, edited_bytes, edited_json
from tests.fuzz.harness import answer, cases

WHOLE = overrides.load(f'{ROOT}/configs/digits.py:debug')
TEXT = to_json(WHOLE)
LONG = TEXT.replace('"seed": 0', f'"seed": {"9" * 5_000}')


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp('run')


def _check(folder, content: bytes) -> None:
  (folder / 'config.json').write_bytes(content)
  found = answer(load_config, folder)
  if isinstance(found, UserError):
    return
  assert isinstance(found, ConfigDict) and found.is_locked
  answer(check, found)
  assert isinstance(differences(found, WHOLE), list)
  answer(lambda: check_workdir(WHOLE, folder, is_new=True))
  again = json.loads(to_json(found))
  if not any(isinstance(value, float) and math.isnan(value) for value in flatten(found).values()):
    (folder / 'config.json').write_text(json.dumps(again))
    assert not differences(load_config(folder), found)


@cases(100, content=edited_bytes([TEXT.encode(), LONG.encode()]))
def test_a_file_with_other_bytes(folder, content):
  _check(folder, content)


@cases(150, values=edited_json(json.loads(TEXT)))
def test_a_file_with_other_values(folder, values):
  _check(folder, json.dumps(values).encode())


@cases(100, content=st.one_of(st.binary(max_size=40), VALUES.map(lambda value: json.dumps(value).encode())))
def test_a_file_of_anything(folder, content):
  _check(folder, content)
