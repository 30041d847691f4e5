"""Where the time of a run goes: a stopwatch that is always in exactly one phase, and tells who listens of each change.

    clock.enter("compute", "forward", micro=3)      from now on: phase "compute" of the accounts, "forward" in a trace

Without a listener (training/trace.py, device/nvtx.py) the name and the micro-batch cost nothing but their passing.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter
from typing import Protocol, TypeVar

Item = TypeVar("Item")
PHASES = ("data", "compute", "merge", "update", "other")


class Listener(Protocol):
    """Hears where the time goes, as it goes. All times are perf_counter's."""

    def change(self, now: float, step: int, name: str, micro: int | None) -> None:
        """What went on ends now, and `name` begins: of this step (from 1; 0 before the first), of this micro-batch."""

    def beside(self, step: int, lane: str, name: str, begun: float, ended: float) -> None:
        """This went on beside the rest: a message, or work of another thread, which may be the one that calls."""


class Clock:
    """Seconds by phase; `enter` ends the phase before.

    One call takes a fraction of a microsecond, so it is always on.
    """

    def __init__(self) -> None:
        self.listeners: tuple[Listener, ...] = ()
        self.step = 0  # the step that is taken, from 1: whoever takes steps sets it
        self.reset()

    def reset(self) -> None:
        """Start from zero, in the phase "other"."""
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self._phase, self._since = "other", perf_counter()
        self._tell(self._since, "other", None)

    def enter(self, phase: str, name: str = "", micro: int | None = None) -> None:
        """Book the time since the last call to the phase that was entered then.

        A trace calls what follows by its `name`, or else by its phase, and tells its micro-batch.
        """
        now = perf_counter()
        self.seconds[self._phase] += now - self._since
        self._phase, self._since = phase, now
        if self.listeners:
            self._tell(now, name or phase, micro)

    def beside(self, lane: str, name: str, begun: float, ended: float) -> None:
        """Tell of what went on meanwhile, in a lane of its own, from `begun` to `ended` (perf_counter)."""
        for listener in self.listeners:
            listener.beside(self.step, lane, name, begun, ended)

    def booked(self, phase: str, items: Iterator[Item], name: str = "") -> Iterator[Item]:
        """The items, the time that it takes to find the next one booked to the phase."""
        while True:
            self.enter(phase, name)
            item = next(items, None)
            self.enter("other")
            if item is None:
                return
            yield item

    def total(self) -> float:
        """Seconds since the reset."""
        now = perf_counter()
        self.seconds[self._phase] += now - self._since
        self._since = now
        return sum(self.seconds.values())

    def _tell(self, now: float, name: str, micro: int | None) -> None:
        for listener in self.listeners:
            listener.change(now, self.step, name, micro)


def process_seconds() -> float:
    """Seconds since this process was started, the interpreter's own start included (proc_pid_stat(5), field 22)."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    return time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / os.sysconf("SC_CLK_TCK")
