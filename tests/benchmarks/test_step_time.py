"""The benchmark of a training step: that it is the step of the config, and that its figures follow from the times."""

from __future__ import annotations

import json

import numpy as np
import pytest

from benchmarks import step_time
from benchmarks.timing import Taken
from configs import imagenet
from perceiver_jax.planning.flops import forward_flops
from perceiver_jax.processes import parallel
from perceiver_jax.tasks import make_task

FIGURES = ('seconds', 'cpu_seconds', 'examples_per_second', 'flops_per_second', 'product_flops_per_second', 'share')


@pytest.mark.slow
def test_a_config_of_mixed_pictures_from_the_command_to_the_table(tmp_path, capsys, quick_compilation):
  path, count = tmp_path / 'results' / 'step.json', parallel.num_devices()
  assert step_time.main([
    'step_time', '--config=configs/imagenet.py:debug', f'--batch_size={count}', '--config.model.num_latents=3',
    '--repeats=1', f'--json={path}']) == 0
  result = json.loads(path.read_text())
  [row] = result['rows']
  assert (row['batch_size'], row['devices'], row['config']) == (count, count, 'configs/imagenet.py:debug')
  for name in FIGURES:
    assert 0 < row[name]['min'] == row[name]['median'] == row[name]['max']
  assert row['examples_per_second']['median'] == pytest.approx(count / row['seconds']['median'])
  config = imagenet.get_config('debug')
  config.model.num_latents = 3
  assert row['flops_per_example'] == 3 * forward_flops(config)
  assert row['peak_bytes'] >= row['temp_bytes'] + row['argument_bytes'] > row['temp_bytes'] > 0
  assert row['compile_seconds'] > 0
  assert result['settings']['config']['model']['num_latents'] == 3
  assert {'python', *step_time.PACKAGES} == set(result['versions'])
  printed = capsys.readouterr()
  assert '| configs/imagenet.py:debug |' in printed.out and 'Compiling' in printed.err


def test_a_share_is_of_the_products_of_the_same_round():
  taken = [Taken(1.0, 1.0), Taken(2.0, 1.0), Taken(4.0, 1.0)]
  row = step_time.rates_of(taken, [100.0, 25.0, 50.0], batch_size=5, flops_per_example=10)
  assert row['flops_per_second'] == {'median': 25.0, 'min': 12.5, 'max': 50.0}
  assert row['share'] == {'median': 0.5, 'min': 0.25, 'max': 1.0}
  assert row['examples_per_second']['median'] == 2.5


def test_pictures_that_are_mixed_come_with_a_partner():
  for mixing, names in (('none', set()), ('half_and_half', {'partner', 'partner_label', 'place'})):
    config = imagenet.get_config('debug')
    config.batch_size, config.data.mixing = 6, mixing
    batch = step_time.batch_of(config, make_task(config))
    assert set(batch) == {'image', 'label', 'mask', 'key'} | names
    assert {len(array) for array in batch.values()} == {6}
    assert np.unique(batch['image']).size > 100  # noise


@pytest.mark.parametrize(('flags', 'message', 'exit_code'), [
  (['--config=configs/imagenet.py:debug', '--batch_size=3'], 'batch_size=3 does not divide', 1),
  (['--config=configs/imagenet.py:debug', '--config.model.num_latent=3'], 'Did you mean --config.model.num_latents', 2),
  (['--config=configs/imagenet.py:debug', 'more'], "unexpected argument 'more'", 2),
  (['--config=configs/optical_flow.py', '--batch_size=8'], 'no training data yet', 1)])
def test_what_cannot_be_measured_is_refused(tmp_path, capsys, flags, message, exit_code):
  assert step_time.main(['step_time', f'--json={tmp_path / "x.json"}', *flags]) == exit_code
  assert message in capsys.readouterr().err
