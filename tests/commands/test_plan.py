"""The command line of `plan`."""

from __future__ import annotations

import json
import pathlib

import pytest

from perceiver_jax.commands.plan import plan

ROOT = pathlib.Path(__file__).resolve().parents[2]
DEBUG = '--config=configs/digits.py:debug'


@pytest.fixture(autouse=True)
def in_the_clone(monkeypatch):
  monkeypatch.chdir(ROOT)
  monkeypatch.setattr('perceiver_jax.planning.rate.LARGEST', 256)  # soon done


@pytest.mark.parametrize(('arguments', 'message'), [
  ([], '--config is missing'),
  (['--config.model.num_latents=4'], '--config is missing'),
  (['--config=configs/imagnet.py'], 'Did you mean configs/imagenet.py?'),
  ([DEBUG, '--config.model.num_latent=4'], 'Did you mean --config.model.num_latents?'),
  ([DEBUG, '--device=2'], "Unknown command line flag 'device'"),
  ([DEBUG, '--devices=0'], '--devices=0 must be more than 0'),
  ([DEBUG, '--memory_gib=inf'], '--memory_gib=inf must be more than 0, and finite'),
  ([DEBUG, '--memory_gib=-1'], '--memory_gib=-1 must be more than 0'),
  ([DEBUG, '--fit'], '--fit needs a budget'),
  ([DEBUG, '--fit', '--gflops=0'], '--gflops=0 must be more than 0'),
  ([DEBUG, '--gflops=3'], '--gflops goes with --fit alone'),
  ([DEBUG, '--json=missing/x.json'], 'there is no directory missing; make it first'),
  ([DEBUG, 'more'], "unexpected argument 'more'"),
])
def test_a_mistake_on_the_command_line_is_answered_at_once(arguments, message, capsys):
  assert plan(['plan', *arguments]) == 2
  said = capsys.readouterr()
  assert message in said.err and said.out == ''


@pytest.mark.parametrize(('arguments', 'message'), [
  (['--config.num_steps=0'], 'num_steps is 0; it must be at least 1'),
  (['--config.task=imag_classification'], "Did you mean 'image_classification'?"),
  (['--devices=3'], 'batch_size=16 does not divide over --devices=3'),
  (['--memory_gib=1e-6'], 'does not even hold parameters'),
  (['--fit', '--gflops=1e-9'], 'the budget is too small'),
])
def test_what_cannot_be_planned_is_answered_with_what_to_do(arguments, message, capsys):
  assert plan(['plan', DEBUG, *arguments]) == 1
  said = capsys.readouterr()
  assert message in said.err and 'Traceback' not in said.err and said.out == ''


def test_a_plan_is_printed_and_written(tmp_path, capsys):
  path = tmp_path / 'plan.json'
  assert plan(['plan', DEBUG, '--devices=2', '--memory_gib=1', f'--json={path}']) == 0
  out = capsys.readouterr().out
  written = json.loads(path.read_text())
  assert out.startswith('configs/digits.py:debug (image_classification) on 2 devices')
  assert f'{written["parameters"]:,}' in out and written['num_devices'] == 2 and 'fit' not in written
  assert f'{written["largest"]["at_a_time"]:,}' in out


def test_what_is_fitted_is_what_is_planned(tmp_path, capsys):
  path = tmp_path / 'plan.json'
  assert plan(['plan', DEBUG, '--devices=1', '--fit', '--gflops=0.0005', f'--json={path}']) == 0
  written = json.loads(path.read_text())
  assert written['flops']['forward'] == written['fit']['proposed']['flops'] <= 0.0005e9
  assert 'Proposed, and planned below: --config.model.num_latents=' in capsys.readouterr().out


def test_a_key_of_the_config_changes_the_plan(capsys):
  figures = []
  for channels in (16, 32):
    assert plan(['plan', DEBUG, '--devices=1', f'--config.model.latent_channels={channels}']) == 0
    figures.append(capsys.readouterr().out.splitlines()[2])
  assert figures[0].startswith('parameters') and figures[0] != figures[1]


def test_a_directory_in_place_of_a_file_is_refused_before_anything_is_measured(tmp_path, capsys):
  assert plan(['plan', DEBUG, '--devices=1', f'--json={tmp_path}']) == 2
  assert f'--json={tmp_path} is a directory; name a file' in capsys.readouterr().err


def test_help_names_every_flag(capsys):
  assert plan(['plan', '--help']) == 0
  out = capsys.readouterr().out
  assert all(f'--{flag}' in out or f'--[no]{flag}' in out
             for flag in ('devices', 'memory_gib', 'compile', 'fit', 'gflops', 'json'))
