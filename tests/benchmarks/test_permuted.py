"""The permuted study: a run from start to result, what stops it, and the table and picture made of the results."""

from __future__ import annotations

import json
import pathlib

import pytest
from PIL import Image

from benchmarks import permuted, permuted_report
from configs import placed_digits
from perceiver_jax.tasks import image_classification
from perceiver_jax.training.evaluate import evaluate_workdir

WHAT = {'seed': 0, 'model': 'io', 'order': 'permuted'}


def test_a_run_ends_with_the_test_accuracy_of_its_last_step_and_of_those_before(tmp_path):
  config = placed_digits.get_config('io,permuted,debug')
  config.optimizer.update({'peak_lr': 0.01, 'warmup_steps': 0})
  assert permuted.train(config, tmp_path, WHAT) == 0
  result = permuted.read_result(tmp_path)
  assert result.items() >= {**WHAT, 'examples': 20 * 16}.items()
  assert list(result['accuracy']) == ['25%', '50%', '100%']
  task = image_classification.make(config)
  last = evaluate_workdir(config, str(tmp_path), task, splits=('test',), checkpoint='latest')
  assert (last['step'], last['examples']) == (20, 3590)
  assert result['accuracy']['100%'] == pytest.approx(last['test/accuracy'])
  assert len(set(result['accuracy'].values())) > 1


def test_a_run_that_fails_is_named_with_its_log_and_ends_the_others(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(permuted, 'folder', lambda name, quick: tmp_path / name)
  assert not permuted.run_all(['0-nonsense-raw', '0-io-raw'], quick=True, processes=1)
  captured = capsys.readouterr()
  assert '0-nonsense-raw ended with exit code 1' in captured.err and 'goes on from here' in captured.err
  assert not (tmp_path / '0-io-raw/result.json').exists()
  assert "no variant 'nonsense'" in (tmp_path / '0-nonsense-raw/log.txt').read_text()


def test_a_run_that_has_a_result_is_not_repeated(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(permuted, 'folder', lambda name, quick: tmp_path / name)
  (tmp_path / 'done').mkdir()
  (tmp_path / 'done/result.json').write_text('{"accuracy": {}}')
  assert permuted.run_all(['done'], quick=True, processes=1)
  assert '0 of 1 runs to do' in capsys.readouterr().out
  assert not (tmp_path / 'done/log.txt').exists()


@pytest.fixture
def study():
  """Every seed's raw accuracy is 0.9, and permuted 0.5, 0.6, 0.7; a quarter and a half of the way, 0.1 and 0.2."""
  runs = [
    {'seed': seed, 'model': model, 'order': order, 'parameters': 1234, 'examples': 128_000,
     'accuracy': {'25%': 0.1, '50%': 0.2, '100%': 0.9 if order == 'raw' else 0.5 + 0.1 * seed}}
    for seed in permuted.SEEDS for model in permuted.MODELS for order in permuted.ORDERS]
  return {'date': '2026-01-02', 'versions': {'jax': '0.0'}, 'runs': runs}


def test_the_table_has_a_line_for_each_model_with_means_ranges_and_what_the_paper_prints(study):
  lines = permuted_report.table(study).splitlines()
  assert len(lines) == 2 + len(permuted.MODELS)
  assert '128,000 examples' in lines[0]
  (vit,) = (line for line in lines if line.startswith('| ViT, 4 x 4 patches'))
  assert '| 1,234 | 10.0 / 20.0 / **90.0** (90.0 to 90.0) | 10.0 / 20.0 / **60.0** (50.0 to 70.0) | -30.0 |' in vit
  assert vit.endswith('| 76.7 -> 61.7 |')


def test_what_is_written_reads_back_and_leaves_the_rest_of_the_readme_alone(study, tmp_path):
  readme = tmp_path / 'README.md'
  readme.write_text('before\n<!-- permuted -->\nold\n<!-- permuted -->\nafter\n')
  permuted_report.write(study, tmp_path / 'sub/permuted.json', tmp_path / 'permuted.png', readme)
  assert json.loads((tmp_path / 'sub/permuted.json').read_text()) == study
  lines = (tmp_path / 'sub/permuted.json').read_text().splitlines()
  assert sum('"model"' in line for line in lines) == len(study['runs'])
  between = f'{permuted_report.MARK}{permuted_report.table(study)}{permuted_report.MARK}'
  assert readme.read_text() == f'before\n{between}after\n'
  assert Image.open(tmp_path / 'permuted.png').width == 1400


def test_the_readme_shows_what_was_measured():
  study = json.loads(permuted.RESULTS.read_text())
  runs = sorted((run['seed'], run['model'], run['order']) for run in study['runs'])
  assert runs == sorted((seed, model, order) for seed in permuted.SEEDS for model in permuted.MODELS
                        for order in permuted.ORDERS)
  assert len({run['examples'] for run in study['runs']}) == 1
  readme = (pathlib.Path(permuted.ROOT) / 'README.md').read_text()
  assert readme.split(permuted_report.MARK)[1] == permuted_report.table(study)
