"""Signals, sent to this very process."""

from __future__ import annotations

import signal

import pytest

from perceiver_jax.training.interruption import Interruption


@pytest.fixture(autouse=True)
def handlers():
  """Handlers that tell what they caught, in place of ending the tests; put back afterwards."""
  caught: list[int] = []
  before = {number: signal.signal(number, lambda number, frame: caught.append(number))
            for number in (signal.SIGINT, signal.SIGTERM)}
  yield caught
  for number, handler in before.items():
    signal.signal(number, handler)


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_asks_and_the_second_has_its_usual_effect(handlers, capfd, number):
  with Interruption() as interruption:
    assert interruption.requested is None
    signal.raise_signal(number)
    assert (interruption.requested, handlers) == (signal.Signals(number).name, [])
    said = capfd.readouterr().err
    assert said.startswith(f'\n{signal.Signals(number).name}: saving') and said.count('\n') == 2
    signal.raise_signal(number)
    assert handlers == [number]
  assert interruption.requested == signal.Signals(number).name


def test_a_second_signal_of_the_other_kind_only_asks_again(handlers):
  with Interruption() as interruption:
    signal.raise_signal(signal.SIGTERM)
    signal.raise_signal(signal.SIGINT)
    assert (interruption.requested, handlers) == ('SIGINT', [])


def test_a_second_interruption_by_hand_ends_the_program():
  signal.signal(signal.SIGINT, signal.default_int_handler)
  with Interruption(), pytest.raises(KeyboardInterrupt):
    signal.raise_signal(signal.SIGINT)
    signal.raise_signal(signal.SIGINT)
  assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize('is_requested', [False, True])
def test_handlers_are_put_back_even_after_an_error(handlers, is_requested):
  before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
  with pytest.raises(RuntimeError), Interruption():
    assert signal.getsignal(signal.SIGINT) != before[0]
    if is_requested:
      signal.raise_signal(signal.SIGTERM)
    raise RuntimeError
  assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
  signal.raise_signal(signal.SIGTERM)
  assert handlers == [signal.SIGTERM]
