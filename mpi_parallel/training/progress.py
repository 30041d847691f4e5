"""What a person sees while it trains: a bar on a terminal, lines in a batch log, nothing."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any, Protocol

SIGN_OF_LIFE = 30.0  # seconds between two lines of a long epoch in a batch log
LAUNCHERS = ("mpirun", "mpiexec", "prterun", "prted", "orterun", "orted", "hydra", "srun")


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
        if time.monotonic() - self._last > SIGN_OF_LIFE:
            self.line(f"  step {number}/{self.total}, loss {loss:.4f}")

    def line(self, text: str) -> None:
        self._last = time.monotonic()
        print(text, flush=True)


class Bar:
    """A tqdm bar over all steps of the run, with the log's lines above it."""

    def __init__(self, total: int, columns: int) -> None:
        from tqdm import tqdm  # here, because only one rank shows a bar

        self._bar: Any = tqdm(total=total, unit="step", ncols=columns, leave=False)

    def step(self, number: int, loss: float) -> None:
        self._bar.update()
        if number % 100 == 0:
            self._bar.set_postfix_str(f"loss {loss:.4f}", refresh=False)

    def line(self, text: str) -> None:
        # On stderr like the bar: under mpirun the two streams come by two pipes and would overtake each other.
        self._bar.write(text, file=sys.stderr)

    def close(self) -> None:
        self._bar.close()


def open_progress(kind: str, total: int, speaks: bool) -> Progress:
    """The progress that `--progress` asks for; ranks that do not speak get a silent one."""
    if not speaks or kind == "none":
        return Silent()
    columns = terminal_columns()
    if kind == "bar" or (kind == "auto" and columns):
        return Bar(total, columns or 100)
    return Plain(total)


def terminal_columns() -> int | None:
    """Width of the terminal that stderr ends on; None where it ends in a file or a pipe to another program.

    A rank's own streams do not tell: Open MPI gives it a pseudo-terminal even when mpirun writes to a file, and MPICH a
    pipe even when mpirun writes to a terminal. So below a launcher, that one's stderr is looked at.
    """
    process = os.getpid()
    for _ in range(8):  # mpirun, its proxy, perhaps a shell or two
        parent, name = _parent(process)
        if not name.startswith(LAUNCHERS):
            break
        process = parent
    return _columns(Path(f"/proc/{process}/fd/2"))


def _columns(stream: Path) -> int | None:
    try:
        descriptor = os.open(stream, os.O_WRONLY | os.O_NOCTTY | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        return os.get_terminal_size(descriptor).columns or None
    except OSError:
        return None
    finally:
        os.close(descriptor)


def _parent(process: int) -> tuple[int, str]:
    """Number and name of a process's parent (proc_pid_stat(5)); (0, "") where that cannot be read."""
    try:
        number = int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
        return number, Path(f"/proc/{number}/comm").read_text().strip()
    except (OSError, ValueError):
        return 0, ""
