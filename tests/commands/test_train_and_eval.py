"""The command line: what people get wrong is answered in a line or two, at once, and all else reaches the run."""

from __future__ import annotations

import itertools
import json
import os
import pathlib
import subprocess
import sys

import cv2
import jax
import numpy as np
import pytest

from perceiver_jax.commands import compilation_cache
from perceiver_jax.commands.answer import answer as run_command, set_xla_flags
from perceiver_jax.commands.convert import convert
from perceiver_jax.commands.eval import evaluate
from perceiver_jax.commands.plan import plan
from perceiver_jax.commands.predict import predict
from perceiver_jax.commands.train import train
from perceiver_jax.config import overrides
from perceiver_jax.config.saved import save_config
from perceiver_jax.inference.model import template
from perceiver_jax.runs import weights
from perceiver_jax.types import NumericsError, UserError

ROOT = pathlib.Path(__file__).resolve().parents[2]
DIGITS = '--config=configs/digits.py'


@pytest.fixture(autouse=True)
def in_the_clone(monkeypatch):
  monkeypatch.chdir(ROOT)


@pytest.fixture
def answer(tmp_path, capsys):
  """Runs a command in this process; returns its exit code and its lines on stderr. It must leave nothing behind."""

  def run(command, *arguments):
    exit_code = command([command.__name__, *arguments])
    said = capsys.readouterr().err.splitlines()
    assert len(said) <= 3 and not any('Traceback' in line for line in said)
    assert not (tmp_path / 'run').exists()
    return exit_code, said

  return run


def _config_file(tmp_path: pathlib.Path, text: str) -> pathlib.Path:
  path = tmp_path / 'flowers.py'
  path.write_text(text)
  return path


@pytest.mark.parametrize('arguments, fragments', [
  (['--config.optimzer.peak_lr=1'], ["no key 'optimzer.peak_lr'", 'Did you mean --config.optimizer.peak_lr?']),
  (['--config.optimizer.peek_lr=1'], ["no key 'optimizer.peek_lr'", 'Did you mean --config.optimizer.peak_lr?']),
  (['--config.peak_lr', '1'], ["no key 'peak_lr'", 'Did you mean --config.optimizer.peak_lr?']),
  (['--config.spacing=log'], ["no key 'spacing'", 'Did you mean --config.model.position.spacing?']),
  (['--noconfig.determinstic'], ["no key 'determinstic'", 'Did you mean --config.deterministic?']),
  (['--config.model.position.bands=4'], ['Did you mean --config.model.position.num_bands?']),
  (['--config.=4'], ["no key ''"]),
  (['--config.optimizer={}'], ['--config.optimizer is a section', 'optimizer.peak_lr']),
  (['--config.num_steps=1e-3'], ['--config.num_steps=1e-3: expected a whole number (int)']),
  (['--config.num_steps', '7.5'], ['--config.num_steps=7.5: expected a whole number (int)']),
  (['--config.optimizer.peak_lr=abc'], ['--config.optimizer.peak_lr=abc: expected a number (float)']),
  (['--config.deterministic=maybe'], ['--config.deterministic=maybe: expected true or false (bool)']),
  (['--config.ema_decay=high'], ['--config.ema_decay=high: expected a number (float)']),
  (['--config.data.num_classes=ten'], ['--config.data.num_classes=ten: expected a whole number (int)']),
  (['--config.seed'], ['Missing value for flag --config.seed']),
  (['--config.deterministic', 'false'], ["unexpected argument 'false'"]),
  (['--wrokdir=x'], ["'wrokdir'", 'workdir']),
  (['--profile=-1'], ['--profile=-1', 'non-negative']),
])
def test_a_wrong_flag_is_named_with_what_was_expected(answer, tmp_path, arguments, fragments):
  exit_code, said = answer(train, DIGITS, f'--workdir={tmp_path}/run', *arguments)
  assert exit_code == 2
  assert [fragment for fragment in fragments if fragment not in '\n'.join(said)] == [], said


