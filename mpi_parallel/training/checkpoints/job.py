"""One checkpoint on its way to the disk: what is done on the thread, and what the ranks tell each other about it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:
    from mpi_parallel.training.checkpoints.saver import Saver
    from mpi_parallel.training.checkpoints.state import Snapshot

BEST = "best.h5"
GLANCES = 50  # at what has just begun, some 20 us together


class Waitable(Protocol):
    """Something that is under way."""

    def done(self) -> bool: ...

    def wait(self) -> None: ...


class Task:
    """Work on the thread; what it raises of OSError becomes the job's error."""

    def __init__(self, job: Job, work: Callable[[], None]) -> None:
        self._job, self._future = job, job.pool.submit(work)

    def done(self) -> bool:
        return self._future.done()

    def wait(self) -> None:
        try:
            self._future.result()
        except OSError as error:
            self._job.error = error


class Job:
    """One checkpoint on its way to the disk: all ranks write, then one of them names the file, then all know of it."""

    def __init__(self, saver: Saver, pool: ThreadPoolExecutor, parts: dict[str, Snapshot]) -> None:
        """`parts` are what to write, by the files' names; the job is told by the last of them."""
        self.saver, self.pool, self.parts, self.since = saver, pool, parts, perf_counter()
        *_, self.name = parts
        self.step: int = self.parts[self.name].numbers["step"]
        self.error: OSError | None = None
        self.seconds = 0.0
        self._failed = np.zeros(1, np.int32)
        self._course = self._stages()
        self._stage: Waitable | None = next(self._course)
        self._new = False  # whether the stage has just begun

    @property
    def failures(self) -> int:
        """How many ranks failed; the same on all, once all is done."""
        return int(self._failed[0])

    def look(self) -> bool:
        """Go on as far as that needs no waiting; whether all is done."""
        while self._stage is not None and self._glance(self._stage):
            self._go_on()
        return self._stage is None

    def _glance(self, stage: Waitable) -> bool:
        """Whether it is done; of what has just begun also in some microseconds, instead of a step later.

        A sum that all ranks enter on their way out of the same step takes no longer.
        """
        glances, self._new = GLANCES if self._new else 1, False
        return any(stage.done() for _ in range(glances))

    def wait(self) -> None:
        """Until all is done."""
        while self._stage is not None:
            self._go_on()

    def _go_on(self) -> None:
        assert self._stage is not None
        self._stage.wait()
        self._stage, self._new = next(self._course, None), True

    def _stages(self) -> Iterator[Waitable]:
        """What is under way, one after the other."""
        yield Task(self, self._write)
        yield self._agree()
        if self.saver.comm.rank == 0:
            yield Task(self, self._name)
        yield self._agree()
        self.seconds = self.seconds or perf_counter() - self.since

    def _agree(self) -> Waitable:
        """Begin to count the ranks that failed."""
        self._failed[0] = self.error is not None
        return self.saver.comm.begin_sum(self._failed)

    def _write(self) -> None:
        """On the thread: this rank's pieces of the best and of the last state."""
        for name, snapshot in self.parts.items():
            facts = self.saver.facts | snapshot.numbers | {"written": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
            self.saver.blueprint.write(self._unfinished(name), snapshot, facts)

    def _name(self) -> None:
        """On rank 0's thread, when all ranks have written: give the files their names, or remove them."""
        saver = self.saver
        for name in self.parts:
            if self.failures:
                self._unfinished(name).unlink(missing_ok=True)
            else:
                self._unfinished(name).replace(saver.folder / name)
        flush(saver.folder)
        self.seconds = perf_counter() - self.since  # here, as the main thread looks once a step
        if not self.failures:
            prune(saver.folder, saver.keep)

    def _unfinished(self, name: str) -> Path:
        return self.saver.folder / f".{name}.part"


def prune(folder: Path, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints."""
    for path in checkpoints(folder)[keep:]:
        path.unlink(missing_ok=True)


def checkpoints(folder: Path) -> list[Path]:
    """Those of a folder, the newest first."""
    return sorted(folder.glob("step-*.h5"), reverse=True)


def flush(path: Path) -> None:
    """Have the disk hold what was written to a file or folder. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
