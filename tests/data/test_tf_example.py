"""Records as TensorFlow writes them."""

from __future__ import annotations

import pytest

from perceiver_jax.data.tf_example import parse

# tf.train.Example(...).SerializeToString(deterministic=True) of TensorFlow 2.21, with file_name [b'a', b''], image
# [b'\xff\xd8'], label [-1, 0, 127, 128, 2 ** 40], score [0.5], and none, which has no value at all.
RECORD = bytes.fromhex(
  '0a670a140a0966696c655f6e616d6512070a050a01610a000a0f0a05696d61676512060a040a02ffd80a210a056c6162656c12181a160a14ff'
  'ffffffffffffffff01007f80018080808080200a080a046e6f6e6512000a110a0573636f7265120812060a040000003f')
WANTED = {'file_name': [b'a', b''], 'image': [b'\xff\xd8'], 'label': [-1, 0, 127, 128, 2**40], 'none': []}


def test_a_record_of_tensorflow_is_read():
  assert parse(RECORD, tuple(WANTED)) == WANTED
  assert parse(RECORD, ('label',)) == {'label': WANTED['label']}
  assert parse(RECORD, ('labels',)) == {}
  assert parse(b'', ('label',)) == {}


def test_integers_may_come_one_by_one():
  # Field 1, kind 0, 7; then 300, of two bytes: what a writer that does not pack them gives.
  integers = bytes([1 << 3, 7, 1 << 3, 0xac, 2])
  value = bytes([3 << 3 | 2, len(integers)]) + integers
  entry = bytes([1 << 3 | 2, 1]) + b'n' + bytes([2 << 3 | 2, len(value)]) + value
  features = bytes([1 << 3 | 2, len(entry)]) + entry
  assert parse(bytes([1 << 3 | 2, len(features)]) + features, ('n',)) == {'n': [7, 300]}


def test_floats_are_refused_only_where_they_are_asked_for():
  with pytest.raises(ValueError, match="'score' holds floats"):
    parse(RECORD, ('score',))


@pytest.mark.parametrize('length', range(1, len(RECORD)))
def test_a_record_that_was_cut_off_is_refused(length):
  with pytest.raises(ValueError, match=r'no tf\.train\.Example'):
    parse(RECORD[:length], tuple(WANTED))


@pytest.mark.parametrize('record', [b'\xff' * 20, b'\x0b', b'\x0a\xff\xff\xff\xff\x0f', bytes([0x0a, 2, 0x0a, 9])])
def test_what_is_no_record_is_refused(record):
  with pytest.raises(ValueError, match=r'no tf\.train\.Example'):
    parse(record, ('label',))
