"""Signs of life: who waits in a message is told from who works."""

import pytest

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
