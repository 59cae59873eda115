"""Real processes: a run that is stopped, killed and started again ends with the bits of one that was left alone."""

from __future__ import annotations

import functools
import pathlib
import re
import signal

import jax
import numpy as np
import pytest

from benchmarks.survive import figures, last_state
from perceiver_jax.commands.eval import evaluate
from perceiver_jax.runs.checkpoint import Checkpoints, load_weights
from perceiver_jax.runs.log import read_history
from tests.training.runs import NUM_STEPS, ROOT, Ended, files, start, train, train_until


@pytest.fixture(scope='module')
def disturbed(tmp_path_factory) -> tuple[pathlib.Path, list[Ended]]:
  """The same run, in five processes of which four have an accident."""
  workdir = tmp_path_factory.mktemp('disturbed') / 'run'
  return workdir, [
    train_until('SIGTERM', 'train', 0, workdir),        # nothing else is due after the step that it ends with
    train_until('SIGINT', 'validation', 1, workdir),    # in the evaluation at step 3
    train_until('SIGKILL', 'train', 4, workdir),        # while step 4 is saved in the background
    train_until('SIGKILL', 'validation', 2, workdir),   # in the evaluation at step 6
    train(workdir),
  ]


@pytest.mark.slow
def test_a_run_ends_with_a_summary_line(whole):
  workdir, ended = whole
  assert ended.exit_code == 0, ended.err
  last = read_history(workdir)[-1]
  assert ended.out == (
    f'Finished {NUM_STEPS} steps: test/accuracy {last["test/accuracy"]:.4g}, test/loss {last["test/loss"]:.4g}, '
    f'by the checkpoint of step {last["checkpoint/best_step"]:.0f}. Everything is in {workdir}\n')
  assert [line['step'] for line in read_history(workdir)] == [3, 4, 6, 6, 6]
  assert (workdir / 'summary.png').read_bytes().startswith(b'\x89PNG')


@pytest.mark.slow
def test_a_run_into_a_file_shows_its_progress_in_lines(whole):
  lines = whole[1].err.splitlines()
  assert lines[0] == 'Compiling the training step ...'
  assert re.fullmatch(r'step 3: validation/accuracy [\d.]+, validation/loss [\d.]+', lines[1])
  assert re.fullmatch(
    rf'step 4/{NUM_STEPS}, ETA \d+:\d\d, [\d,]+ examples/s \([\d,]+ a device\), loss [\d.]+, accuracy [\d.]+', lines[2])


@pytest.mark.slow
def test_profile_writes_a_trace(whole):
  assert len(list((whole[0] / 'profile').rglob('*.xplane.pb'))) == 1


@pytest.mark.slow
def test_a_signal_saves_and_says_where_the_run_resumes(disturbed):
  terminated, interrupted, *_ = disturbed[1]
  for ended, name, step in ((terminated, 'SIGTERM', 1), (interrupted, 'SIGINT', 3)):
    assert ended.exit_code == 75, ended.err
    assert ended.out == f'Stopped by {name} and saved. The same command resumes at step {step}.\n'
    assert f'\n{name}: saving and stopping after this step.' in ended.err
    assert step in ended.steps
  assert f'Resuming at step 1 of {NUM_STEPS}.' in interrupted.err


@pytest.mark.slow
def test_a_signal_during_the_first_compilation_ends_the_run_at_once(tmp_path):
  ended = train_until('SIGTERM', 'compilation', 0, tmp_path / 'run')
  assert (ended.exit_code, ended.out, ended.steps) == (75, '', []), ended.err
  assert ended.err == (
    'Compiling the training step ...\n'
    '\nSIGTERM: stopped while compiling; nothing is lost. The same command starts again.\n')


@pytest.mark.slow
def test_a_kill_loses_no_more_than_what_was_not_saved_yet(disturbed):
  _, _, in_save, in_evaluation, ended = disturbed[1]
  assert in_save.exit_code == in_evaluation.exit_code == -signal.SIGKILL
  assert f'Resuming at step 3 of {NUM_STEPS}.' in in_save.err
  assert re.search('Resuming at step [34] ', in_evaluation.err)  # whichever the disk had by then
  assert ended.exit_code == 0, ended.err
  assert re.search('Resuming at step [34] ', ended.err)


