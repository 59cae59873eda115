"""What `predict` prints and draws, from a person's files, for the models of each task."""

from __future__ import annotations

import os
import subprocess
import sys

import cv2
import jax
import numpy as np
import pytest

import perceiver_jax
from perceiver_jax.commands.predict import predict
from perceiver_jax.data.files import read_image, read_sound, read_video
from perceiver_jax.inference import optical_flow
from perceiver_jax.inference.masked_lm import candidates_of
from perceiver_jax.inference.optical_flow import Flow
from perceiver_jax.inference.predictor import Predictor
from perceiver_jax.runs import weights
from tests.inference.conftest import ROOT
from tests.tasks.test_text_classification import read_config
from tests.tasks.tiny import random_trees

pytestmark = pytest.mark.usefixtures('quick_compilation')

INPUTS = {
  'picture': ['first.png'], 'text': ['Some [words] are [MASK].'], 'flow': ['first.png', 'second.png'],
  'clip': ['clip.avi', 'sound.wav'],
}


def _predict(capsys, models, files, model, *inputs, **flags):
  """Exit code, what was printed, and what was complained of."""
  arguments = [f'--{name}={value}' for name, value in flags.items()]
  paths = [str(files / each) if '.' in each and ' ' not in each else each for each in inputs]
  exit_code = predict(['predict', f'--model={models / model}', *arguments, *paths])
  return exit_code, *capsys.readouterr()


@pytest.mark.parametrize('model', INPUTS)
def test_every_task_prints_words_and_draws_a_picture(model, models, files, tmp_path, capsys):
  picture = tmp_path / 'picture.png'
  exit_code, out, err = _predict(capsys, models, files, model, *INPUTS[model], output=picture)
  assert exit_code == 0, err
  assert err.endswith(f'written to {picture}\n')
  assert out.strip() and 'weights by Nobody in particular, CC0' in err
  height, width, _ = cv2.imread(str(picture)).shape
  assert width == 1400 and height > 100


@pytest.mark.parametrize('model', INPUTS)
def test_without_output_nothing_is_drawn(model, models, files, capsys, monkeypatch, tmp_path):
  monkeypatch.chdir(tmp_path)
  exit_code, out, _ = _predict(capsys, models, files, model, *INPUTS[model])
  assert exit_code == 0 and out.strip()
  assert list(tmp_path.iterdir()) == []


def test_probabilities_of_a_picture_fall_and_add_up(models, files, capsys):
  _, out, _ = _predict(capsys, models, files, 'picture', 'first.png')
  shares = [float(line.split('%')[0]) for line in out.splitlines()]
  assert len(shares) == 5 and shares == sorted(shares, reverse=True) and sum(shares) == pytest.approx(100, abs=0.5)


def test_several_pictures_are_told_apart_and_cannot_be_drawn(models, files, capsys, tmp_path):
  exit_code, out, _ = _predict(capsys, models, files, 'picture', 'first.png', 'second.png')
  assert exit_code == 0 and out.count('.png:') == 2
  exit_code, _, err = _predict(
    capsys, models, files, 'picture', 'first.png', 'second.png', output=tmp_path / 'picture.png')
  assert exit_code == 1 and '--output draws one picture, but 2 are given' in err


def test_a_second_picture_that_is_broken_does_not_lose_the_answer_to_the_first(models, files, capsys):
  _, alone, _ = _predict(capsys, models, files, 'picture', 'first.png')
  exit_code, out, err = _predict(capsys, models, files, 'picture', 'first.png', 'missing.png')
  assert exit_code == 1 and out == f'{files}/first.png:\n{alone}' and 'cannot read' in err


@pytest.mark.parametrize('model', INPUTS)
def test_a_picture_that_cannot_be_written_does_not_lose_the_answer(model, models, files, capsys, tmp_path):
  _, alone, _ = _predict(capsys, models, files, model, *INPUTS[model])
  output = tmp_path / ('x' * 251 + '.png')     # whose directory is as it should be
  exit_code, out, err = _predict(capsys, models, files, model, *INPUTS[model], output=output)
  assert (exit_code, out) == (1, alone)
  assert 'cannot write' in err and 'written to' not in err


def test_a_person_is_told_what_is_waited_for(models, files, capsys):
  _, _, err = _predict(capsys, models, files, 'text', '[x]')
  predictor = perceiver_jax.load(models / 'text')
  assert f'{models}/text: {predictor.num_parameters:,} parameters on {jax.devices()[0].device_kind}; the first' in err


@pytest.mark.parametrize(('model', 'possible'), [('picture', '.png'), ('text', '.png'), ('clip', '.png')])
def test_only_a_flow_is_kept_as_numbers(model, possible, models, files, capsys, tmp_path):
  exit_code, out, err = _predict(capsys, models, files, model, *INPUTS[model], output=tmp_path / 'x.npy')
  assert (exit_code, out) == (1, '') and err.endswith(f'can write; end it in {possible}\n')


