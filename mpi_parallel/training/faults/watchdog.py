"""A thread that ends a job in which nothing moves, or of which a rank has died, and tells which rank it was and where.

Every rank's watchdog reads the signs of life of its process (mpi/pulse.py) and tells rank 0's each second, over lines
that do not need MPI (mpi/lines.py). Rank 0's watchdog judges: the job hangs when no rank has moved for the timeout.
Steps and collectives are taken together, so one stuck rank soon stops all, while one that reads or writes for long and
moves on meanwhile is no reason to end anything. When rank 0 itself does not answer, each of the others judges for
itself. Nothing here needs a stuck rank's main thread: its stack is shown by its watchdog, or, where the whole process
was stopped, by its handler of SIGQUIT when a watchdog of the same host wakes it.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import tempfile
import time
from collections.abc import Collection, Sequence
from contextlib import suppress
from threading import Event, Thread
from types import TracebackType

from mpi4py import MPI

from mpi_parallel.mpi.communicator import Communicator
from mpi_parallel.mpi.lines import Lines
from mpi_parallel.mpi.pulse import PULSE
from mpi_parallel.signals import REQUESTS, STOPPED
from mpi_parallel.training.faults.sightings import Sightings

SECOND = 1.0  # between two signs of life
MISSED = 5  # signs of life that may fail to come before a rank counts as silent
GRACE = 2.0  # seconds for the launcher to end a job of which a rank died, and for stacks to be shown
UNUSUAL, LEAST = 20, 30.0  # a warning comes after so many times the longest quiet so far, and so many seconds
BYE, END = "bye", "end"


def signs_of_life() -> str:
    """Of this process, in one line."""
    step = f"step {PULSE.step}" if PULSE.step else PULSE.doing
    return f"{PULSE.stage} {PULSE.step} {PULSE.beats} {int(PULSE.waits > 0)} {step}"


class Watchdog:
    """Watches from when it is made until `close`; all ranks make and close it together."""

    def __init__(self, world: Communicator, timeout: float, outlives_ranks: bool = False) -> None:
        """`timeout` are the seconds without any progress that are too many; with 0 only deaths count.

        A job that `outlives_ranks` is not ended by the death of one.
        """
        self.rank, self.size, self.timeout, self.outlives_ranks = world.rank, world.size, timeout, outlives_ranks
        self.lines = Lines(world)
        self._interval = min(SECOND * max(1.0, self.size / 1000), (timeout or LEAST) / 8)
        texts = [text.partition(" ") for text in world.gather_text(f"{os.getpid()} {self.lines.host}")]
        hosts, pids = [host for _, _, host in texts], [int(pid) for pid, _, _ in texts]
        self.seen = Sightings(self.rank, hosts, pids, MISSED * self._interval)
        self.longest, self.warned = 0.0, False
        self._closing = Event()
        faulthandler.register(signal.SIGQUIT, sys.__stderr__ or 2, all_threads=True, chain=False)
        self._thread = Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()

    def __enter__(self) -> Watchdog:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Stop watching; the others hear that this rank leaves on purpose."""
        self._closing.set()
        self.lines.ring()
        self._thread.join(GRACE)
        faulthandler.unregister(signal.SIGQUIT)

    def _watch(self) -> None:
        if self.rank:
            self.seen[0].line = self.lines.dial()
            self.seen[0].heard = time.monotonic()
            if not self.seen[0].line:
                _say(f"rank {self.rank}: no connection to {self.seen.where(0)}; a hang is noticed, but not whose")
        last, due = time.monotonic(), 0.0
        while not self._closing.is_set():
            heard = self.lines.poll(max(0.0, due - time.monotonic()))
            now = time.monotonic()
            if now - last > MISSED * self._interval + GRACE:  # this process was stopped for a while: start anew
                self.seen.forgive(now - last)
            last = now
            for rank, text in heard:
                self._hear(rank, text, now)
            if now >= due:
                due = now + self._interval
                self.seen.mine.hear(now, signs_of_life())
                self.lines.send(signs_of_life())
                self._judge(now)
                if REQUESTS.overdue():
                    _say(f"asked to stop and still {PULSE.doing}; nothing is lost: ending the job")
                    self._leave(STOPPED)
        self.lines.send(BYE)
        self.lines.close()

    def _hear(self, rank: int, text: str | None, now: float) -> None:
        sighting = self.seen[rank]
        sighting.line = True
        if text is None:
            if not (sighting.gone or self.outlives_ranks):
                self._mourn(rank)
        elif text == BYE:
            sighting.gone = True
        elif text.startswith(END):
            self._obey([int(word) for word in text.split()[1:]])
        else:
            sighting.hear(now, text)

    def _judge(self, now: float) -> None:
        """Whether the job hangs, as far as this rank can tell."""
        hub = self.seen[0]
        if self.rank and hub.line and not hub.gone and not self.seen.silent(0, now):
            return  # rank 0 knows more
        quiet = self.seen.quiet(now)
        self.warned = self.warned and quiet > self._interval
        if self.timeout and quiet > self.timeout:
            self._end(f"no rank has moved for {quiet:.0f} s (--hang-timeout): ending the job", now)
        elif quiet > max(LEAST, UNUSUAL * self.longest) and not self.warned and self.rank == 0:
            self.warned = True
            _say(
                f"no rank has moved for {quiet:.0f} s; before it was {self.longest:.0f} s at most{self.seen.told(now)}"
            )
        elif not self.warned:
            self.longest = max(self.longest, quiet)

    def _mourn(self, rank: int) -> None:
        """A rank's line broke without a bye: its process is dead. Where the launcher does not end the job, do so."""
        sighting = self.seen[rank]
        time.sleep(0.02 * min(self.rank, 50))  # if rank 0 died, let the next one speak first
        _say(
            f"{self.seen.where(rank)} died, as when it is killed or memory runs out; last seen in: {sighting.doing}. "
            "Ending the job"
        )
        if not self._closing.wait(GRACE):
            self._leave()

    def _end(self, why: str, now: float) -> None:
        """Tell which rank it is, have all stacks shown, and end the job."""
        _say(why + self.seen.told(now))
        silent = [rank for rank in self.seen.ranks if self.seen.silent(rank, now)]
        self.lines.send(" ".join([END, *map(str, silent)]))
        self._obey(silent)

    def _obey(self, silent: Sequence[int]) -> None:
        """Show this rank's stack and those of silent ranks on this host, and leave."""
        PULSE.halted = True
        show_stack(self.seen.where(self.rank))
        time.sleep(GRACE / 2)  # others that judge for themselves must not find a rank that was woken alive
        here = [rank for rank, host in enumerate(self.seen.hosts) if host == self.lines.host]
        mute = set(here) & set(silent) if self.rank == next((r for r in here if r not in silent), None) else set()
        for rank in mute:
            with suppress(OSError):
                os.kill(self.seen.pids[rank], signal.SIGQUIT)  # its handler shows the stack, once it may run again
                os.kill(self.seen.pids[rank], signal.SIGCONT)
        time.sleep(GRACE * (0.5 if self.rank == 0 or 0 in silent else 1.5))
        self._leave(1, mute)

    def _leave(self, status: int = 1, mute: Collection[int] = ()) -> None:
        """End the job. Where it outlives ranks each leaves by itself, and the `mute` of its host are ended.

        When some have died before, an abort may make Open MPI's mpirun return 0; a rank that leaves with a status does
        not.
        """
        if not self.outlives_ranks:
            _abort(status)
        for rank in mute:
            with suppress(OSError):
                os.kill(self.seen.pids[rank], signal.SIGKILL)
        os._exit(status)


def show_stack(who: str) -> None:
    """The stacks of all other threads of this process on stderr, in one piece."""
    with tempfile.TemporaryFile() as file:
        faulthandler.dump_traceback(file, all_threads=True)
        file.seek(0)
        stacks = file.read().decode(errors="replace").split("\n\n")
    others = [stack for stack in stacks if not stack.startswith("Current thread")]
    _say("\n".join([f"{who} stands here:", *others]))


def _say(text: str) -> None:
    """Straight to stderr: the main thread may be stuck in a log file."""
    with suppress(OSError):
        os.write(2, f"watchdog: {text}\n".encode())


def _abort(status: int = 1) -> None:
    """End the job now; where the MPI cannot, this process, and the launcher ends the others."""
    with open(os.devnull, "w") as nowhere:
        faulthandler.dump_traceback_later(GRACE, exit=True, file=nowhere)
        MPI.COMM_WORLD.Abort(status)
