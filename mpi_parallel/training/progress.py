"""What a person sees while it trains: a bar on a terminal, lines in a batch log, nothing."""

from __future__ import annotations

import os
import re
import sys
import time
from pathlib import Path
from typing import Any, Protocol

SIGN_OF_LIFE = 30.0  # seconds between two lines of a long epoch in a batch log
BETWEEN_RATES = 0.25  # seconds between two looks at the rate
BOLD, GREEN, YELLOW, BLUE, PLAIN = "\x1b[1m", "\x1b[32m", "\x1b[33m", "\x1b[34m", "\x1b[0m"
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

    def __init__(self, total: int, batch: int = 0) -> None:
        self.total, self.batch, self._last = total, batch, time.monotonic()
        self._began: tuple[int, float] | None = None  # the first step that was heard of, and when

    def step(self, number: int, loss: float) -> None:
        now = time.monotonic()
        first, since = self._began = self._began or (number, now)
        if now - self._last > SIGN_OF_LIFE:
            rate = (number - first) / max(now - since, 1e-9)
            left = (
                f", {rate * self.batch:,.0f} samples/s, {duration((self.total - number) / rate)} left" if rate else ""
            )
            self.line(f"  step {number}/{self.total}, loss {loss:.4f}{left}")

    def line(self, text: str) -> None:
        self._last = time.monotonic()
        print(text, flush=True)


class Bar:
    """A tqdm bar over all steps of the run, with rates and the time that is left, and the log's lines above it."""

    def __init__(self, total: int, columns: int, batch: int = 0, colours: bool = False) -> None:
        from tqdm import tqdm  # here, because only one rank shows a bar

        self._bar: Any = tqdm(
            total=total, unit="step", ncols=columns, leave=False, dynamic_ncols=False, colour="blue" if colours else
            None, bar_format="{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]",
        )  # fmt: skip
        self.batch, self._colours, self._told = batch, colours, 0.0

    def step(self, number: int, loss: float) -> None:
        self._bar.update()
        now = time.monotonic()
        if now - self._told > BETWEEN_RATES:
            rate = self._bar.format_dict["rate"] or 0.0
            told = f"{rate * self.batch:,.0f} samples/s, " if rate else ""  # tqdm has none before it has drawn twice
            self._bar.set_postfix_str(f"{told}loss {loss:.4f}", refresh=False)
            self._told = now

    def line(self, text: str) -> None:
        # On stderr like the bar: under mpirun the two streams come by two pipes and would overtake each other.
        self._bar.write(painted(text) if self._colours else text, file=sys.stderr)

    def close(self) -> None:
        self._bar.close()


def open_progress(kind: str, total: int, speaks: bool, batch: int = 0) -> Progress:
    """The progress that `--progress` asks for, of steps of `batch` rows; ranks that do not speak get a silent one."""
    if not speaks or kind == "none":
        return Silent()
    columns = terminal_columns()
    if kind == "bar" or (kind == "auto" and columns):
        return Bar(total, columns or 100, batch, colours=columns is not None and wants_colours())
    return Plain(total, batch)


def wants_colours() -> bool:
    """Whether who looks on wants colours: NO_COLOR (no-color.org) and TERM=dumb say that they don't."""
    return not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def painted(line: str) -> str:
    """The line with what one looks for in it made to stand out: results bold, how a run ended green or yellow."""
    if line.startswith(("finished", "target", "early-stop")):
        return f"{BOLD}{GREEN}{line}{PLAIN}"
    if line.startswith(("signal", "time-limit")):
        return f"{BOLD}{YELLOW}{line}{PLAIN}"
    if line.startswith("epoch"):
        return re.sub(r"(accuracy|validation \S+) (\d\.\d+)", rf"\1 {BOLD}\2{PLAIN}", line)
    return re.sub(r"^( *)(\S[^:]{2,10}?)(  +)(?=\S)", rf"\1{BLUE}\2{PLAIN}\3", line)  # what the line is about


def duration(seconds: float) -> str:
    """3.2 s, 4:05 or 1:02:03."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"


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
