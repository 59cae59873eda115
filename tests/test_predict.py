"""The command line of `predict`."""

from __future__ import annotations

import pytest

from perceiver_jax.predict import predict


@pytest.mark.parametrize(('arguments', 'message'), [
  ([], '--model is missing'),
  (['--model=masked_lm'], 'nothing to predict from'),
  (['--modle=masked_lm', 'x'], "Unknown command line flag 'modle'"),
])
def test_a_mistake_on_the_command_line_is_answered_at_once(arguments, message, capsys):
  assert predict(['predict', *arguments]) == 2
  assert message in capsys.readouterr().err


@pytest.mark.parametrize('model', ['imagenet', 'runs/missing'])
def test_a_model_that_is_not_there_is_named_with_those_that_are(model, capsys):
  assert predict(['predict', f'--model={model}', 'dog.png']) == 1
  error = capsys.readouterr().err
  assert model in error and 'imagenet_fourier, imagenet_learned' in error


def test_help_names_every_flag(capsys):
  assert predict(['predict', '--help']) == 0
  out = capsys.readouterr().out
  assert all(flag in out for flag in ('--model', '--path', '--output', '[hidden words]'))