@pytest.mark.parametrize('arguments, fragments', [
  ([], ['--config is missing']),
  (['--config='], ['--config is missing']),
  (['--config.seed=1'], ['--config is missing']),
  (['--confg=configs/digits.py'], ["'confg'", 'config']),
  (['configs/digits.py'], ["unexpected argument 'configs/digits.py'", '--config=configs/digits.py?']),
  (['--config=configs/digts.py'], ['no config file configs/digts.py', 'configs/digits.py?', ', digits.py, ']),
  (['--config=digits'], ['no config file digits', 'configs/digits.py?', ', digits.py, ']),
  (['--config=configs'], ['no config file configs', 'configs/digits.py?']),
  (['--config', 'configs/digits.py:perciever'], ["no variant 'perciever'", "'perceiver'?", 'io, perceiver, learned']),
  (['--config=configs/digits.py:perceiver,'], ["no variant ''"]),
])
def test_a_wrong_config_is_named_with_the_nearest_right_one(answer, tmp_path, arguments, fragments):
  exit_code, said = answer(train, f'--workdir={tmp_path}/run', *arguments)
  assert exit_code == 2
  assert [fragment for fragment in fragments if fragment not in '\n'.join(said)] == [], said


@pytest.mark.parametrize('text, fragments', [
  ('def get_config(variant=""):\n  return {\n', ['flowers.py, line 2', "'{' was never closed"]),
  ('def get_config(variant=""):\n\n  return flowers\n', ['flowers.py, line 3', 'NameError', "'flowers'"]),
  ('import flwrs\n', ['flowers.py, line 1', 'ModuleNotFoundError', 'flwrs']),
  ('raise ValueError("only on Sundays")\n', ['flowers.py: only on Sundays']),
  ('def get_config(variant=""):\n  pass\n', ['flowers.py needs a function get_config']),
  ('config = {}\n', ['flowers.py needs a function get_config']),
  ('from configs import images\ndef get_config(variant=""):\n  config = images.get_config(variant)\n'
   '  config.data.num_clases = 5\n  return config\n', ['flowers.py, line 4', 'AttributeError', '"num_classes"']),
  ('from configs import images\ndef get_config(variant=""):\n  config = images.get_config(variant)\n'
   '  config.data.num_classes = "five"\n  return config\n', ['flowers.py, line 4', 'TypeError', 'num_classes']),
])
def test_a_fault_in_a_config_file_is_shown_with_its_line(answer, tmp_path, text, fragments):
  path = _config_file(tmp_path, text)
  exit_code, said = answer(train, f'--config={path}', f'--workdir={tmp_path}/run')
  assert exit_code == 2
  assert [fragment for fragment in fragments if fragment not in '\n'.join(said)] == [], said


def test_a_config_that_comes_unlocked_is_locked(tmp_path):
  path = _config_file(tmp_path, 'from ml_collections import ConfigDict\nget_config = ConfigDict\n')
  assert overrides.load(str(path)).is_locked


def test_a_missing_workdir_is_asked_for(answer):
  assert answer(train, DIGITS)[0] == 2
  exit_code, said = answer(evaluate)
  assert exit_code == 2 and '--workdir or --model is missing' in said[0]


def test_an_unknown_task_is_answered_with_the_tasks_there_are(answer, tmp_path):
  exit_code, said = answer(
    train, DIGITS, f'--workdir={tmp_path}/run', '--config.task=image_clasification')
  assert exit_code == 1
  assert "Did you mean 'image_classification'? perceiver_jax/tasks has: image_classification, masked_lm" in said[0]


@pytest.mark.parametrize('arguments, exit_code, fragment', [
  (['--checkpoint=7'], 2, 'best|latest'),
  (['--model=imagenet_conv'], 2, '--workdir and --model exclude each other'),
  (['--path=conv.pystate'], 2, '--path goes with --model alone'),
  (['--batch_size=0'], 2, '--batch_size=0'),
  ([DIGITS], 2, 'takes no --config'),
  (['--config.seed=1'], 2, 'takes no --config'),
  (['runs/digits'], 2, "unexpected argument 'runs/digits'"),
  ([], 1, 'is not the workdir of a run'),
  (['--workdir', 'configs'], 1, 'configs is not the workdir of a run'),
])
def test_eval_names_what_is_wrong(answer, tmp_path, arguments, exit_code, fragment):
  actual, said = answer(evaluate, f'--workdir={tmp_path}/run', *arguments)
  assert (actual, fragment in said[0]) == (exit_code, True), said


