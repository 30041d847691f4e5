"""What a person sees while it trains: a bar on a terminal, lines in a batch log, nothing."""

from __future__ import annotations

import sys
import time
from typing import Any, Protocol

PATIENCE = 30.0  # seconds between two lines of a long epoch in a batch log


class Progress(Protocol):
    """Hears of steps and lines."""

    def step(self, number: int, loss: float) -> None:
        """Step `number` (from 1) has been taken; `loss` is the mean over the epoch so far."""

    def line(self, text: str) -> None:
        """Show a line of the log."""

    def close(self) -> None:
        """Nothing more will come."""


class Silent:
    """Shows nothing: the twin of the others on ranks above 0."""

    def step(self, number: int, loss: float) -> None:
        pass

    def line(self, text: str) -> None:
        pass

    def close(self) -> None:
        pass


class Plain(Silent):
    """Lines only, and a sign of life in epochs that take long."""

    def __init__(self, total: int) -> None:
        self.total, self._last = total, time.monotonic()

    def step(self, number: int, loss: float) -> None:
        if time.monotonic() - self._last > PATIENCE:
            self.line(f"  step {number}/{self.total}, loss {loss:.4f}")

    def line(self, text: str) -> None:
        self._last = time.monotonic()
        print(text, flush=True)


class Bar:
    """A tqdm bar over all steps of the run, with lines above it."""

    def __init__(self, total: int) -> None:
        from tqdm import tqdm  # here, because only one rank shows a bar

        self._bar: Any = tqdm(total=total, unit="step", dynamic_ncols=True, leave=False)

    def step(self, number: int, loss: float) -> None:
        self._bar.update()
        if number % 100 == 0:
            self._bar.set_postfix_str(f"loss {loss:.4f}", refresh=False)

    def line(self, text: str) -> None:
        self._bar.write(text)

    def close(self) -> None:
        self._bar.close()


def open_progress(kind: str, total: int, speaks: bool) -> Progress:
    """The progress that `--progress` asks for; ranks that do not speak get a silent one."""
    if not speaks or kind == "none":
        return Silent()
    if kind == "bar" or (kind == "auto" and sys.stderr.isatty() and sys.stdout.isatty()):
        return Bar(total)
    return Plain(total)
