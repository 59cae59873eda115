"""Fine-tuning as a person does it: released weights, converted, start a run of other classes and another size.

Real data: scikit-learn's digits 0 to 4, written as pictures of 16 x 16 pixels, are what the 'released' model knows; all
ten, of 8 x 8, are what it is tuned to.
"""

from __future__ import annotations

import functools
import json
import os
import pathlib
import re
import subprocess
import sys
from typing import Any, NamedTuple

import cv2
import jax
import numpy as np
import pytest
from sklearn import datasets

from perceiver_jax.commands.convert import convert
from perceiver_jax.commands.eval import evaluate
from perceiver_jax.config.saved import load_config
from perceiver_jax.data import images
from perceiver_jax.runs import weights
from perceiver_jax.runs.checkpoint import Checkpoints, load_weights
from perceiver_jax.tasks import image_classification
from perceiver_jax.training.experiment import build
from perceiver_jax.training.init_from import resize_grid

ROOT = pathlib.Path(__file__).resolve().parent.parent
HEAD, TABLE = {'decoder/output'}, {'positions'}

pytestmark = pytest.mark.slow


class Tuned(NamedTuple):
  """What the recipe left, and the log of its last run."""

  pretrained: pathlib.Path
  released: pathlib.Path
  workdir: pathlib.Path
  log: str


def _train(*arguments: str) -> str:
  """Runs train.py on one device; returns its stderr."""
  done = subprocess.run(
    [sys.executable, 'train.py', '--config=configs/digits.py:learned,debug', *arguments], cwd=ROOT,
    env={**os.environ, 'XLA_FLAGS': ''}, capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stderr
  return done.stderr


@pytest.fixture(scope='module')
def tuned(tmp_path_factory) -> Tuned:
  root = tmp_path_factory.mktemp('fine_tuning')
  digits = datasets.load_digits(n_class=5)
  for index, (image, label) in enumerate(zip(digits.images[:150], digits.target[:150], strict=True)):
    (root / 'pictures' / str(label)).mkdir(parents=True, exist_ok=True)
    picture = cv2.resize((image * 255 / 16).astype(np.uint8), (16, 16))
    cv2.imwrite(str(root / 'pictures' / str(label) / f'{index}.png'), picture)
  _train(
    f'--workdir={root}/pretrained', '--config.data.name=images', f'--config.data.path={root}/pictures',
    '--config.data.image_size=16', '--config.data.num_classes=5', '--config.optimizer.peak_lr=0.01')
  assert convert(['convert', f'{root}/pretrained', f'{root}/released']) == 0
  # The first step of a warm-up has a rate of 0: the checkpoint after it holds what the run started from.
  log = _train(
    f'--workdir={root}/tuned', f'--config.init_from={root}/released', '--config.checkpoint.every_steps=1',
    '--config.checkpoint.keep_last=100')
  return Tuned(root / 'pretrained', root / 'released', root / 'tuned', log)


def _start_of(workdir: pathlib.Path) -> Any:
  """The state that a run had after its first step."""
  config = load_config(workdir)
  template = jax.eval_shape(build(config, image_classification.make(config)).init)
  keep = config.checkpoint
  with Checkpoints(workdir / 'checkpoints', keep_last=keep.keep_last, best=keep.best) as checkpoints:
    return checkpoints.restore(1, template)[0]


def test_the_log_names_the_head_that_is_new_and_the_table_that_was_resized(tuned):
  assert 'params/positions/table interpolated from 16 x 16 to 8 x 8' in tuned.log
  not_taken = re.search(r'Not taken, of another shape \((\d+)\): (.*)', tuned.log)
  assert not_taken and not_taken[2].split(', params/') == [
    'params/decoder/output/b (5,) -> (10,)', 'decoder/output/w (16, 5) -> (16, 10)']
  taken = re.search(rf'Taken from {tuned.released} \((\d+)\): (.*)', tuned.log)
  assert taken and taken[2].endswith(', ...') and taken[2].count(', ') == 5
  params = weights.load(tuned.released).params
  assert int(taken[1]) == sum(len(leaves) for name, leaves in params.items() if name not in HEAD | TABLE)
  assert 'Not used' not in tuned.log and 'not there' not in tuned.log


def test_tuning_starts_from_the_features_that_were_trained(tuned):
  released, (_, pretrained, _) = weights.load(tuned.released).params, load_weights(tuned.pretrained)
  jax.tree.map(np.testing.assert_array_equal, released, pretrained)
  start = _start_of(tuned.workdir)
  assert int(start.step) == 1
  for name in released.keys() - HEAD - TABLE:
    jax.tree.map(np.testing.assert_array_equal, start.params[name], released[name])
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), start.ema[name], released[name])
  np.testing.assert_array_equal(
    start.params['positions']['table'], resize_grid(released['positions']['table'], 16, 8))
  config = load_config(tuned.pretrained)
  untrained = build(config, image_classification.make(config)).init().params
  for name in ('processor/self_attend_0/attention/query', 'encoder/cross_attend_0/attention/key', 'decoder/output'):
    assert np.abs(untrained[name]['w'] - released[name]['w']).max() > 1e-3  # or it would have learned nothing


