"""The benchmark of the data pipeline: that it measures what trains, and adds up. Nothing here depends on time."""

from __future__ import annotations

import collections
import json
import os
import pathlib
import sys

import numpy as np
import pytest
from ml_collections import ConfigDict

from benchmarks import data_throughput, photos
from perceiver_jax.data import pipeline, tfds_images
from perceiver_jax.data.tfds_images import decode

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
RESULTS = ROOT / 'benchmarks' / 'results'


@pytest.fixture(scope='module')
def train(tmp_path_factory):
  directory = tmp_path_factory.mktemp('data') / 'photos'
  photos.write_set(directory, [photos.jpeg(photos.photo(seed)) for seed in range(2)])
  config = ConfigDict({'path': str(directory), 'image_size': 224, 'num_channels': 3, 'num_classes': 1})
  return tfds_images.load(config, 'train', is_training=True)


def _is_figure(value):
  return set(value) == {'median', 'min', 'max'} and 0 < value['min'] <= value['median'] <= value['max']


def test_two_photographs_and_one_repeat_without_tensorflow(tmp_path, capsys):
  path = tmp_path / 'results' / 'speed.json'
  before = os.sched_getaffinity(0) if hasattr(os, 'sched_getaffinity') else None
  work = data_throughput._read(
    ['data_throughput', '--photos=2', '--batch_size=2', '--repeats=1', f'--json={path}',
     f'--tf_python={tmp_path / "none"}'])
  assert work() == 0
  result = json.loads(path.read_text())
  assert [row['pipeline'] for row in result['rows']] == ['training', 'evaluation']
  for row in result['rows']:
    assert _is_figure(row['ours'])
    assert row['ours']['min'] == row['ours']['max']  # of one repeat
    assert (row['tf_data'], row['ratio']) == (None, None)
  assert set(result['shares']) == {*data_throughput.STAGES, data_throughput.REST}
  assert abs(sum(result['shares'].values()) - 1) < 1e-9
  assert min(result['shares'][stage] for stage in data_throughput.STAGES) > 0
  assert set(result['hardware']) == {'processor', 'cores'}
  assert {'python', *data_throughput.PACKAGES} == set(result['versions'])
  assert result['settings']['photos'] == 2
  assert 80_000 < result['settings']['mean_bytes'] < 140_000
  printed = capsys.readouterr()
  assert '| training |' in printed.out and '| – | – |' in printed.out
  assert '.venv-tf' in printed.err and 'none' in printed.err  # how to get the ratio
  if before:
    assert os.sched_getaffinity(0) == before


def test_an_environment_without_tensorflow_is_refused(tmp_path, capfd):
  work = data_throughput._read(
    ['data_throughput', '--photos=1', '--batch_size=1', '--repeats=1', f'--json={tmp_path / "speed.json"}',
     f'--tf_python={sys.executable}'])
  assert work() == 1
  printed = capfd.readouterr().err
  assert "No module named 'tensorflow'" in printed and 'ended with exit code 1' in printed
  assert not (tmp_path / 'speed.json').exists()


def test_the_stages_that_are_timed_are_those_of_training(train):
  """The same pictures, to the bit, so nothing is timed that training does not do, and nothing is left out."""
  staged = data_throughput.Staged(train.source, collections.Counter())
  settings = {'batch_size': 4, 'seed': 3, 'num_threads': 1, 'is_training': True}
  ours = pipeline.batches(train, 'train', **settings)
  timed = pipeline.batches(train._replace(source=staged, prepare=staged.prepare), 'train', **settings)
  for _ in range(4):
    one, other = next(ours), next(timed)
    np.testing.assert_array_equal(one['image'], other['image'])
    np.testing.assert_array_equal(one['label'], other['label'])
    assert one['mask'].all()
  ours.close()
  timed.close()
  assert set(staged.seconds) == set(data_throughput.STAGES)


def test_a_pass_counts_the_pictures_made_in_it(train):
  with data_throughput.training(train, batch_size=2) as measure:
    num_images, seconds = measure()
  assert num_images >= len(train.source) and seconds > 0
  num_images, seconds = data_throughput.evaluation(train, batch_size=4)
  assert num_images == 2 and seconds > 0


def test_a_ratio_is_of_passes_next_to_each_other():
  rates = {
    'training': [100.0, 300.0, 200.0], 'training, tf.data': [50.0, 100.0, 50.0], 'evaluation': [10.0, 30.0, 20.0]}
  first, second = data_throughput.rows(rates)
  assert first['ours'] == {'median': 200, 'min': 100, 'max': 300}
  assert first['tf_data'] == {'median': 50, 'min': 50, 'max': 100}
  assert first['ratio'] == {'median': 3, 'min': 2, 'max': 4}
  assert (second['tf_data'], second['ratio']) == (None, None)


def test_passes_take_turns_and_the_first_round_does_not_count():
  seen = []

  def measure(name, seconds):
    seen.append(name)
    return 10, seconds

  times = iter([9.0, 9.0, 1.0, 2.0, 4.0, 5.0])
  rates = data_throughput.in_turns({name: lambda name=name: measure(name, next(times)) for name in ('a', 'b')}, 2)
  assert seen == ['a', 'b'] * 3
  assert rates == {'a': [10, 2.5], 'b': [5, 2]}


def test_what_a_host_needs_at_the_rate_of_the_paper():
  """4.85 steps a second of 1,024 examples of two pictures each, on 64 devices, of which a host has 4."""
  needs = data_throughput.needs(310.4)
  assert needs == pytest.approx(
    {'pictures_per_second_per_device': 155.2, 'pictures_per_second_per_host': 620.8, 'cores_per_host': 2})


def test_photographs_are_the_same_every_time_and_have_edges_and_detail():
  image = photos.photo(5)
  assert (image.shape, image.dtype) == ((375, 500, 3), np.uint8)
  np.testing.assert_array_equal(image, photos.photo(5))
  assert np.abs(image.astype(int) - photos.photo(6)).mean() > 20
  decoded = decode(photos.jpeg(image), 3)
  assert np.abs(decoded.astype(int) - image).mean() < 10
  assert 30 < image.std() < 80


def test_the_documents_show_the_figures_that_were_kept():
  table = data_throughput.report(json.loads((RESULTS / 'data_throughput.json').read_text()))
  assert table in (ROOT / 'docs' / 'data.md').read_text()
