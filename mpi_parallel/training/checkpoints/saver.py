"""Saving a run while it goes on: a snapshot between two steps, then a thread that writes; the disk is not waited for.

    main thread   step  copy  step  step  step  step  step  step          MPI is called here only
    writer thread             [ my pieces, fsync ]   [ rename, old ones ]  the second on rank 0, when all have written

A rank whose thread has done enters a sum over the ranks that nobody waits for; where it comes out, all have written.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from mpi_parallel.options.values import seconds_of
from mpi_parallel.training.checkpoints.blueprint import draw
from mpi_parallel.training.checkpoints.job import BEST, Job
from mpi_parallel.training.checkpoints.state import Snapshot
from mpi_parallel.training.log import logger

if TYPE_CHECKING:
    from mpi_parallel.training.run import Run

NEVER = "never"
SLOW_DISK = 50e6  # bytes/s, until a checkpoint has been measured


class Never:
    """Saves nothing: the twin of Saver for runs that want no checkpoints."""

    took = 0.0
    saved: int | None = None  # step of the last checkpoint that is whole

    def due(self) -> bool:
        return False

    def wants(self, taken: int) -> bool:
        return False

    def after_step(self, run: Run, asked: bool) -> None:
        pass

    def improved(self, run: Run) -> None:
        pass

    def last(self, run: Run) -> bool:
        return True

    def settle(self) -> None:
        pass

    def close(self) -> None:
        pass

    def rest(self) -> None:
        """Wait for what this rank is writing, without a message to others, of which some are dead."""


class Saver(Never):
    """Writes checkpoints of a run into a folder, from all ranks."""

    def __init__(self, run: Run, facts: dict[str, Any], folder: Path, every: tuple[int, float], keep: int) -> None:
        """`every` is a number of steps and one of seconds, of which one is 0; both 0 save only at the end.

        All ranks together. Raises InputError where the folder cannot be written.
        """
        self.folder, self.keep, self.facts = folder, keep, facts
        (self.steps, self.seconds), self.run = every, run
        self.comm = run.comm.on_host().split(0)  # its own: the sums of different ranks begin at different steps
        self.blueprint = draw(run, facts, folder)
        self.snapshot = Snapshot(run, self.blueprint.span)
        self.best = Snapshot(run, self.blueprint.span) if run.validation is not None else None
        self.took = self.blueprint.skeleton.size / SLOW_DISK  # seconds of the last one, from the copy to its name
        self.failed = False  # whether the last one could not be written
        self._job: Job | None = None
        self._pool = ThreadPoolExecutor(1, "checkpoint")
        self._begun, self._held = time.monotonic(), 0.0  # the last begin, and for how long it held up the step

    def due(self) -> bool:
        """Whether this rank, if it is the one with the clock, wants the coming step to be followed by a checkpoint."""
        mine = self.comm.rank == 0 and self.seconds > 0 and self._job is None
        return mine and time.monotonic() - self._begun >= self.seconds

    def wants(self, taken: int) -> bool:
        """Whether a checkpoint is due when so many steps are taken."""
        return bool(self.steps) and taken % self.steps == 0

    def after_step(self, run: Run, asked: bool) -> None:
        """Begin a checkpoint where one is `asked` for, on all ranks alike, and see to the one under way."""
        if self._job is not None and self._job.look():
            self._settled()
        if asked or self.wants(run.step):
            self._begin(run)

    def improved(self, run: Run) -> None:
        """The run stands better than ever before: keep that, to be written with the next checkpoint."""
        if self.best is not None:
            if self._job is not None and BEST in self._job.parts:
                self._finish()  # it is writing the last one
            self.best.take(run)

    def last(self, run: Run) -> bool:
        """Write where the run ends, and wait for that; whether it was written."""
        self._finish()
        if self.saved != run.step or (self.best and self.best.numbers):
            self._begin(run)
            self._finish()
        return not self.failed

    def settle(self) -> None:
        """The run went bad: keep what was begun, and the best state before, not this one; all ranks together."""
        self._finish()
        if self.best and self.best.numbers:
            self._job = Job(self, self._pool, {BEST: self.best})
            self._finish()

    def close(self) -> None:
        """No more checkpoints; all ranks together."""
        self._finish()
        self._pool.shutdown()
        self.comm.free()

    def rest(self) -> None:
        self._pool.shutdown()

    def _begin(self, run: Run) -> None:
        run.engine.clock.enter("other", "checkpoint")
        self._finish()
        self._begun, since = time.monotonic(), perf_counter()
        self.snapshot.take(run)
        parts = {BEST: self.best} if self.best and self.best.numbers else {}
        if self.saved != run.step:
            parts[f"step-{run.step:08d}.h5"] = self.snapshot
        self._job = Job(self, self._pool, parts)
        self._held = perf_counter() - since
        run.engine.clock.enter("other")

    def _finish(self) -> None:
        if self._job is not None:
            self._job.wait()
            self._settled()

    def _settled(self) -> None:
        """Tell of the checkpoint that is done."""
        job, self._job = self._job, None
        assert job is not None
        self.failed, self.took = job.failures > 0, job.seconds
        self.run.engine.clock.beside("checkpoint", "checkpoint", job.since, job.since + job.seconds)
        if self.best is not None and BEST in job.parts and not self.failed:
            self.best.numbers = {}
        path = self.folder / job.name
        if not self.failed:
            self.saved = job.step if job.name != BEST else self.saved
            self.run.folder.event("checkpoint", step=job.step, path=str(path), seconds=job.seconds, held=self._held)
            return
        with suppress(OSError):  # the log may be on the same disk
            if job.error is not None:
                logger.warning("rank %d: %s was not written: %s", self.comm.rank, path, job.error)
            elif self.comm.rank == 0:
                logger.warning("%s was not written: %d other ranks failed, see their logs", path, job.failures)
        with suppress(OSError):
            error = str(job.error or f"{job.failures} other ranks")
            self.run.folder.event("checkpoint-failed", step=job.step, path=str(path), error=error)


def open_saver(run: Run, facts: dict[str, Any]) -> Never:
    """What --checkpoint-every and --keep ask for; `facts` go into every checkpoint. All ranks together."""
    options = run.config.run
    if options.checkpoint_every == NEVER:
        return Never()
    steps = int(options.checkpoint_every) if options.checkpoint_every.isdecimal() else 0
    seconds = 0.0 if options.checkpoint_every.isdecimal() else seconds_of(options.checkpoint_every)
    return Saver(run, facts, run.folder.checkpoints, (steps, seconds), options.keep)
