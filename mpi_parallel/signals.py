"""Signals that ask a training to stop, remembered from its first moment on, long before there is a step to stop after.

`import mpi_parallel` listens, as the first thing that a training does: of the second or two until MPI and the data are
there nothing is lost but an exit status that says so. Who looks, and what then, is told in training/faults/signals.py.
"""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any

# What launchers and batch systems send before they kill: mpirun and a person TERM and INT, Slurm what --signal says.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
STOPPED = 75  # exit status for a run that was asked to stop, and may be started again: EX_TEMPFAIL of sysexits.h
PATIENCE = 10.0  # seconds between such a signal and an end without an agreement, where training has not begun


class StopAsked(Exception):
    """The run was asked to stop before it had anything to lose."""


class Requests:
    """What this process was asked; true once it got one of SIGNALS."""

    def __init__(self) -> None:
        self.by: signal.Signals | None = None  # the first one
        self.heeded = False  # whether training has begun, which stops after a step and saves it
        self._since = 0.0
        self._before: dict[signal.Signals, Any] = {}
        self._last: Any = signal.SIG_DFL

    def __bool__(self) -> bool:
        return self.by is not None

    def listen(self, last: Any = signal.SIG_DFL) -> bool:
        """Catch the signals, where nobody does yet; whether that was so. A second SIGINT is `last`'s."""
        if self._before:
            return False
        self._last = last
        self._before = {number: signal.signal(number, self._ask) for number in SIGNALS}
        return True

    def forget(self) -> None:
        """Leave the signals as they were, and nothing asked."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self.__init__()  # type: ignore[misc]

    def overdue(self) -> bool:
        """Whether the set-up goes on for too long after a signal."""
        return self.by is not None and not self.heeded and time.monotonic() - self._since > PATIENCE

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.by is None:
            self.by, self._since = signal.Signals(number), time.monotonic()
        if number == signal.SIGINT:
            signal.signal(number, self._last)


REQUESTS = Requests()  # one a process, as its signals are


def is_training() -> bool:
    """Whether this process was started to train, told while the first module of the package is imported."""
    program, *words = sys.argv or [""]
    if program == "-m":
        module = sys.orig_argv[-len(sys.argv)]
        return module == f"{__package__}.train" or (module == __package__ and words[:1] == ["train"])
    return Path(program).name == "mpi-parallel" and words[:1] == ["train"]