@pytest.fixture
def text_model(tmp_path):
  """Weights of a task that has no data yet."""
  config = overrides.load('configs/masked_lm.py:debug')
  params, state = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), template(config))
  weights.save(tmp_path / 'text', config, params, state)
  return tmp_path / 'text'


@pytest.mark.parametrize('arguments, exit_code, fragment', [
  (['--checkpoint=latest'], 2, '--checkpoint goes with --workdir alone'),
  (['--model=x', '--num_processes=2'], 2, '--num_processes goes with --workdir alone'),
  (['--path=conv.pystate'], 1, 'is no released model, so `path` means nothing'),
  (['--data_path=flowers'], 1, "the config of this model has no data.path: there is nothing to put 'flowers' in"),
  ([], 1, "task 'masked_lm' has no training data yet: its model can be used (python -m perceiver_jax predict)"),
])
def test_eval_of_a_model_names_what_is_wrong(answer, text_model, arguments, exit_code, fragment):
  actual, said = answer(evaluate, f'--model={text_model}', *arguments)
  assert (actual, fragment in said[0]) == (exit_code, True), said


def test_eval_of_a_model_that_there_is_not_names_those_that_there_are(answer):
  exit_code, said = answer(evaluate, '--model=imagenet')
  assert exit_code == 1 and "'imagenet' is neither a released model (imagenet_fourier, " in said[0]


@pytest.mark.parametrize('error, exit_code', [
  (UserError('what, where, what to do'), 1), (NumericsError('it diverged'), 70), (KeyboardInterrupt(), 130),
])
def test_each_ending_has_its_exit_code(capsys, error, exit_code):
  def work():
    raise error

  assert run_command(lambda argv: work, ['train']) == exit_code
  assert capsys.readouterr().err.strip() == (f'error: {error}' if str(error) else '')


def test_the_exit_code_of_the_run_is_that_of_the_command():
  assert run_command(lambda argv: lambda: 75, ['train']) == 75


def test_an_error_of_ours_keeps_its_traceback_and_has_an_exit_code_of_its_own(tmp_path, capsys):
  path = _config_file(tmp_path, 'from ml_collections import ConfigDict\nget_config = ConfigDict\n')
  assert train(['train', f'--config={path}', f'--workdir={tmp_path}/run']) == 3
  said = capsys.readouterr().err
  assert said.startswith('Traceback') and 'AttributeError' in said and 'deterministic' in said


def _printed_config(capsys, *arguments: str) -> dict:
  assert train(['train', *arguments, '--print_config']) == 0
  return json.loads(capsys.readouterr().out)


def test_print_config_shows_what_the_run_would_save(capsys, tmp_path):
  printed = _printed_config(capsys, f'{DIGITS}:perceiver', '--config.optimizer.peak_lr=1e-3')
  config = overrides.load('configs/digits.py:perceiver')
  config.optimizer.peak_lr = 1e-3
  save_config(config, tmp_path)
  assert printed == json.loads((tmp_path / 'config.json').read_text())


def test_overrides_may_come_in_any_order_and_the_last_counts(capsys):
  printed = _printed_config(capsys, '--config.seed=1', '--config', 'configs/digits.py', '--config.seed', '2')
  assert printed['seed'] == 2


def test_every_kind_of_value_can_be_overridden(capsys):
  printed = _printed_config(
    capsys, DIGITS, '--config.num_steps=7', '--config.optimizer.peak_lr=1', '--config.deterministic',
    '--config.log.wandb=true', '--noconfig.model.share_blocks', '--config.init_from=runs/a=b',
    '--config.ema_decay=0.99', '--config.data.num_classes=3')
  assert printed['num_steps'] == 7
  assert isinstance(printed['optimizer']['peak_lr'], float) and printed['optimizer']['peak_lr'] == 1.0
  assert (printed['deterministic'], printed['log']['wandb'], printed['model']['share_blocks']) == (True, True, False)
  assert (printed['init_from'], printed['ema_decay'], printed['data']['num_classes']) == ('runs/a=b', 0.99, 3)


def test_flags_may_come_from_a_file(capsys, tmp_path):
  (tmp_path / 'flags').write_text(f'{DIGITS}\n--config.seed=5\n')
  assert _printed_config(capsys, f'--flagfile={tmp_path}/flags')['seed'] == 5


