"""The benchmark of one cross-attend: its rows, its ratios, and that all of our paths do the same work."""

from __future__ import annotations

import json

import haiku as hk
import jax
import numpy as np
import pytest

from benchmarks import attention_scaling
from benchmarks.timing import Taken

KEYS = {
  'size', 'batch', 'num_latents', 'what', 'path', 'seconds', 'min', 'max', 'cpu_seconds', 'temp_bytes',
  'seconds_per_element', 'marginal_seconds_per_element', 'ratio_to_dense', 'ratio_to_dense_min', 'ratio_to_dense_max',
  'cpu_ratio_to_dense', 'ratio_to_official', 'ratio_to_official_min', 'ratio_to_official_max', 'cpu_ratio_to_official'}

pytestmark = pytest.mark.usefixtures('quick_compilation')


def _run(tmp_path, *flags):
  path = tmp_path / 'results' / 'scaling.json'
  assert attention_scaling.main(['attention_scaling', '--num_latents=4', '--batch=2', f'--json={path}', *flags]) == 0
  return json.loads(path.read_text())


def test_every_size_pass_and_path_has_a_row_of_positive_figures(tmp_path, capsys):
  paths = ['dense', 'factored']
  result = _run(tmp_path, '--sizes=4,8', '--repeats=1', '--threads=1', f'--paths={",".join(paths)}')
  rows = result['rows']
  assert [(row['size'], row['what'], row['path']) for row in rows] == [
    (size, what, path) for size in (4, 8) for what in ('forward', 'step') for path in paths]
  for row in rows:
    assert set(row) == KEYS
    assert row['min'] == row['seconds'] == row['max'] > 0  # of one round
    assert row['temp_bytes'] > 0
    assert row['seconds_per_element'] == row['seconds'] / (2 * row['size']**2)
    assert row['ratio_to_official'] is None
    assert (row['marginal_seconds_per_element'] is None) == (row['size'] == 4)
  assert set(result['hardware']) == {'processor', 'cores'}
  assert {'python', *attention_scaling.PACKAGES} == set(result['versions'])
  assert result['settings'] == {'threads': 1, 'repeats': 1, 'memory_gib': 8.0}
  assert result['skipped'] == []
  printed = capsys.readouterr()
  assert len(printed.out.splitlines()) == 2 + len(rows)
  assert '| 8 | 2 | 4 | step | factored |' in printed.out
  assert 'compiling factored' in printed.err


def test_of_one_round_a_ratio_is_the_quotient_of_the_times(tmp_path):
  rows = _run(tmp_path, '--sizes=4', '--repeats=1', '--what=forward')['rows']
  [dense, *_] = rows
  for row in rows:
    assert row['ratio_to_dense'] == pytest.approx(dense['seconds'] / row['seconds'])
    assert row['cpu_ratio_to_dense'] == pytest.approx(dense['cpu_seconds'] / row['cpu_seconds'])


def test_ratios_pair_the_rounds():
  taken = {'dense': [Taken(2.0, 1.0), Taken(9.0, 1.0)], 'factored': [Taken(1.0, 0.5), Taken(3.0, 0.1)]}
  assert attention_scaling.against('dense', taken, 'factored') == {
    'ratio_to_dense': 2.5, 'ratio_to_dense_min': 2.0, 'ratio_to_dense_max': 3.0, 'cpu_ratio_to_dense': 6.0}
  assert set(attention_scaling.against('official', taken, 'factored').values()) == {None}


def test_the_marginal_time_is_that_of_what_the_next_smaller_size_lacks():
  same = {'batch': 2, 'num_latents': 4, 'what': 'step', 'path': 'dense'}
  rows = [{**same, 'size': size, 'seconds': seconds} for size, seconds in ((3, 7.0), (1, 1.0), (2, 4.0))]
  rows.append({**same, 'path': 'chunked', 'size': 2, 'seconds': 100.0})
  marginal = [row['marginal_seconds_per_element'] for row in attention_scaling.with_marginal(rows)]
  assert marginal == [pytest.approx(3 / (2 * 5)), None, pytest.approx(3 / (2 * 3)), None]


def test_what_does_not_fit_is_said_and_left_out(tmp_path, capsys):
  result = _run(tmp_path, '--sizes=4', '--repeats=1', '--what=step', '--memory_gib=0', '--paths=dense,chunked')
  assert result['rows'] == []
  assert [(row['path'], row['what'], row['size']) for row in result['skipped']] == [
    ('dense', 'step', 4), ('chunked', 'step', 4)]
  assert all(row['temp_bytes'] > 0 for row in result['skipped'])
  printed = capsys.readouterr()
  assert 'Skipped' in printed.out and 'dense step at 4' in printed.out and '--memory_gib' in printed.err


@pytest.mark.parametrize(('flag', 'message'), [
  ('--paths=dense,best', "no 'best'"), ('--what=backward', "no 'backward'"),
  ('--official=nowhere', 'nowhere has no perceiver/io_processors.py')])
def test_what_there_is_not_is_refused(tmp_path, capsys, flag, message):
  assert attention_scaling.main(['attention_scaling', f'--json={tmp_path / "x.json"}', flag]) in (1, 2)
  assert message in capsys.readouterr().err
  assert not (tmp_path / 'x.json').exists()


def test_all_paths_do_the_same_work_in_different_ways():
  noise = np.random.default_rng(0)
  arrays = [noise.normal(size=shape).astype(np.float32) for shape in [(2, 5, 16), (2, 36, 3)]]
  models = {path: hk.transform(attention_scaling.ours(path, 6)) for path in attention_scaling.PATHS}
  params = jax.jit(models['dense'].init)(jax.random.key(0), *arrays)
  compiled = {}
  for path, model in models.items():
    shapes = jax.eval_shape(model.init, jax.random.key(0), *arrays)
    assert jax.tree.map(lambda x: x.shape, shapes) == jax.tree.map(lambda x: x.shape, params)
    compiled[path] = jax.jit(model.apply).lower(params, None, *arrays)
  for lowered in compiled.values():
    np.testing.assert_allclose(
      lowered.compile()(params, None, *arrays), compiled['dense'].compile()(params, None, *arrays), atol=1e-5)
  assert len({lowered.as_text() for lowered in compiled.values()}) == 3


def test_the_part_that_all_paths_share_can_be_measured_by_itself(tmp_path):
  [row] = _run(tmp_path, '--sizes=4', '--repeats=1', '--what=forward', '--paths=mlp')['rows']
  assert row['path'] == 'mlp' and row['seconds'] > 0 and row['ratio_to_dense'] is None
  arrays = np.ones((1, 2, 16), np.float32), np.ones((1, 4, 3), np.float32)
  shapes = {path: jax.eval_shape(hk.transform(attention_scaling.ours(path, 2)).init, jax.random.key(0), *arrays)
            for path in ('mlp', 'dense')}
  assert sorted(x.shape for x in jax.tree.leaves(shapes['mlp'])) == sorted(
    x.shape for name, leaves in shapes['dense'].items() if 'mlp' in name for x in leaves.values())


def test_a_step_differentiates_by_the_latents_and_all_parameters():
  work = attention_scaling.Work(4, 2, 3, 'step')
  value, (parameters, latents) = attention_scaling.program(attention_scaling.ours('dense', 4), work).run()
  assert value.shape == () and latents.shape == (2, 3, attention_scaling.LATENT_CHANNELS)
  zero = {name for name, leaves in parameters.items() for leaf, x in leaves.items() if not np.any(np.abs(x) > 1e-4)}
  assert zero <= {'cross_attend/attention/key'}  # its bias has none
  assert np.any(latents)
