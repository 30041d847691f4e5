"""Being asked to stop, by a signal or by a time limit: the next step tells all ranks, and they stop together.

Before there are steps, between the stages of the set-up, the ranks ask each other.
"""

from __future__ import annotations

import signal
from types import TracebackType

from mpi_parallel.mpi.communicator import Communicator
from mpi_parallel.signals import REQUESTS, StopAsked
from mpi_parallel.training.faults.time_limit import TimeLimit


class StopRequest:
    """True once this rank got a signal, be it before this was made. The second SIGINT ends the process at once."""

    def __init__(self) -> None:
        self.limit: TimeLimit | None = None  # looked at before each step, on the rank that has one
        self._mine = False

    def __enter__(self) -> StopRequest:
        self._mine = REQUESTS.listen(signal.default_int_handler)  # not where the whole program listens
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Leave the signals as they were."""
        if self._mine:
            REQUESTS.forget()

    def __bool__(self) -> bool:
        return bool(REQUESTS)

    def before_training(self, comm: Communicator) -> None:
        """Raise StopAsked on all ranks where one was asked to: nothing is lost by that yet."""
        number = comm.maximum(int(REQUESTS.by or 0))
        if number:
            raise StopAsked(f"asked to stop by {signal.Signals(number).name} before training began: nothing is lost")

    def begin(self, limit: TimeLimit | None) -> None:
        """Training begins; from now on whoever is asked stops after a step."""
        self.limit, REQUESTS.heeded = limit, True

    def before_step(self, saving: float, ahead: int = 0) -> bool:
        """Whether the coming step is to be the last; a checkpoint takes `saving` seconds.

        With `ahead` so many steps are under way, and as many will be before anybody hears what is said here.
        """
        return bool(self) or (self.limit is not None and self.limit.near(saving, ahead))

    @property
    def reason(self) -> str:
        """Why the run stops, as the end event tells it."""
        return "time-limit" if self.limit is not None and self.limit.reached and not self else "signal"