@pytest.mark.parametrize('command, flag', [(train, '--config'), (evaluate, '--checkpoint')])
def test_help_lists_the_flags(capsys, command, flag):
  assert command([command.__name__, '--help']) == 0
  assert flag in capsys.readouterr().out


@pytest.mark.parametrize('deterministic', [True, False])
def test_deterministic_asks_xla_for_the_same_bits(monkeypatch, deterministic):
  monkeypatch.setenv('XLA_FLAGS', '--xla_cpu_enable_fast_math=false')
  config = overrides.load('configs/digits.py')
  config.deterministic = deterministic
  set_xla_flags(config)
  asked = os.environ['XLA_FLAGS'].split()
  assert asked == ['--xla_cpu_enable_fast_math=false'] + ['--xla_gpu_deterministic_ops=true'] * deterministic


def _start(*arguments: str, **settings) -> subprocess.CompletedProcess:
  return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False, **settings)


@pytest.mark.slow
def test_a_typo_is_answered_by_the_real_program(tmp_path):
  done = _start('train.py', DIGITS, f'--workdir={tmp_path}/run', '--config.optimzer.peak_lr=1')
  assert (done.returncode, done.stdout) == (2, '')
  assert done.stderr == "error: the config has no key 'optimzer.peak_lr'. Did you mean --config.optimizer.peak_lr?\n"
  assert not (tmp_path / 'run').exists()


@pytest.mark.slow
def test_the_program_finds_its_configs_from_any_folder(tmp_path):
  path = _config_file(tmp_path, 'from configs import images\nget_config = images.get_config\n')
  for config in (path, ROOT / 'configs' / 'digits.py'):
    done = _start(str(ROOT / 'train.py'), f'--config={config}:debug', '--print_config', cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, '')
    assert json.loads(done.stdout)['num_steps'] == 20


@pytest.mark.slow
def test_an_installed_command_reads_the_files_beside_a_config_before_the_installed_ones(tmp_path):
  folder = tmp_path / 'configs'
  folder.mkdir()
  (folder / '__init__.py').write_text('')
  (folder / 'common.py').write_text("from ml_collections import ConfigDict\nCONFIG = ConfigDict({'beside': 1})\n")
  (folder / 'own.py').write_text('from configs import common\ndef get_config():\n  return common.CONFIG\n')
  arguments = ['train', f'--config={folder}/own.py', '--print_config']
  done = _start('-c', f'from perceiver_jax.commands.train import train; train({arguments})')
  assert (done.stderr, json.loads(done.stdout)) == ('', {'beside': 1})


@pytest.mark.slow
def test_train_into_a_folder_with_a_config_json_of_somebody_else_is_answered_by_the_real_program(tmp_path):
  (tmp_path / 'config.json').write_text('{"model_type": "bert"}')
  done = _start('train.py', f'{DIGITS}:debug', f'--workdir={tmp_path}')
  assert (done.returncode, done.stdout) == (1, '')
  assert done.stderr == (
    f'error: {tmp_path}/config.json is not one of ours and would be overwritten. Choose another --workdir\n')
  assert [path.name for path in tmp_path.iterdir()] == ['config.json']


@pytest.mark.slow
def test_eval_of_a_folder_that_is_no_run_is_answered_by_the_real_program(tmp_path):
  done = _start('eval.py', f'--workdir={tmp_path}')
  assert (done.returncode, done.stdout) == (1, '')
  assert done.stderr == f'error: {tmp_path}/config.json does not exist: {tmp_path} is not the workdir of a run\n'


@pytest.mark.slow
def _keep_in(monkeypatch, cache):
  monkeypatch.setenv('XDG_CACHE_HOME', str(cache))
  monkeypatch.delenv('JAX_COMPILATION_CACHE_DIR', raising=False)
  compilation_cache.keep_compiled()
  return os.environ.get('JAX_COMPILATION_CACHE_DIR')


def test_what_is_compiled_is_kept_in_the_cache_of_the_user(monkeypatch, tmp_path, capsys):
  folder = pathlib.Path(_keep_in(monkeypatch, tmp_path / 'cache'))
  assert folder.parent == tmp_path / 'cache' / 'perceiver_jax' / 'compiled' and not list(folder.iterdir())
  assert folder == pathlib.Path(_keep_in(monkeypatch, tmp_path / 'cache'))
  assert capsys.readouterr().err == ''


