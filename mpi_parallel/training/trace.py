"""`--trace`: what every rank did when, as one trace.json for ui.perfetto.dev or chrome://tracing.

Each rank listens to its own clock and keeps spans in memory, of the first `--trace-steps` steps and of what comes
seldom (evaluations, checkpoints), so a long run's trace stays small. At the end every rank's times are moved onto
rank 0's clock, and rank 0 writes them all, a process a rank:

    main thread    read, gather, forward, backward, wait, merge, update, publish, ... one after the other
    messages       what travelled beside the arithmetic, such as a bucket's sum from start to completion
    reader         rows that a thread read ahead

`wait` and `merge` are told apart by the aligned clocks, not by a barrier that would change what is measured: a
collective cannot end before its last rank has come, so until then the others wait.
"""

from __future__ import annotations

import json
import platform
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np

from mpi_parallel.device.clock import Clock
from mpi_parallel.device.nvtx import ranges_on
from mpi_parallel.mpi.clocks import seconds_behind
from mpi_parallel.mpi.communicator import Communicator
from mpi_parallel.mpi.process_grid import ProcessGrid
from mpi_parallel.training.log import logger

MAIN = "main"
SELDOM = ("read data", "evaluate", "checkpoint")  # kept also behind the steps that are traced
MOST_SELDOM = 10_000


class Span(NamedTuple):
    """Something that a rank did, in seconds of perf_counter."""

    lane: str
    name: str
    begun: float
    ended: float
    step: int
    micro: int | None = None


class Recorder:
    """Keeps the spans of one rank; memory is bounded by the steps that it is told to keep."""

    def __init__(self, steps: int) -> None:
        self.steps, self.spans, self._seldom = steps, list[Span](), 0
        self.first: int | None = None  # step; a run that goes on does not begin with 1
        self._open: tuple[float, int, str, int | None] | None = None

    def change(self, now: float, step: int, name: str, micro: int | None) -> None:
        """The span that is open ends, another one begins. Time that belongs to nothing in particular is left out."""
        if self._open is not None:
            begun, of, was, number = self._open
            self._keep(Span(MAIN, was, begun, now, of, number))
        self._open = None if name == "other" else (now, step, name, micro)

    def beside(self, step: int, lane: str, name: str, begun: float, ended: float) -> None:
        self._keep(Span(lane, name, begun, ended, step))

    def _keep(self, span: Span) -> None:
        if span.step and self.first is None:
            self.first = span.step
        if span.step < (self.first or 1) + self.steps:
            self.spans.append(span)
        elif span.name in SELDOM and self._seldom < MOST_SELDOM:
            self._seldom += 1
            self.spans.append(span)


class Trace:
    """The trace of a run on all ranks."""

    def __init__(self, steps: int, clock: Clock, world: Communicator, grid: ProcessGrid) -> None:
        """Begin to listen to the clock; all ranks together."""
        self.world, self.grid, self.recorder = world, grid, Recorder(steps)
        self._ticks = [_tick(world)]
        clock.listeners += (self.recorder, *ranges_on(grid.data.device))

    def write(self, folder: Path) -> str | None:
        """Rank 0 writes trace.json into the folder; all ranks together. The file's name, None where it cannot."""
        path = folder / "trace.json"
        self._ticks.append(_tick(self.world))
        spans, first = list(self._aligned()), self.recorder.first or 1
        for name, comm in (("merge", self.world), ("publish", self.grid.data)):
            spans = _apart(spans, name, comm, range(first, first + self.recorder.steps))
        facts = {"steps": self.recorder.steps, "clocks": "those of all ranks moved onto rank 0's"}
        mine = ",\n".join(json.dumps(event) for event in _events(spans, self.world.rank, self.grid))
        if self.world.rank:
            self.world.hand_over(mine)
            return path.name
        part, texts = path.with_name("trace.json.part"), self.world.take_over()
        try:
            with part.open("w") as file:
                file.write(f'{{"displayTimeUnit": "ms", "otherData": {json.dumps(facts)}, "traceEvents": [\n{mine}')
                for text in texts:
                    file.write(",\n" + text)
                file.write("\n]}\n")
            part.replace(path)
        except OSError as error:  # no reason for a run to fail that is over and well kept
            logger.warning("%s could not be written: %s", path, error)
            deque(texts, maxlen=0)  # the others are waiting to hand theirs over
            return None
        return path.name

    def _aligned(self) -> Iterator[Span]:
        """My spans in rank 0's time, in seconds since its trace began; clocks drift, so between two measurements."""
        (first, offset), (last, later) = self._ticks
        zero = float(self.world.broadcast(np.array([first]) if self.world.rank == 0 else None)[0])
        drift = (later - offset) / max(last - first, 1e-9)
        for span in self.recorder.spans:
            begun, ended = (t + offset + drift * (t - first) - zero for t in (span.begun, span.ended))
            yield span._replace(begun=begun, ended=ended)


