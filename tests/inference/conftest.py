"""Tiny models with random weights, in our own format, and a person's files."""

from __future__ import annotations

import pathlib

import cv2
import jax
import numpy as np
import pytest
from scipy.io import wavfile

from perceiver_jax.config import overrides
from perceiver_jax.inference.model import template
from perceiver_jax.runs import weights

ROOT = pathlib.Path(__file__).resolve().parents[2]
EXPERIMENTS = {
  'picture': 'imagenet.py:conv,debug', 'text': 'masked_lm.py:debug', 'flow': 'optical_flow.py:debug',
  'clip': 'video_autoencoding.py:debug', 'baseline': 'imagenet.py:vit,debug',
}


@pytest.fixture(scope='session')
def models(tmp_path_factory):
  """The directory that holds a model called as EXPERIMENTS says."""
  root = tmp_path_factory.mktemp('models')
  rng = np.random.default_rng(0)
  for name, experiment in EXPERIMENTS.items():
    config = overrides.load(f'{ROOT}/configs/{experiment}')
    params, state = jax.tree.map(lambda x: np.abs(rng.normal(size=x.shape)).astype(x.dtype), template(config))
    weights.save(root / name, config, params, state, licence='Nobody in particular, CC0')
  return root


@pytest.fixture(scope='session')
def files(tmp_path_factory):
  """The directory with first.png, second.png, clip.avi and sound.wav, as long as the tiny model needs."""
  root = tmp_path_factory.mktemp('files')
  rng = np.random.default_rng(0)
  for name in ('first.png', 'second.png'):
    cv2.imwrite(str(root / name), rng.integers(0, 256, (20, 30, 3), dtype=np.uint8))
  writer = cv2.VideoWriter(str(root / 'clip.avi'), cv2.VideoWriter_fourcc(*'MJPG'), 25, (32, 24))
  for _ in range(4):
    writer.write(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8))
  writer.release()
  wavfile.write(root / 'sound.wav', 25 * 32, rng.integers(-2**15, 2**15, 100).astype(np.int16))
  return root
