"""Any checkpoint is read or answered by one UserError, also where somebody made its digests fit what is in it."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest
from hypothesis import strategies as st

from perceiver_jax.runs import checkpoint
from perceiver_jax.runs.checkpoint import Checkpoints, DamagedCheckpoint, load_weights
from perceiver_jax.types import TrainState, UserError
from tests.fuzz.edits import TEXTS, VALUES, edited_bytes, edited_json
from tests.fuzz.harness import answer, cases

STATE = TrainState(
  step=np.int32(2), params={'perceiver/query': {'w': np.arange(6, dtype=np.float32).reshape(2, 3)}}, state={},
  opt_state={'mean': np.zeros(3, np.float32)}, ema=None, num_skipped=np.int32(0))


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """A folder with a checkpoint of step 2, and the content of its files by name."""
  folder = tmp_path_factory.mktemp('run')
  with Checkpoints(folder / 'checkpoints', keep_last=2, best='lowest validation/loss') as checkpoints:
    checkpoints.save(2, STATE, {'time': 1.5}, {'validation/loss': 0.5})
  step = folder / 'checkpoints' / '2'
  return step, {str(file.relative_to(step)): file.read_bytes() for file in sorted(step.rglob('*')) if file.is_file()}


@pytest.fixture(scope='module')
def record(run):
  return {key: value for key, value in json.loads(run[1]['checkpoint.json']).items() if key != 'sha256'}


def _read(step) -> list:
  folder = step.parent.parent
  found = [answer(load_weights, folder), answer(load_weights, folder, 'latest', STATE)]
  for each in found:
    assert isinstance(each, UserError) or all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(each[1:]))
  return found


def _with(run, name: str, content: bytes, *, sealed: bool = False) -> list:
  """What comes of the checkpoint with another content of one file, which is then put back."""
  step, files = run
  (step / name).write_bytes(content)
  if sealed:
    record = checkpoint._read_record(step)
    record['files'][name] = checkpoint._file_digest(step / name)
    checkpoint._replace_record(step, record)
  try:
    return _read(step)
  finally:
    for changed in (name, 'checkpoint.json'):
      (step / changed).write_bytes(files[changed])


def _changed(run, name: str) -> st.SearchStrategy[bytes]:
  return edited_bytes([run[1][name]]).filter(lambda content: content != run[1][name])


@cases(60, data=st.data())
def test_a_record_with_other_bytes_is_never_believed(run, data):
  content = data.draw(_changed(run, 'checkpoint.json'), 'content')
  for found in _with(run, 'checkpoint.json', content):
    assert isinstance(found, DamagedCheckpoint) or _says_the_same(content, run[1]['checkpoint.json'])


def _says_the_same(content: bytes, whole: bytes) -> bool:
  try:
    return json.loads(content) == json.loads(whole)
  except ValueError:
    return False


@cases(80, data=st.data())
def test_a_record_of_anything_that_is_sealed(run, record, data):
  step, files = run
  checkpoint._replace_record(step, data.draw(st.one_of(
    edited_json(record), _FILES.map(lambda files: {**record, 'files': files}),
    st.dictionaries(TEXTS, VALUES)).filter(lambda record: isinstance(record, dict)), 'record'))
  try:
    _read(step)
  finally:
    (step / 'checkpoint.json').write_bytes(files['checkpoint.json'])


_FILES = st.dictionaries(
  st.one_of(TEXTS, st.sampled_from(
    ['state/../../x', '/dev/zero', '../../../../../../dev/zero', 'state', '.', 'state/_METADATA'])),
  st.one_of(VALUES, st.just('0' * 64)), max_size=3)


@cases(50, data=st.data())
def test_other_bytes_of_any_file_are_never_believed(run, data):
  name = data.draw(st.sampled_from(sorted(name for name in run[1] if name.startswith('state/'))), 'name')
  for found in _with(run, name, data.draw(_changed(run, name), 'content')):
    assert isinstance(found, DamagedCheckpoint)


@cases(80, data=st.data())
def test_other_bytes_of_any_file_that_are_sealed(run, data):
  name = data.draw(st.sampled_from(sorted(name for name in run[1] if name.startswith('state/'))), 'name')
  _with(run, name, data.draw(_changed(run, name), 'content'), sealed=True)


@cases(60, data=st.data())
def test_a_tree_of_anything_that_is_sealed(run, data):
  tree = data.draw(edited_json(json.loads(run[1]['state/_METADATA'])), 'tree')
  _with(run, 'state/_METADATA', json.dumps(tree).encode(), sealed=True)
