"""Room for a benchmark's files, and an eye on its memory."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread

from mpi_parallel.data_parallel.memory import resident
from mpi_parallel.mpi.communicator import Communicator
from mpi_parallel.options import InputError

PERIOD = 0.1  # seconds between two looks at the memory


@contextmanager
def scratch_folder(parent: str, size: int, world: Communicator) -> Iterator[Path]:
    """A folder of its own for all ranks, removed at the end. Raises InputError where the files have no room."""
    made, complaint = "", ""
    if world.rank == 0:
        try:
            free, need = shutil.disk_usage(parent).free, size * 1.05 + 2**26
            if free < need:
                complaint = f"--folder {parent} has {free >> 20} MiB left, the files take {int(need) >> 20}"
            else:
                made = tempfile.mkdtemp(prefix="benchmark-data-", dir=parent)
        except OSError as error:
            complaint = f"--folder {parent}: {error}"
    made, complaint = world.gather_text(made)[0], world.gather_text(complaint)[0]
    if complaint:
        raise InputError(complaint)
    try:
        yield Path(made)
        world.meet()  # nobody needs the files any more
    finally:
        if world.rank == 0:
            shutil.rmtree(made, ignore_errors=True)


@contextmanager
def memory_watched() -> Iterator[list[int]]:
    """The largest proportional set size of this process in the meantime, in bytes."""
    most, done = [0], Event()

    def watch() -> None:
        while True:
            most[0] = max(most[0], resident())
            if done.wait(PERIOD):
                return

    thread = Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield most
    finally:
        done.set()
        thread.join()
