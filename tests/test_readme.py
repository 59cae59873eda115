"""What README.md and docs/ show is what there is: commands parse, the example task and the small config train."""

from __future__ import annotations

import importlib
import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys

import cv2
import numpy as np
import pytest

from perceiver_jax.commands.train import train

ROOT = pathlib.Path(__file__).resolve().parent.parent
README = (ROOT / 'README.md').read_text()
PAGES = [README, *(path.read_text() for path in sorted((ROOT / 'docs').glob('*.md')))]
OPERATIONS = (ROOT / 'docs' / 'operations.md').read_text()


def _lines(start: str) -> list[str]:
  """The lines of shell that start so; a line that ends with a backslash goes on."""
  blocks = [block for page in PAGES for block in re.findall(r'```sh\n(.*?)```', page, re.DOTALL)]
  lines = [line for block in blocks for line in block.replace('\\\n', ' ').splitlines()]
  return [line for line in lines if line.startswith(start)]


def _commands() -> list[str]:
  """Those that start a program of ours, on files that are here: test_every_command.py tries the example's."""
  return [line for line in _lines('python ') if 'rings' not in line]


def _files() -> dict[str, str]:
  """The Python blocks that follow a file's name in backquotes."""
  file = r'`((?:mytasks|configs)/[\w/]+\.py)`:\n\n```python\n(.*?)```'
  return dict(match for page in PAGES for match in re.findall(file, page, re.DOTALL))


def example_files() -> dict[str, str]:
  """The two files of the example task."""
  return {name: text for name, text in _files().items() if 'rings' in name}


@pytest.fixture
def clone(tmp_path):
  """A copy of the repository with the files that the pages show in it, on one device."""
  for name in ('perceiver_jax', 'configs'):
    shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns('__pycache__'))
  for name in ('train.py', 'eval.py'):
    shutil.copy(ROOT / name, tmp_path)
  for name, text in _files().items():
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(text)
  return tmp_path


def _train(clone: pathlib.Path, *arguments: str) -> dict[str, float]:
  """Runs train.py there; returns the last line of the metrics."""
  environment = {**os.environ, 'XLA_FLAGS': ''}
  subprocess.run([sys.executable, 'train.py', '--workdir=run', *arguments], cwd=clone, env=environment, check=True)
  return json.loads((clone / 'run' / 'metrics.jsonl').read_text().splitlines()[-1])


def test_the_pages_show_commands_and_files():
  assert len(_commands()) >= 4
  assert len(PAGES) >= 2
  assert set(_files()) == {'configs/flowers.py', 'mytasks/rings.py', 'configs/rings.py'}


def test_the_readme_is_short():
  assert len(README.splitlines()) <= 200


@pytest.mark.parametrize('command', [command for command in _commands() if 'train.py' in command])
def test_every_training_command_is_understood(command, capsys, monkeypatch):
  monkeypatch.chdir(ROOT)
  assert train([*shlex.split(command)[1:], '--print_config']) == 0
  assert json.loads(capsys.readouterr().out)['task']


@pytest.mark.parametrize('command', [command for command in _commands() if 'train.py' not in command])
def test_every_other_command_is_understood(command):
  _, program, *arguments = shlex.split(command)
  if program == '-m':
    program, *arguments = arguments
  if program == 'perceiver_jax':
    program, *arguments = arguments
  modules = {'eval.py': 'perceiver_jax.commands.eval'}
  module = program if '.' in program else f'perceiver_jax.commands.{program}'
  read = importlib.import_module(modules.get(program, module))._read
  assert callable(read([program, *arguments]))  # the work, not yet begun


@pytest.mark.parametrize('line', [*_lines('sbatch '), *_lines('launch/'), *_lines('kubectl ')])
def test_every_recipe_is_there_and_takes_what_it_is_given(line, capsys, monkeypatch):
  words = shlex.split(line)
  [place] = [place for place, word in enumerate(words) if word.startswith('launch/')]
  assert (ROOT / words[place]).is_file()
  flags = [word for word in words[place + 1:] if word.startswith('--')]
  monkeypatch.chdir(ROOT)
  assert train(['train.py', *flags, '--print_config']) == 0 if flags else 'apply' in words
  capsys.readouterr()


def test_the_log_is_read_as_the_page_on_operations_says(tmp_path, monkeypatch):
  log = tmp_path / 'runs' / 'digits' / 'metrics.jsonl'
  log.parent.mkdir(parents=True)
  values = [
    {'train/loss': 2.0, 'train/skipped_steps': 0.0, 'speed/examples_per_second': 9.0}, {'validation/loss': 1.5},
    {'train/loss': None, 'train/skipped_steps': 0.5, 'speed/examples_per_second': 8.0}, {'test/loss': 1.0}]
  log.write_text(''.join(json.dumps({'step': step, **line}) + '\n' for step, line in enumerate(values)))
  monkeypatch.chdir(tmp_path)
  [block] = re.findall(r'```python\n(.*?)```', OPERATIONS, re.DOTALL)
  names: dict = {}
  exec(block, names)
  assert names['losses'] == {0: 2.0, 2: None}
  if shutil.which('jq'):
    shown = [subprocess.check_output(line, shell=True, text=True).split() for line in _lines('jq ')]
    assert shown == [['1', '1.5'], ['[', '2', ']'], ['9']]


@pytest.mark.slow
def test_the_example_task_learns(clone):
  assert _train(clone, '--config=configs/rings.py', '--config.num_steps=150')['test/accuracy'] > 0.9


@pytest.mark.slow
def test_the_config_of_five_lines_trains_on_a_folder_of_images(clone):
  assert len([line for line in _files()['configs/flowers.py'].splitlines() if line.strip()]) == 5
  random = np.random.default_rng(0)
  for label in range(5):
    (clone / 'flowers' / f'flower{label}').mkdir(parents=True)
    for i in range(6):
      image = random.integers(0, 255, (20, 30, 3), dtype=np.uint8)
      cv2.imwrite(str(clone / 'flowers' / f'flower{label}' / f'{i}.png'), image)
  last = _train(clone, '--config=configs/flowers.py:debug', '--config.data.image_size=8')
  assert last['step'] == 20
  assert 0 <= last['test/accuracy'] <= 1
  assert (clone / 'run' / 'summary.png').stat().st_size > 10_000