def test_of_a_text_that_is_classified_there_is_no_picture(tmp_path, capsys):
  config = read_config()
  weights.save(tmp_path / 'model', config, *random_trees(config))
  exit_code, out, err = _predict(capsys, tmp_path, tmp_path, 'model', 'A text', output=tmp_path / 'x.png')
  assert (exit_code, out) == (1, '') and 'what a model of text_classification can write; leave it out' in err
  exit_code, out, _ = _predict(capsys, tmp_path, tmp_path, 'model', 'A text')
  assert exit_code == 0 and out.count('%') == 5


def test_a_baseline_classifies_but_has_no_latents_to_draw(models, files, capsys, tmp_path):
  exit_code, out, err = _predict(capsys, models, files, 'baseline', 'first.png')
  assert exit_code == 0 and out.count('%') == 5, err
  exit_code, _, err = _predict(capsys, models, files, 'baseline', 'first.png', output=tmp_path / 'picture.png')
  assert exit_code == 1 and 'this model is a vit: it has no latents to draw' in err


def test_candidates_of_every_span_follow_the_text(models, files, capsys):
  _, out, _ = _predict(capsys, models, files, 'text', 'a [b] c [MASK][de]')
  filled = perceiver_jax.load(models / 'text').predict('a [b] c [MASK][de]')
  assert out.startswith(f'{filled.text}\n')
  lines = out.removeprefix(f'{filled.text}\n').splitlines()
  assert len(lines) == 3
  for line, probabilities in zip(lines, filled.probabilities, strict=True):
    (best, share), *_ = candidates_of(probabilities, 5)
    assert line.count('%') == 5 and line.startswith(f'{share:6.1%} {best!r}  ')


def test_a_flow_of_nothing_has_no_sign(files):
  def standing(*frames):
    return Flow(np.full((20, 30, 2), -1e-4, np.float32), [])

  predictor = Predictor(None, {}, {}, standing, standing, standing, '')
  (text,) = optical_flow.present(predictor, [str(files / name) for name in INPUTS['flow']], None)
  assert text.endswith('mean +0.00 px to the right, +0.00 px down')


@pytest.mark.slow
def test_a_terminal_that_cannot_show_an_answer_shows_it_in_escapes(models):
  environment = {**os.environ, 'PYTHONIOENCODING': 'ascii:strict', 'PYTHONPATH': str(ROOT)}
  process = subprocess.run(
    [sys.executable, '-m', 'perceiver_jax', 'predict', f'--model={models}/text', 'ü [x] 本'], env=environment,
    capture_output=True, text=True, check=False)
  assert process.returncode == 0, process.stderr
  assert process.stdout.startswith('\\xfc ') and '\\u672c\n' in process.stdout


def test_the_flow_itself_can_be_kept(models, files, capsys, tmp_path):
  _, out, _ = _predict(capsys, models, files, 'flow', 'first.png', 'second.png', output=tmp_path / 'flow.npy')
  flow = np.load(tmp_path / 'flow.npy')
  assert flow.shape == (20, 30, 2) and flow.dtype == np.float32
  assert f'{np.hypot(*flow.transpose(2, 0, 1)).mean():.2f} px on average' in out and '30 x 20 pixels' in out


@pytest.mark.parametrize(('model', 'inputs', 'message'), [
  ('flow', ['first.png'], 'optical flow needs two pictures, the first and the next; 1 are given'),
  ('clip', ['clip.avi'], 'a clip and its sound (a WAV file) are needed; 1 files are given'),
  ('picture', ['clip.avi'], 'cannot read'),
  ('picture', ['missing.png'], 'cannot read'),
  ('text', ['nothing hidden'], 'nothing is hidden'),
])
def test_wrong_inputs_are_answered_in_a_line(model, inputs, message, models, files, capsys):
  exit_code, out, err = _predict(capsys, models, files, model, *inputs)
  assert (exit_code, out) == (1, '')
  assert message in err and 'Traceback' not in err


def test_candidates_are_the_most_probable_fillings_in_order():
  rng = np.random.default_rng(0)
  probabilities = rng.dirichlet(np.ones(262), 2)
  candidates = candidates_of(probabilities, 5)
  pairs = np.multiply.outer(probabilities[0, 6:], probabilities[1, 6:])
  np.testing.assert_allclose([share for _, share in candidates], np.sort(pairs.ravel())[::-1][:5])
  best = np.unravel_index(pairs.argmax(), pairs.shape)
  assert candidates[0][0] == bytes(best).decode('utf-8', 'replace')


def test_the_path_of_a_file_is_as_good_as_its_content(models, files):
  def close(a, b):
    np.testing.assert_array_equal(a, b)

  picture = perceiver_jax.load(models / 'picture')
  close(picture.predict(files / 'first.png').probabilities,
        picture.predict(read_image(files / 'first.png')).probabilities)
  flow = perceiver_jax.load(models / 'flow')
  frames = [files / name for name in INPUTS['flow']]
  close(flow.predict(*map(str, frames)).flow, flow.predict(*map(read_image, frames)).flow)
  clip = perceiver_jax.load(models / 'clip')
  again = clip.predict(files / 'clip.avi', files / 'sound.wav')
  sound, rate = read_sound(files / 'sound.wav', 64)
  expected = clip.predict(read_video(files / 'clip.avi', 2, 25), sound, sample_rate=rate)
  close(again.video_again, expected.video_again)
  close(again.audio, expected.audio)
