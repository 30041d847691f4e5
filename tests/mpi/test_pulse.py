"""Signs of life: who waits in a message is told from who works."""

import numpy as np
import pytest

from mpi_parallel.mpi.clocks import seconds_behind
from mpi_parallel.mpi.communicator import Communicator
from mpi_parallel.mpi.pulse import PULSE, waiting


class Messages:
    @waiting
    def lose(self):
        assert PULSE.waits == 1
        raise OSError("a rank has died")


def test_a_message_that_fails_is_not_waited_in_any_more():
    with pytest.raises(OSError, match="died"):
        Messages().lose()
    assert PULSE.waits == 0


class Heard:
    """A communicator of two ranks, this one the given; it notes how many messages each of its calls is waited in."""

    def __init__(self, rank):
        self.rank, self.size, self.waits = rank, 2, []

    def __getattr__(self, name):
        return lambda *arguments, **named: self.waits.append(PULSE.waits)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_watchdog_sees_who_waits_in_what_is_rarely_asked(rank):
    comm = Heard(rank)
    verbs = Communicator(comm)
    verbs.largest(np.zeros(3))
    list(verbs.take_over())
    seconds_behind(verbs)
    assert len(comm.waits) > 50 and set(comm.waits) == {1}
