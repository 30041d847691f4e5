"""Streams, graphs and events of an emulated CuPy, which do things at once, when waited for, or at a replay."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.device.emulated import Emulated


class CUDARuntimeError(RuntimeError):
    """As CuPy names it."""


class Stream:
    """Does things at once, or when they are waited for, or records them."""

    numbers = 0

    def __init__(self, cupy: Emulated) -> None:
        self.cupy, self.recording, self.spoilt = cupy, None, False
        self.given: deque[Callable[[], None]] = deque()
        self.done = 0
        Stream.numbers += 1
        self.ptr = 1000 + Stream.numbers
        cupy.streams[self.ptr] = self

    def give(self, work: Callable[[], None]) -> None:
        self.given.append(work)
        if not self.cupy.late:
            self.catch_up()

    def catch_up(self, to: int | None = None) -> None:
        """Do what was given first, until `to` pieces of work are done."""
        while self.given and (to is None or self.done < to):
            self.done += 1
            self.given.popleft()()

    def use(self) -> Stream:
        self.cupy.current = self
        return self

    def __enter__(self) -> Stream:
        self.cupy.stack.append(self)
        return self.use()

    def __exit__(self, *_: object) -> None:
        self.cupy.stack.pop()
        self.cupy.current = self.cupy.stack[-1] if self.cupy.stack else self.cupy.default

    def synchronize(self) -> None:
        self.cupy._not_captured("waiting")
        self.cupy.events.append(("wait",))
        self.catch_up()

    def wait_event(self, event: Event) -> None:
        stream, given = event.at
        self.give(lambda: stream.catch_up(given))

    def begin_capture(self, mode: Any = None) -> None:
        assert self.recording is None
        self.recording, self.spoilt = [], False

    def end_capture(self) -> Graph:
        recorded, self.recording = self.recording, None
        if self.spoilt:
            raise CUDARuntimeError("cudaErrorStreamCaptureInvalidated: operation failed due to a previous error")
        self.cupy.recorded.append([event for event, _ in recorded])
        return Graph(self, recorded)

    def is_capturing(self) -> bool:
        return self.recording is not None


class Graph:
    """What a stream has recorded. One that is destroyed while something is captured spoils that."""

    def __init__(self, stream: Stream, recorded: list[tuple[tuple[Any, ...], Callable[[], None]]]) -> None:
        self.stream, self.recorded = stream, recorded

    def __del__(self) -> None:
        self.stream.spoilt = self.stream.recording is not None

    def launch(self, stream: Any = None) -> None:
        cupy = self.stream.cupy
        cupy._not_captured("a graph")
        events = [event for event, _ in self.recorded]
        measured = ("launch", "cublasLtMatmul") in events and ("launch", "deal") not in events
        cupy.events.append(("measurement" if measured else "replay", len(self.recorded)))  # of products, or of a step
        for _, work in self.recorded:
            self.stream.give(work)


class Event:
    """A place in the work of a stream."""

    at: tuple[Stream, int]

    def __init__(self, cupy: Emulated) -> None:
        self.cupy = cupy

    def record(self, stream: Any = None) -> None:
        self.cupy._not_captured("an event that is waited for outside")
        where = stream or self.cupy.current
        self.at = where, where.done + len(where.given)

    def synchronize(self) -> None:
        self.cupy.events.append(("wait",))
        stream, given = self.at
        stream.catch_up(given)
