"""Checkpoints that somebody made to harm, with digests that fit: each is answered by a line."""

from __future__ import annotations

import json

import numpy as np
import pytest

from perceiver_jax.runs import checkpoint
from perceiver_jax.runs.checkpoint import Checkpoints, DamagedCheckpoint, load_weights
from perceiver_jax.types import TrainState, UserError

STATE = TrainState(
  step=np.int32(1), params={'query': {'w': np.ones((2, 3), np.float32)}}, state={}, opt_state={}, ema=None,
  num_skipped=np.int32(0))


@pytest.fixture
def saved(tmp_path):
  with Checkpoints(tmp_path / 'checkpoints', keep_last=1, best='lowest validation/loss') as checkpoints:
    checkpoints.save(1, STATE, {}, {'validation/loss': 1.0})
  assert load_weights(tmp_path)[0] == 1
  return tmp_path / 'checkpoints' / '1'


def _seal(saved, **changes):
  """Rewrites checkpoint.json with other values, and with the digests that all files have now."""
  record = json.loads((saved / 'checkpoint.json').read_text())
  del record['sha256']
  record['files'] = {name: checkpoint._file_digest(saved / name) for name in record['files']}
  checkpoint._replace_record(saved, record | changes)


@pytest.mark.parametrize('changes', [
  {'extras': []}, {'metrics': None}, {'metrics': {'validation/loss': 'low'}}, {'metrics': {'validation/loss': 10**400}},
  {'best': ['validation/loss']}, {'files': []}, {'files': {'../../x': ''}}, {'files': {'/dev/zero': ''}},
  {'files': {'state/../../../x': ''}}, {'files': {'checkpoint.json': ''}}], ids=str)
def test_a_record_that_is_not_as_we_write_it_is_damage(saved, changes):
  _seal(saved, **changes)
  with pytest.raises(DamagedCheckpoint, match=r'checkpoint\.json is not as we write it'):
    load_weights(saved.parent)


def test_a_record_nested_without_end_is_damage(saved):
  (saved / 'checkpoint.json').write_text('[' * 100_000)
  with pytest.raises(DamagedCheckpoint, match=r'checkpoint\.json cannot be read'):
    load_weights(saved.parent)


def test_a_device_in_place_of_a_file_is_not_read(saved):
  (saved / 'state' / '_METADATA').unlink()
  (saved / 'state' / '_METADATA').symlink_to('/dev/zero')
  with pytest.raises(DamagedCheckpoint, match='state/_METADATA has changed'):
    load_weights(saved.parent)


@pytest.mark.parametrize('content', [b'', b'{', b'{}', b'[]', b'{"tree_metadata": {"x": 1}}'])
def test_a_tree_that_orbax_cannot_read_is_named(saved, content):
  (saved / 'state' / '_METADATA').write_bytes(content)
  _seal(saved)
  with pytest.raises(UserError, match=r'checkpoint .*/1 (cannot be read, though its digests fit|is not one of ours)'):
    load_weights(saved.parent)