@pytest.mark.parametrize('chosen', ['elsewhere', ''])
def test_a_compilation_cache_that_somebody_chose_stays_or_stays_off(monkeypatch, tmp_path, chosen):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  monkeypatch.setenv('JAX_COMPILATION_CACHE_DIR', chosen)
  compilation_cache.keep_compiled()
  assert os.environ['JAX_COMPILATION_CACHE_DIR'] == chosen and not list(tmp_path.iterdir())


def test_a_cache_that_cannot_be_written_is_named_and_done_without(monkeypatch, tmp_path, capsys):
  (tmp_path / 'cache').write_text('a file, not a folder')
  assert _keep_in(monkeypatch, tmp_path / 'cache') is None
  assert str(tmp_path / 'cache' / 'perceiver_jax') in capsys.readouterr().err


def test_a_second_start_reads_what_the_first_compiled_and_a_spoilt_entry_ends_nothing(monkeypatch, tmp_path):
  folder = pathlib.Path(_keep_in(monkeypatch, tmp_path))
  program = (
    'import jax, jax.numpy as jnp, jax.monitoring; hits = []; '
    'jax.monitoring.register_event_listener(lambda name, **_: hits.append(name.endswith("/cache_hits"))); '
    'print(jax.jit(lambda x: jnp.sin(x) * 2)(jnp.ones(3)).tolist(), sum(hits) > 0)')
  run = lambda: subprocess.run([sys.executable, '-c', program], capture_output=True, text=True, check=True).stdout
  first, second = run(), run()
  entries = [path for path in folder.iterdir() if path.name.endswith('-cache')]
  assert first.endswith('False\n') and second == first.replace('False', 'True') and entries
  for entry in entries:
    entry.write_bytes(entry.read_bytes()[:20])
  assert run() == first


def test_an_interruption_before_the_run_begins_is_quiet(tmp_path):
  # A shell starts what it runs in the background with SIGINT ignored.
  path = _config_file(
    tmp_path,
    'import os, signal\n'
    'signal.signal(signal.SIGINT, signal.default_int_handler)\n'
    'os.kill(os.getpid(), signal.SIGINT)\n')
  done = _start('train.py', f'--config={path}', f'--workdir={tmp_path}/run')
  assert (done.returncode, done.stdout, done.stderr) == (130, '', '')