class NoTrace:
    """The twin of Trace in runs that nobody traces."""

    def write(self, folder: Path) -> str | None:
        return None


def open_trace(asked: bool, steps: int, clock: Clock, world: Communicator, grid: ProcessGrid) -> Trace | NoTrace:
    """What `--trace` asks for."""
    return Trace(steps, clock, world, grid) if asked else NoTrace()


def _tick(world: Communicator) -> tuple[float, float]:
    """(this rank's time, what to add to it for rank 0's). The ranks of a node share one clock."""
    node = world.node()
    leaders = world.split(int(node.rank > 0))
    behind, _ = seconds_behind(leaders) if node.rank == 0 else (0.0, 0.0)
    behind = float(node.broadcast(np.array([behind]))[0])
    node.free()
    leaders.free()
    return perf_counter(), behind


def _apart(spans: Iterable[Span], name: str, comm: Communicator, steps: range) -> list[Span]:
    """The spans, those of this name cut where the last rank of `comm` has come: what is before is `wait`."""
    spans = list(spans)
    arrivals = np.full(len(steps), -np.inf)  # by step
    for span in spans:
        if span.name == name:
            arrivals[steps.index(span.step)] = span.begun
    comm.on_host().largest(arrivals)
    cut: list[Span] = []
    for span in spans:
        if span.name != name:
            cut.append(span)
            continue
        middle = min(max(float(arrivals[steps.index(span.step)]), span.begun), span.ended)
        cut += [span._replace(name="wait", ended=middle), span._replace(begun=middle)]
    return [span for span in cut if span.ended > span.begun]


def _events(spans: list[Span], rank: int, grid: ProcessGrid) -> Iterator[dict[str, Any]]:
    """This rank's part of traceEvents (Trace Event Format): names of its lanes, a span a step, and the spans."""
    place = ", ".join(f"{axis} {comm.rank}" for axis, comm in _axes(grid) if comm.size > 1)
    label = f"rank {rank} on {platform.node()}" + (f" ({place})" if place else "")
    yield {"ph": "M", "pid": rank, "tid": 0, "name": "process_name", "args": {"name": label}}
    yield {"ph": "M", "pid": rank, "tid": 0, "name": "process_sort_index", "args": {"sort_index": rank}}
    numbers: dict[str, int] = {}
    for lane, span in (*_whole_steps(spans), *_in_lanes(spans)):
        if lane not in numbers:
            numbers[lane] = len(numbers)
            yield {"ph": "M", "pid": rank, "tid": numbers[lane], "name": "thread_name", "args": {"name": lane}}
        arguments = {"step": span.step} | ({} if span.micro is None else {"micro": span.micro})
        begun, took = round(1e6 * span.begun, 3), round(1e6 * (span.ended - span.begun), 3)
        where = {"pid": rank, "tid": numbers[lane]}
        yield {"ph": "X", **where, "name": span.name, "ts": begun, "dur": took, "args": arguments}


def _axes(grid: ProcessGrid) -> tuple[tuple[str, Communicator], ...]:
    return ("data", grid.data), ("pipe", grid.pipe), ("tensor", grid.tensor)


def _whole_steps(spans: Sequence[Span]) -> Iterator[tuple[str, Span]]:
    """A span around those of each step that was taken, which viewers show as their parent."""
    steps: dict[int, Span] = {}
    taken = {span.step for span in spans if span.name == "update"}
    for span in spans:
        if span.lane == MAIN and span.step in taken and span.name not in SELDOM:
            whole = steps.get(span.step, span._replace(name=f"step {span.step}", micro=None))
            steps[span.step] = whole._replace(begun=min(whole.begun, span.begun), ended=max(whole.ended, span.ended))
    return ((MAIN, whole) for whole in steps.values())


def _in_lanes(spans: Iterable[Span]) -> Iterator[tuple[str, Span]]:
    """Each span with its lane; what overlaps in a lane, as messages do, gets lanes of its own: messages, messages 2."""
    free: dict[str, list[float]] = {}  # when each of the lane's lines is free again
    for span in sorted(spans, key=lambda span: span.begun):
        ends = free.setdefault(span.lane, [])
        line = next((n for n, end in enumerate(ends) if end <= span.begun), len(ends))
        ends[line:] = [span.ended, *ends[line + 1 :]]
        yield span.lane if line == 0 else f"{span.lane} {line + 1}", span
