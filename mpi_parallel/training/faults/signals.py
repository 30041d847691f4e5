"""Being asked to stop, by a signal or by a time limit: the next step tells all ranks, and they stop together."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType

from mpi_parallel.training.faults.time_limit import TimeLimit

# What launchers and batch systems send before they kill: mpirun and a person TERM and INT, Slurm what --signal says.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


class StopRequest:
    """Within it, true once this rank got one of SIGNALS. The second SIGINT is not caught, and ends the process at once.

    It begins before the data are read: who is asked to stop then takes the first step, and stops after it.
    """

    def __init__(self) -> None:
        self.asked = False
        self.limit: TimeLimit | None = None  # looked at before each step, on the rank that has one

    def __enter__(self) -> StopRequest:
        self._before = {number: signal.signal(number, self._ask) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Leave the signals as they were."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def __bool__(self) -> bool:
        return self.asked

    def before_step(self, saving: float, ahead: int = 0) -> bool:
        """Whether the coming step is to be the last; a checkpoint takes `saving` seconds.

        With `ahead` so many steps are under way, and as many will be before anybody hears what is said here.
        """
        return self.asked or (self.limit is not None and self.limit.near(saving, ahead))

    @property
    def reason(self) -> str:
        """Why the run stops, as the end event tells it."""
        return "time-limit" if self.limit is not None and self.limit.reached and not self.asked else "signal"

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