@pytest.mark.slow
def test_a_disturbed_run_ends_with_the_bits_of_one_left_alone(whole, disturbed):
  assert figures(disturbed[0]) == figures(whole[0])
  (state, extras), (expected, expected_extras) = last_state(disturbed[0]), last_state(whole[0])
  assert jax.tree.structure(state) == jax.tree.structure(expected)
  jax.tree.map(np.testing.assert_array_equal, state, expected)
  assert state.step == NUM_STEPS and state.ema is not None and extras == expected_extras
  different = [not np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (state.params, state.ema)), strict=True)]
  assert any(different)
  assert (disturbed[0] / 'config.json').read_bytes() == (whole[0] / 'config.json').read_bytes()


@pytest.mark.slow
def test_a_finished_run_started_again_says_so_and_changes_nothing(whole):
  workdir, _ = whole
  before, last = files(workdir), read_history(workdir)[-1]
  ended = train(workdir)
  assert (ended.exit_code, ended.err) == (0, '')
  assert ended.out == (
    f'{workdir} has finished already: test/accuracy {last["test/accuracy"]:.4g}, test/loss {last["test/loss"]:.4g}\n')
  assert files(workdir) == before


@pytest.mark.slow
def test_another_config_is_refused_with_its_keys_and_changes_nothing(whole):
  workdir, _ = whole
  before = files(workdir)
  ended = train(workdir, '--config.optimizer.peak_lr=0.5', '--config.ema_decay=0.5')
  assert (ended.exit_code, ended.out) == (1, '')
  first, second = ended.err.splitlines()
  assert first == (f'error: {workdir} holds a run of another config: ema_decay: 0.9 in the workdir, 0.5 now; '
                   'optimizer.peak_lr: 0.002 in the workdir, 0.5 now.')
  assert second.startswith('Choose another --workdir')
  assert files(workdir) == before


@pytest.mark.slow
@pytest.mark.parametrize('num_devices', [1, 8])
def test_eval_prints_the_last_line_of_the_log_on_any_number_of_devices(whole, capfd, num_devices):
  workdir, _ = whole
  before, last = files(workdir), read_history(workdir)[-1]
  if num_devices == jax.local_device_count():
    assert evaluate(['eval.py', f'--workdir={workdir}']) == 0
    out = capfd.readouterr().out
  else:
    ended = start([str(ROOT / 'eval.py')], workdir, num_devices=num_devices)
    assert (ended.exit_code, ended.err) == (0, '')
    out = ended.out
  printed = dict(line.split(': ') for line in out.splitlines())
  assert printed['test/accuracy'] == f'{last["test/accuracy"]:.6g}'
  assert float(printed['step']) == last['checkpoint/best_step']
  np.testing.assert_allclose(float(printed['test/loss']), last['test/loss'], rtol=1e-5)
  assert files(workdir) == before


@pytest.mark.slow
def test_fine_tuning_starts_from_another_runs_parameters_and_says_which(whole, tmp_path):
  ended = train_until('SIGTERM', 'train', 0, tmp_path, f'--config.init_from={whole[0]}')
  assert ended.exit_code == 75, ended.err
  best, expected, _ = load_weights(whole[0])
  assert re.search(rf'Taken from step {best} of {whole[0]} \(\d+\): .*output', ended.err)
  _, average, _ = load_weights(tmp_path, 'latest')  # the learning rate of its one step is 0: warm-up
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), average, expected)


@pytest.mark.slow
def test_a_run_that_diverges_says_so_and_keeps_its_checkpoints(whole, tmp_path):
  state, extras = last_state(whole[0])
  huge = jax.tree.map(lambda x: np.full_like(x, 1e30), state.params)
  with Checkpoints(tmp_path / 'huge', keep_last=1, best='highest validation/accuracy') as checkpoints:
    checkpoints.save(1, state._replace(params=huge, ema=huge), extras, None)
  ended = train(tmp_path / 'run', f'--config.init_from={tmp_path}/huge', '--config.max_skipped=3')
  assert (ended.exit_code, ended.out) == (70, '')
  assert 'error: the last 4 updates were not finite' in ended.err and 'Traceback' not in ended.err
  assert ended.steps == [2, 3]
  _, params, _ = load_weights(tmp_path / 'run', 'latest')
  jax.tree.map(np.testing.assert_array_equal, params, huge)
