"""Being asked to stop."""

import os
import signal

import pytest

from mpi_parallel.training.faults.signals import SIGNALS, StopRequest


@pytest.fixture
def stop():
    with StopRequest() as request:
        yield request


def test_nobody_has_asked(stop):
    assert not stop


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_asks(stop, number):
    os.kill(os.getpid(), number)
    assert stop


def test_sigterm_may_come_twice(stop):
    """Launchers send it again and again."""
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGTERM)
    assert stop


def test_the_second_interrupt_is_not_caught(stop):
    os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)


def test_signals_are_left_as_they_were():
    before = [signal.getsignal(number) for number in SIGNALS]
    with StopRequest():
        assert [signal.getsignal(number) for number in SIGNALS] != before
        os.kill(os.getpid(), signal.SIGINT)
    assert [signal.getsignal(number) for number in SIGNALS] == before