@pytest.mark.slow
@pytest.mark.parametrize('statement', [
  'import perceiver_jax',
  f'from perceiver_jax.commands.train import train; train(["train", "{DIGITS}", "--workdir=x", "--config.optimzer=1"])',
  f'from perceiver_jax.commands.train import train; train(["train", "{DIGITS}", "--print_config"])',
])
def test_neither_jax_nor_tensorflow_is_imported_until_the_command_line_is_right(statement):
  done = _start('-c', f'{statement}; import sys; sys.exit(bool(sys.modules.keys() & {{"jax", "haiku", "tensorflow"}}))')
  assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_an_evaluation_that_could_not_read_everything_prints_its_figures_and_fails(tmp_path):
  random = np.random.default_rng(0)
  for split, label, i in itertools.product(('train', 'validation', 'test'), range(5), range(3)):
    folder = tmp_path / 'images' / split / f'kind{label}'
    folder.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(folder / f'{i}.png'), random.integers(0, 256, (8, 8, 3), np.uint8))
  broken = tmp_path / 'images' / 'test' / 'kind3' / '1.png'
  run = [sys.executable, 'train.py', '--config=configs/images.py:debug', f'--workdir={tmp_path}/run',
         f'--config.data.path={tmp_path}/images', '--config.data.num_classes=5', '--config.data.image_size=8']
  environment = {**os.environ, 'JAX_DISABLE_MOST_OPTIMIZATIONS': '1'}
  subprocess.run(run, cwd=ROOT, env=environment, check=True, capture_output=True)
  evaluate = [sys.executable, 'eval.py', f'--workdir={tmp_path}/run']
  whole = subprocess.run(evaluate, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
  broken.write_bytes(b'no picture')
  part = subprocess.run(evaluate, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
  assert (whole.returncode, part.returncode) == (0, 1)
  assert 'test/accuracy' in part.stdout
  assert 'these figures leave out what could not be read: 1 (' in part.stderr and '1.png' in part.stderr


@pytest.mark.parametrize('command, arguments', [
  (train, [DIGITS, '--workdir=gs://bucket/run']), (train, [DIGITS, '--workdir=x', '--config.init_from=s3://bucket/run']),
  (train, ['--config=configs/images.py', '--workdir=x', '--config.data.path=gs://bucket/images']),
  (evaluate, ['--workdir=file:///x']), (evaluate, ['--model=imagenet_conv', '--data_path=gs://x/y']),
  (evaluate, ['--model=hdfs://x/y']), (predict, ['--model=gs://x/y', 'dog.jpg']),
  (predict, ['--model=imagenet_conv', '--path=s3://x/y', 'dog.jpg']),
  (predict, ['--model=imagenet_conv', '--output=gs://x.png', 'dog.jpg']), (convert, ['gs://x/y', 'z']),
  (convert, ['x', 's3://x/y']), (plan, [DIGITS, '--json=gs://x/plan.json'])])
def test_an_address_of_a_storage_is_refused_by_every_command_before_anything_is_made(
    command, arguments, answer, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'configs').symlink_to(ROOT / 'configs')
  exit_code, said = answer(command, *arguments)
  assert exit_code == 2 and len(said) == 1 and 'is an address, and only paths of this machine serve' in said[0]
  assert [path.name for path in tmp_path.iterdir()] == ['configs']


# What the environment and the command line can be


@pytest.mark.parametrize('command', [
  ['train.py', '--config=configs/digits.py:debug', '--workdir={folder}/run'],
  ['-m', 'perceiver_jax', 'plan', '--config=configs/digits.py:debug'],
])
def test_a_platform_that_is_not_there_is_blamed_and_nothing_else(tmp_path, command):
  arguments = [part.format(folder=tmp_path) for part in command]
  done = _start(*arguments, cwd=ROOT, env={**os.environ, 'JAX_PLATFORMS': 'cuda', 'XLA_FLAGS': ''})
  assert done.returncode == 1
  assert done.stderr.splitlines()[-1].startswith("error: JAX finds no device for JAX_PLATFORMS='cuda'")
  assert 'Traceback' not in done.stderr and 'checkpoint' not in done.stderr


def test_pictures_are_drawn_whatever_backend_a_notebook_names(tmp_path):
  program = (
    'import os, numpy as np\nfrom perceiver_jax import visualize\n'
    'frame = np.zeros((8, 8, 3), np.uint8)\n'
    f'visualize.flow_picture({str(tmp_path / "a.png")!r}, frame, frame, np.zeros((8, 8, 2)))\n'
    'assert os.environ["MPLBACKEND"].startswith("module://")\n')
  done = _start('-c', program, cwd=ROOT, env={**os.environ, 'MPLBACKEND': 'module://matplotlib_inline.backend_inline'})
  assert done.returncode == 0, done.stderr
  assert (tmp_path / 'a.png').exists()


def test_python_without_asserts_is_refused_in_a_line():
  done = _start('-O', 'train.py', '--config=configs/digits.py:debug', '--workdir=run', cwd=ROOT)
  assert (done.returncode, done.stderr) == (
    1, 'error: python -O leaves out checks that this program needs: run it without -O and PYTHONOPTIMIZE\n')


@pytest.mark.parametrize('below', ['', 'a', 'a/b'])
def test_a_file_in_place_of_a_workdir_is_named(tmp_path, capsys, below):
  (tmp_path / 'file').write_text('')
  path = tmp_path / 'file' / below if below else tmp_path / 'file'
  assert train(['train.py', f'--config={ROOT}/configs/digits.py:debug', f'--workdir={path}']) == 1
  assert f'{tmp_path}/file is a file, and not a folder; choose another --workdir' in capsys.readouterr().err


def test_a_run_is_not_written_among_its_data(tmp_path, capsys):
  (tmp_path / 'photos' / 'cat').mkdir(parents=True)
  assert train([
    'train.py', f'--config={ROOT}/configs/images.py:debug', f'--workdir={tmp_path}/photos/',
    f'--config.data.path={tmp_path}/photos', '--config.data.num_classes=1']) == 2
  assert 'holds the data; give the run a folder of its own' in capsys.readouterr().err
