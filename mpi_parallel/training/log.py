"""What a run leaves behind: config.toml, metrics.jsonl and the log, written by rank 0; the others' warnings apart."""

from __future__ import annotations

import fcntl
import json
import logging
import math
import os
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

from mpi_parallel.mpi.communicator import Communicator
from mpi_parallel.options import InputError
from mpi_parallel.options.toml import write_toml
from mpi_parallel.training.board import Board, NoBoard
from mpi_parallel.training.progress import Progress, open_progress

logger = logging.getLogger("mpi_parallel")

PATIENCE = 5.0  # seconds that a run which was killed may take to be gone


class RunFolder:
    """The folder of one run. All ranks know its path; rank 0 makes it and writes, the others only their warnings."""

    def __init__(self, out: str | None, config: Any, progress: str, world: Communicator, goes_on: bool = False) -> None:
        """Make the folder. Raises InputError where it cannot be made, or holds a run already that is not to go on."""
        self._goes_on, self._speaks = goes_on, world.rank == 0
        self.path = Path(out or "runs")
        self._metrics: TextIO | None = None
        complaint = self._make(out, config) if self._speaks else None
        place, complaint = json.loads(world.gather_text(json.dumps([os.fspath(self.path), complaint]))[0])
        self.path = Path(place)
        if complaint:
            raise InputError(complaint)
        self.board: Board = NoBoard()
        self.console = _Console(open_progress("none" if progress == "none" else "plain", 0, world.rank == 0))
        self._handlers = _handlers(self.path, world.rank, self.console)
        for handler in self._handlers:
            logger.addHandler(handler)
        logger.setLevel(logging.INFO if world.rank == 0 else logging.WARNING)
        logger.propagate = False

    @property
    def checkpoints(self) -> Path:
        """Where the run's checkpoints are."""
        return self.path / "checkpoints"

    def keep(self, config: Any) -> None:
        """Write the configuration in place of that of a run that goes on."""
        if self._metrics is not None and self._goes_on:
            write_toml(config, self.path / ".config.toml")
            (self.path / ".config.toml").replace(self.path / "config.toml")

    def event(self, name: str, **facts: Any) -> None:
        """Append one line to metrics.jsonl, at once."""
        self.board.tell(name, facts)
        if self._metrics is not None:
            try:
                self._metrics.write(json.dumps(_speakable({"event": name, **facts}), allow_nan=False) + "\n")
                self._metrics.flush()
            except OSError as error:
                error.filename = str(self.path / "metrics.jsonl")
                raise

    def tell(self, level: int, message: str, *values: Any) -> None:
        """Log what all ranks know alike, once."""
        if self._speaks:
            logger.log(level, message, *values)

    def show_on(self, board: Board) -> None:
        """From now on events go there too."""
        self.board = board

    def show_through(self, progress: Progress) -> None:
        """From now on the log's lines go to the terminal through this progress."""
        self.console.progress = progress

    def close(self) -> None:
        """Close the files. What could not be written has been told when it was tried."""
        self.board.close()
        for handler in self._handlers:
            logger.removeHandler(handler)
        for file in (*self._handlers, self._metrics):
            with suppress(OSError):
                if file is not None:
                    file.close()

    def _open_metrics(self) -> TextIO:
        """The file of events; one that goes on loses a last line that was not finished."""
        path = self.path / "metrics.jsonl"
        file = path.open("a" if self._goes_on else "x")
        try:
            _lock(file)
            os.truncate(path, path.read_bytes().rfind(b"\n") + 1)
        except OSError:
            file.close()
            raise
        return file

    def _make(self, out: str | None, config: Any) -> str | None:
        """Make the folder and config.toml; what is wrong, if something is."""
        try:
            self.path = _numbered(Path("runs") / time.strftime("%Y%m%d-%H%M%S")) if out is None else Path(out)
            self.path.mkdir(parents=True, exist_ok=True)
            if (self.path / "metrics.jsonl").exists() and not self._goes_on:
                return f"--out {self.path} holds a run already: name another folder, or go on with --resume auto"
            if not (self._goes_on and (self.path / "config.toml").exists()):
                write_toml(config, self.path / "config.toml")
            self._metrics = self._open_metrics()
        except OSError as error:
            return f"--out {out or 'runs'}: {error}"
        return None


class _Console(logging.Handler):
    """Shows log lines through the progress, so that a bar stays below them."""

    def __init__(self, progress: Progress) -> None:
        super().__init__()
        self.progress = progress

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.WARNING:
            print(self.format(record), file=sys.stderr, flush=True)
        else:
            self.progress.line(self.format(record))


class _LogFile(logging.FileHandler):
    """A log file that ends the run where it cannot be written, on a full disk for instance, and then takes no more."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802, the name is logging's
        error = sys.exception()
        logger.removeHandler(self)
        if isinstance(error, OSError):
            error.filename = self.baseFilename
        raise


def _lock(file: TextIO) -> None:
    """Keep other runs from going on here until the file is closed. Raises OSError where one does, after some patience.

    Two runs in one folder would write their checkpoints into each other's files.
    """
    since = time.monotonic()
    while True:
        try:
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            if time.monotonic() - since > PATIENCE:
                raise OSError("another run is writing there: wait for its end, or name another folder") from None
            time.sleep(0.1)
        except OSError:
            return None  # a file system without locks


def _handlers(path: Path, rank: int, console: logging.Handler) -> list[logging.Handler]:
    """Rank 0: the terminal and log.txt.

    Others: errors on stderr, warnings in a file that is made when there are some.
    """
    if rank:
        console.setLevel(logging.ERROR)
    file = _LogFile(path / (f"rank-{rank}.log" if rank else "log.txt"), delay=rank > 0)
    file.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    return [console, file]


def _speakable(value: Any) -> Any:
    """The value with None for numbers that are not finite: JSON has no word for them."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _speakable(item) for key, item in value.items()}
    return [_speakable(item) for item in value] if isinstance(value, list | tuple) else value


def _numbered(path: Path) -> Path:
    """The path itself, or with -2, -3, … where it is there already."""
    number, free = 1, path
    while free.exists():
        number += 1
        free = path.with_name(f"{path.name}-{number}")
    return free
