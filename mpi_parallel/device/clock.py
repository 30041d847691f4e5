"""Where the time of a run goes: a stopwatch that is always in exactly one phase."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter
from typing import TypeVar

Item = TypeVar("Item")
PHASES = ("data", "compute", "merge", "update", "other")


class Clock:
    """Seconds by phase; `enter` ends the phase before.

    One call takes a fraction of a microsecond, so it is always on.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Start from zero, in the phase "other"."""
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self._phase, self._since = "other", perf_counter()

    def enter(self, phase: str) -> None:
        """Book the time since the last call to the phase that was entered then."""
        now = perf_counter()
        self.seconds[self._phase] += now - self._since
        self._phase, self._since = phase, now

    def booked(self, phase: str, items: Iterator[Item]) -> Iterator[Item]:
        """The items, the time that it takes to find the next one booked to the phase."""
        while True:
            self.enter(phase)
            item = next(items, None)
            self.enter("other")
            if item is None:
                return
            yield item

    def total(self) -> float:
        """Seconds since the reset."""
        self.enter(self._phase)
        return sum(self.seconds.values())


def process_seconds() -> float:
    """Seconds since this process was started, the interpreter's own start included (proc_pid_stat(5), field 22)."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    return time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / os.sysconf("SC_CLK_TCK")
