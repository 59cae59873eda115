"""The command `convert`: from a run, and from a file of the authors', to weights that run nothing."""

from __future__ import annotations

import pathlib
import pickle

import jax
import numpy as np
import pytest

import perceiver_jax
from perceiver_jax.commands.convert import convert
from perceiver_jax.config import overrides
from perceiver_jax.inference.model import template
from perceiver_jax.interop import deepmind
from perceiver_jax.runs import weights

ROOT = pathlib.Path(__file__).resolve().parents[2]


def _random(config):
  rng = np.random.default_rng(0)
  return jax.tree.map(lambda x: rng.normal(size=x.shape).astype(x.dtype), template(config))


@pytest.mark.slow
def test_a_file_of_the_authors_becomes_a_directory_that_gives_the_same_answers(tmp_path, capsys):
  config = overrides.load(f'{ROOT}/configs/video_autoencoding.py')  # the smallest of the six
  params, state = _random(config)
  foreign: dict = {}
  for module, leaves in params.items():
    for leaf, value in leaves.items():
      path, name = deepmind.foreign_name(config.task, f'{module}:{leaf}').rsplit(':', 1)
      foreign.setdefault(path, {})[name] = value
  file = tmp_path / 'video_autoencoding_checkpoint.pystate'
  file.write_bytes(pickle.dumps(foreign, protocol=4))
  assert convert(['convert', str(file), str(tmp_path / 'out'), '--model=video_autoencoding']) == 0
  assert 'try: python -m perceiver_jax predict' in capsys.readouterr().out
  loaded = weights.load(tmp_path / 'out')
  jax.tree.map(np.testing.assert_array_equal, (loaded.params, loaded.state), (params, state))
  assert loaded.metadata['source'] == 'video_autoencoding' and 'CC BY 4.0' in loaded.metadata['licence']
  assert perceiver_jax.load(tmp_path / 'out').credit == loaded.metadata['licence']
  capsys.readouterr()
  assert convert(['convert', str(file), str(tmp_path / 'other'), '--model=optical_flow']) == 1
  error = capsys.readouterr().err
  assert 'looks like video_autoencoding, not optical_flow: it does not fit this model' in error
  assert not (tmp_path / 'other').exists()


@pytest.mark.parametrize(('arguments', 'exit_code', 'message'), [
  ([], 2, 'SOURCE and DEST are needed; 0 arguments are given'),
  (['{file}', '{dest}'], 1, 'which released model does it hold?'),
  (['{file}', '{dest}', '--model=imagenet'], 1, "'imagenet' is no released model"),
  (['{file}', '{dest}', '--model=masked_lm'], 1, 'cannot read'),
  (['{missing}', '{dest}'], 1, 'nor a directory'),
  (['{directory}', '{dest}', '--model=masked_lm'], 1, 'leave out --model'),
  (['{file}', '{dest}', '--to=onnx'], 2, 'huggingface'),
])
def test_a_wrong_conversion_is_answered_in_a_line_and_leaves_nothing(arguments, exit_code, message, tmp_path, capsys):
  (tmp_path / 'file').write_text('<html>not found</html>')
  (tmp_path / 'directory').mkdir()
  places = {name: tmp_path / name for name in ('directory', 'file', 'dest', 'missing')}
  assert convert(['convert', *(argument.format(**places) for argument in arguments)]) == exit_code
  error = capsys.readouterr().err
  assert message in error and 'Traceback' not in error
  assert not (tmp_path / 'dest').exists()
