"""`eval.py --model` as a person meets it: what it says of missing data, of waiting, and of how much it has seen."""

from __future__ import annotations

import itertools
import pathlib

import cv2
import jax
import numpy as np
import pytest

from perceiver_jax.commands.eval import evaluate
from perceiver_jax.config import overrides
from perceiver_jax.inference.model import template
from perceiver_jax.runs import weights

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent


@pytest.fixture
def image_model(tmp_path):
  """Weights of a classifier of 5 kinds of pictures."""
  config = overrides.load(f'{ROOT}/configs/images.py:debug')
  config.data.update({'num_classes': 5, 'image_size': 8})
  params, state = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), template(config))
  weights.save(tmp_path / 'images', config, params, state)
  return tmp_path / 'images'


def _pictures(root: pathlib.Path, num_classes: int) -> pathlib.Path:
  """A folder of two pictures of each class in each split."""
  for split, label, i in itertools.product(('train', 'validation', 'test'), range(num_classes), range(2)):
    folder = root / split / f'kind{label}'
    folder.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(folder / f'{i}.png'), np.full((8, 8, 3), 9 * label, np.uint8))
  return root


def test_eval_of_a_model_without_its_data_says_which_flag_names_them(image_model, tmp_path, capsys):
  hint = ('With eval.py --model: --data_path=... says where the data of this model lies, and --data_name=images that '
          'they are a folder of pictures')
  for arguments, fragment in (
    ([], 'needs a folder'),
    ([f'--data_path={tmp_path}/nowhere'], f'there is no {tmp_path}/nowhere'),
    ([f'--data_path={_pictures(tmp_path / "three", 3)}'], 'config.data.num_classes is 5'),
  ):
    exit_code = evaluate(['eval', f'--model={image_model}', *arguments])
    said = capsys.readouterr().err.splitlines()
    assert (exit_code, fragment in said[0], said[-1]) == (1, True, hint), said


def test_eval_of_a_model_counts_its_examples_and_says_that_compiling_takes_a_while(image_model, tmp_path, capsys):
  pictures = _pictures(tmp_path / 'five', 5)
  assert evaluate(['eval', f'--model={image_model}', f'--data_path={pictures}', '--batch_size=8']) == 0
  said = capsys.readouterr()
  assert said.out.splitlines()[0] == 'examples: 10'
  assert said.err.splitlines().count('Compiling the model, which takes a while ...') == 1
