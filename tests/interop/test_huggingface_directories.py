"""As a person does it: load a directory of Hugging Face's here, and one of ours there."""

from __future__ import annotations

import subprocess
import sys

import jax
import numpy as np
import pytest

import perceiver_jax
from perceiver_jax.commands.convert import convert
from perceiver_jax.interop import huggingface
from perceiver_jax.types import UserError
from tests.interop.huggingface_models import CASES, error, pair, their_logits, transformers

pytestmark = pytest.mark.usefixtures('quick_compilation')


@pytest.fixture
def dead_process() -> int:
  """The id of a process that has ended."""
  process = subprocess.Popen([sys.executable, '-c', ''])
  process.wait()
  return process.pid


def _host(inputs):
  return jax.tree.map(np.asarray, inputs)


@pytest.mark.parametrize('name', CASES)
def test_a_directory_of_theirs_answers_here_as_there(name, tmp_path):
  each = pair(name)
  each.theirs.save_pretrained(tmp_path)
  expected = their_logits(each.theirs, each.inputs)
  logits = perceiver_jax.load(tmp_path).logits(**_host(each.inputs))
  assert jax.tree.map(np.shape, logits) == jax.tree.map(np.shape, expected)
  assert error(logits, expected) <= 2e-5


@pytest.mark.parametrize('name', CASES)
def test_a_directory_of_ours_answers_there_as_here(name, tmp_path):
  each = pair(name)
  huggingface.save(tmp_path / 'ours', each.config, each.params, each.state)
  theirs = getattr(transformers, CASES[name].architecture).from_pretrained(
    tmp_path / 'ours', attn_implementation='eager').eval()
  assert error(their_logits(theirs, each.inputs), their_logits(each.theirs, each.inputs)) <= 1e-6
  with pytest.raises(UserError, match=r'cannot write .*ours'):
    huggingface.save(tmp_path / 'ours', each.config, each.params, each.state)


def test_the_command_goes_there_and_back(tmp_path, capsys):
  each = pair('fourier')
  names = [f'kind {i}' for i in range(each.config.data.num_classes)]
  each.theirs.config.id2label = dict(enumerate(names))
  each.theirs.save_pretrained(tmp_path / 'theirs')
  assert convert(['convert', str(tmp_path / 'theirs'), str(tmp_path / 'ours')]) == 0
  assert convert(['convert', str(tmp_path / 'ours'), str(tmp_path / 'back'), '--to=huggingface']) == 0, (
    capsys.readouterr().err)
  expected = perceiver_jax.load(tmp_path / 'theirs').logits(**_host(each.inputs))
  again = perceiver_jax.load(tmp_path / 'back').logits(**_host(each.inputs))
  np.testing.assert_array_equal(again, expected)
  assert transformers.PerceiverConfig.from_pretrained(tmp_path / 'back').id2label == dict(enumerate(names))
  image = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
  for name in ('theirs', 'ours', 'back'):
    assert set(perceiver_jax.load(tmp_path / name).predict(image, top_k=len(names)).names) == set(names)


def test_what_a_killed_process_left_is_removed_by_the_next(tmp_path, dead_process):
  each = pair('fourier')
  (tmp_path / f'.ours.{dead_process}.tmp').mkdir()
  (tmp_path / f'.other.{dead_process}.tmp').mkdir()
  huggingface.save(tmp_path / 'ours', each.config, each.params, each.state)
  assert {path.name for path in tmp_path.iterdir()} == {'ours', f'.other.{dead_process}.tmp'}