def test_tuning_trains_all_of_the_model_to_its_end(tuned):
  lines = [json.loads(line) for line in (tuned.workdir / 'metrics.jsonl').read_text().splitlines()]
  assert lines[-1]['step'] == 20 and 0 <= lines[-1]['test/accuracy'] <= 1
  start, (_, end, _) = _start_of(tuned.workdir), load_weights(tuned.workdir, 'latest')
  still = [name for name in end if not any(np.any(end[name][leaf] != start.params[name][leaf]) for leaf in end[name])]
  assert still == []


@pytest.mark.parametrize('split', ['test', 'validation'])
def test_a_run_has_the_same_figures_by_its_workdir_as_a_model_and_converted(tuned, tmp_path, capsys, split):
  assert convert(['convert', str(tuned.workdir), str(tmp_path / 'converted')]) == 0
  capsys.readouterr()
  figures = []
  for arguments in (
    [f'--workdir={tuned.workdir}'], [f'--model={tuned.workdir}'], [f'--model={tmp_path}/converted'],
    [f'--model={tmp_path}/converted', '--batch_size=24'],
  ):
    assert evaluate(['eval', f'--split={split}', *arguments]) == 0
    figures.append(dict(line.split(': ') for line in capsys.readouterr().out.splitlines()))
  assert figures[0].pop('step').isdecimal()
  assert figures[0].keys() == {'examples', f'{split}/loss', f'{split}/accuracy'}
  assert figures[1] == figures[2] == figures[0]
  for name, value in figures[3].items():
    np.testing.assert_allclose(float(value), float(figures[0][name]), rtol=2e-5)
  last = json.loads((tuned.workdir / 'metrics.jsonl').read_text().splitlines()[-1])
  if split == 'test':
    np.testing.assert_allclose(float(figures[0]['test/loss']), last['test/loss'], rtol=1e-4)


def test_a_model_is_evaluated_on_the_data_of_its_config_and_on_other_data(tuned, tmp_path, capsys):
  """The pictures of the test split alone, in a folder that says so, have the figures of the test split."""
  config = load_config(tuned.released)
  source = images.load(config.data, 'test', is_training=False).source
  for index in range(len(source)):
    picture = pathlib.Path(source.name(index))
    for split in ('train', 'validation', 'test'):
      (tmp_path / split / picture.parent.name).mkdir(parents=True, exist_ok=True)
      (tmp_path / split / picture.parent.name / picture.name).write_bytes(picture.read_bytes())
  said = []
  for arguments in ([], ['--split=validation', f'--data_path={tmp_path}']):
    assert evaluate(['eval', f'--model={tuned.released}', *arguments]) == 0
    said.append(capsys.readouterr().out)
  assert said[1].replace('validation/', 'test/') == said[0] and 'test/accuracy' in said[0]
