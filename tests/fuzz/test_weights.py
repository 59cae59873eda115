"""Any directory given as weights, converted or Hugging Face's, is read or answered by one UserError."""

from __future__ import annotations

import json
import struct

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from ml_collections import ConfigDict

from perceiver_jax.interop import torch_file
from perceiver_jax.runs import weights
from perceiver_jax.types import UserError
from tests.fuzz.edits import NUMBERS, TEXTS, VALUES, edited_bytes, edited_json
from tests.fuzz.harness import answer, cases

PARAMS = {'perceiver/query': {'w': np.arange(6, dtype=np.float32).reshape(2, 3), 'b': np.ones(3, jnp.bfloat16)}}
STATE = {'batch_norm': {'counter': np.int32(3), 'empty': np.zeros((0, 2))}}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp('weights') / 'converted'
  weights.save(folder, ConfigDict({'task': 'image_classification'}), PARAMS, STATE, class_names=['cat', 'dog'])
  return folder


@pytest.fixture(scope='module')
def whole(folder):
  return (folder / weights.ARRAYS).read_bytes()


def _check(folder, content: bytes) -> None:
  (folder / weights.ARRAYS).write_bytes(content)
  found = answer(weights.load, folder)
  if weights.is_weights(folder) and not isinstance(found, UserError):
    answer(weights.check_fits, found.params, found.state, (PARAMS, STATE), 'the weights')
    assert all(isinstance(array, np.ndarray) for array in weights.entries(found.params, found.state).values())
  (folder / 'model.safetensors').write_bytes(content)
  tensors = answer(torch_file.read, folder)
  assert isinstance(tensors, UserError) or all(isinstance(array, np.ndarray) for array in tensors.values())


def _file(header: object, data: bytes, longer: int = 0) -> bytes:
  text = json.dumps(header).encode()
  return struct.pack('<Q', (len(text) + longer) % 2**64) + text + data


@cases(150, data=st.data(), memory=2**28)
def test_edited_arrays(folder, whole, data):
  _check(folder, data.draw(edited_bytes([whole]), 'content'))


@cases(150, data=st.data(), memory=2**28)
def test_arrays_with_an_edited_header(folder, whole, data):
  size = int.from_bytes(whole[:8], 'little')
  header = data.draw(edited_json(json.loads(whole[8:8 + size])), 'header')
  _check(folder, _file(header, whole[8 + size:], data.draw(st.sampled_from([0, 0, 0, 1, -1, 2**40, 2**63]), 'longer')))


_KINDS = [
  'F64', 'F32', 'F16', 'BF16', 'I64', 'I32', 'I8', 'U8', 'BOOL', 'U64', 'F8_E4M3', 'F8_E5M2', 'F8_E8M0', 'F4', 'C64']
_names = st.one_of(TEXTS, st.sampled_from(
  ['params/a/w', 'params/a/b/w', 'state/a/w', 'params//w', 'params/a/', 'params', 'x/a/w', '__metadata__']))


@st.composite
def _arrays(draw):
  """Arrays that lie one after the other, as they must, of sizes that mostly fit their kind."""
  header: dict = {'__metadata__': {'format': 'perceiver_jax', 'version': '1'}}
  data = draw(st.sampled_from([b'', bytes(64), b'\xff' * 64, b'\0\0\x80\x7f' * 16]))
  start = 0
  for _ in range(draw(st.integers(0, 4))):
    kind = draw(st.sampled_from(_KINDS))
    shape = draw(st.one_of(
      st.lists(st.sampled_from([0, 1, 2, 3, 2**31, 2**62, 2**63, 2**64 - 1]), max_size=3),
      st.sampled_from([[1] * 70, [0] * 40])))
    bits = int(''.join(filter(str.isdigit, kind)) if kind[:2] not in ('F8', 'BO') else 8)
    size = draw(st.one_of(st.just(int(np.prod(np.array(shape, object))) * bits // 8), st.integers(0, 64)))
    header[draw(_names)] = {'dtype': kind, 'shape': shape, 'data_offsets': [start, start + size]}
    start += size
  return _file(header, data[:start] if draw(st.booleans()) else data)


@cases(150, content=_arrays(), memory=2**28)
def test_arrays_of_any_kind_and_shape(folder, content):
  _check(folder, content)


@cases(80, header=VALUES, data=st.binary(max_size=40), figure=NUMBERS, memory=2**28)
def test_arrays_of_anything(folder, header, data, figure):
  _check(folder, _file(header, data))
  _check(folder, data + str(figure).encode())


_index = st.one_of(VALUES, st.dictionaries(st.sampled_from(['weight_map', 'metadata']), st.one_of(
  VALUES, st.dictionaries(TEXTS, TEXTS, max_size=3))))


@cases(80, index=_index)
def test_an_index_of_anything(folder, index):
  for name in ('model.safetensors', 'pytorch_model.bin'):
    (folder / name).unlink(missing_ok=True)
  (folder / 'model.safetensors.index.json').write_text(json.dumps(index))
  found = answer(torch_file.read, folder)
  assert found == {} or isinstance(found, UserError)
  (folder / 'model.safetensors.index.json').unlink()
