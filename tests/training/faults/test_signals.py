"""Being asked to stop."""

import os
import signal

import pytest

from mpi_parallel.signals import REQUESTS, SIGNALS
from mpi_parallel.training.faults.signals import StopRequest


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


def test_one_that_came_before_is_remembered():
    """As in a training, which listens from its first moment on."""
    assert REQUESTS.listen()
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        with StopRequest() as request:
            assert request and request.reason == "signal"
        assert REQUESTS and signal.getsignal(signal.SIGTERM) == REQUESTS._ask, "until the program ends"
    finally:
        REQUESTS.forget()


def test_an_interrupt_after_another_signal_is_the_first(stop):
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGINT)
    assert stop
