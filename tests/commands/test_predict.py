"""The command line of `predict`."""

from __future__ import annotations

import os

import pytest

from perceiver_jax.commands.predict import predict


@pytest.mark.parametrize(('arguments', 'message'), [
  ([], '--model is missing'),
  (['--model=masked_lm'], 'nothing to predict from'),
  (['--modle=masked_lm', 'x'], "Unknown command line flag 'modle'"),
])
def test_a_mistake_on_the_command_line_is_answered_at_once(arguments, message, capsys):
  assert predict(['predict', *arguments]) == 2
  assert message in capsys.readouterr().err


@pytest.mark.parametrize(('output', 'message'), [
  ('dog.png', 'is the file dog.png, which is to be read'),
  ('./link.png', 'is the file dog.png, which is to be read'),
  ('model.npy', 'is the file model.npy, which is to be read'),
  ('missing/x.png', 'there is no directory missing; make it first'),
  ('dog.png/x.png', 'there is no directory dog.png'),
  ('folder.png', 'is a directory'),
  ('.', 'is a directory'),
  ('x.jpg', 'ends neither in .png, a picture, nor in .npy or .npz, arrays'),
  ('x', 'ends neither in .png'),
  ('', 'ends neither in .png'),
])
def test_an_output_that_cannot_be_is_told_before_a_model_is_looked_for(output, message, tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  for name in ('dog.png', 'model.npy'):
    (tmp_path / name).write_text('precious')
  (tmp_path / 'link.png').symlink_to('dog.png')
  (tmp_path / 'folder.png').mkdir()
  assert predict(['predict', '--model=no/model', '--path=model.npy', f'--output={output}', 'dog.png', 'cat.png']) == 2
  assert message in capsys.readouterr().err
  assert (tmp_path / 'dog.png').read_text() == (tmp_path / 'model.npy').read_text() == 'precious'


@pytest.mark.skipif(os.geteuid() == 0, reason='nothing is closed to root')
def test_a_directory_that_is_closed_is_told_before_a_model_is_looked_for(tmp_path, capsys):
  tmp_path.chmod(0o500)
  assert predict(['predict', '--model=no/model', f'--output={tmp_path}/x.png', 'dog.png']) == 2
  assert 'cannot be written: permission denied' in capsys.readouterr().err


@pytest.mark.parametrize('model', ['imagenet', 'runs/missing'])
def test_a_model_that_is_not_there_is_named_with_those_that_are(model, capsys):
  assert predict(['predict', f'--model={model}', 'dog.png']) == 1
  error = capsys.readouterr().err
  assert model in error and 'imagenet_fourier, imagenet_learned' in error


def test_help_names_every_flag(capsys):
  assert predict(['predict', '--help']) == 0
  out = capsys.readouterr().out
  assert all(flag in out for flag in ('--model', '--path', '--output', '[hidden words]'))
