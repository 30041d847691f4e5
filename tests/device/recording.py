"""A device that tells what it is asked to do, in order, and whose graphs replay the calls that were captured.

While something is captured nothing is computed: the calls are kept, with the arrays that they were given, and a replay
makes them again. What a real graph would not survive is refused there: arrays that are made, results that are waited
for, copies that pass through memory of no fixed address. Kernels are one launch each, whatever NumPy does in them.

A GPU may do what it was given at once, or not before somebody waits for it; so does this one, at the two extremes.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from mpi4py import MPI

from mpi_parallel.device.expressions import Expressions
from tests.device import strict
from tests.device.strict import Strict, inside


class Recorder(strict.Stream):
    """Its log: what was launched, allocated, copied, waited for, captured and replayed."""

    def __init__(self, late: bool = False) -> None:
        self.log: list[str] = []
        self.captured: list[Callable[[], Any]] | None = None
        self.late = late
        self.given: deque[Callable[[], Any]] = deque()  # that nobody has waited for yet
        self.done = self.marks = 0

    def give(self, work: Callable[[], Any]) -> None:
        self.given.append(work)
        if not self.late:
            self.catch_up(self.done + 1)

    def catch_up(self, to: int | None = None) -> None:
        """Do what was given first, until `to` pieces of work are done."""
        while self.given and (to is None or self.done < to):
            self.given.popleft()()
            self.done += 1

    def launch(self, name: str, work: Callable[[], Any]) -> None:
        if self.captured is None:
            self.log.append(f"launch {name}")
            self.give(work)
        else:
            self.log.append(f"capture {name}")
            self.captured.append(work)

    def allocate(self, name: str, work: Callable[[], Any]) -> Any:
        assert self.captured is None, f"{name} allocates within a captured step"
        self.log.append(f"allocate {name}")
        self.catch_up()
        return work()

    def wait(self, name: str) -> None:
        assert self.captured is None, f"{name} waits within a captured step"
        self.log.append(f"wait {name}")
        self.catch_up()

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        assert self.captured is None, "a capture within a capture"
        self.captured = calls = []
        work()
        self.captured = None

        def replay() -> None:
            self.log.append(f"replay {len(calls)}")
            for call in calls:
                self.give(call)

        return replay

    def mark(self) -> Callable[[], None]:
        self.marks += 1
        number, given = self.marks, self.done + len(self.given)
        self.log.append(f"mark {number}")

        def wait() -> None:
            assert self.captured is None, "a wait within a captured step"
            self.log.append(f"wait {number}")
            self.catch_up(given)

        return wait


class Launched:
    """Kernels, each a launch."""

    def __init__(self, recorder: Recorder, fixed: list[np.ndarray]) -> None:
        self._recorder, self._kernels, self._fixed = recorder, Expressions(np), fixed
        self.small = False  # whether there are kernels that take rows through the whole network

    def small_numbers(self, network: Any, rows: int) -> int:
        return rows * self.small

    def __getattr__(self, name: str) -> Any:
        kernel = getattr(self._kernels, name)
        if not callable(kernel):
            return kernel

        def launched(*arguments: Any, **keywords: Any) -> None:
            given = [value if self._pinned(value) else inside(value) for value in arguments]
            named = {key: inside(value) for key, value in keywords.items()}
            self._recorder.launch(name, lambda: kernel(*given, **named))

        return launched

    def _pinned(self, value: Any) -> bool:
        return isinstance(value, np.ndarray) and any(np.shares_memory(value, fixed) for fixed in self._fixed)


class ByMPI:
    """What NCCL does, as launches of MPI's calls on all ranks."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder, self._comm = recorder, MPI.COMM_WORLD
        self._captured: weakref.WeakSet[Callable[[], Any]] = weakref.WeakSet()  # as long as there is the graph

    def sum(self, array: Any) -> None:
        self._launch("nccl sum", lambda: self._comm.Allreduce(MPI.IN_PLACE, inside(array)))

    def sum_shares(self, array: Any, mine: Any) -> None:
        self._launch("nccl shares", lambda: self._comm.Reduce_scatter_block(inside(array), inside(mine)))

    def gather_shares(self, array: Any) -> None:
        self._launch("nccl gather", lambda: self._comm.Allgather(MPI.IN_PLACE, inside(array)))

    def close(self) -> None:
        self._recorder.wait("all")
        assert not self._captured, "NCCL would wait for ever for the end of a graph with its work"

    def _launch(self, name: str, work: Callable[[], Any]) -> None:
        if self._recorder.captured is not None:
            self._captured.add(work)
        self._recorder.launch(name, work)


class Recording(Strict):
    """The strict device on such a stream."""

    kind = "recording"

    def __init__(self, monkeypatch: Any, chip: str = "one", nccl: bool = True, late: bool = False) -> None:
        super().__init__()
        self._chip, self._nccl = chip, nccl
        self.measures = True
        self.stream = Recorder(late)
        monkeypatch.setattr(strict, "STREAM", self.stream)
        self.fixed: list[np.ndarray] = []  # memory that copies may be captured to and from
        self.kernels: Any = Launched(self.stream, self.fixed)

    @property
    def log(self) -> list[str]:
        return self.stream.log

    def to_device(self, array: np.ndarray) -> Any:
        return self.stream.allocate("to_device", lambda: super(Recording, self).to_device(array))

    def to_host(self, array: Any) -> np.ndarray:
        self.stream.wait("to_host")
        return super().to_host(array)

    def refill(self, array: Any, values: np.ndarray) -> None:
        self.stream.wait("refill")
        super().refill(array, values)

    def empty_bytes(self, count: int) -> Any:
        return self.stream.allocate("empty_bytes", lambda: super(Recording, self).empty_bytes(count))

    def pinned(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        self.fixed.append(np.zeros(shape, dtype))
        return self.fixed[-1]

    def fetch(self, array: Any, pinned: np.ndarray) -> None:
        self._pinned(pinned)
        self.stream.launch("fetch", lambda: pinned.__setitem__(..., inside(array)))

    def put(self, pinned: np.ndarray, array: Any) -> None:
        self._pinned(pinned)
        self.stream.launch("put", lambda: inside(array).__setitem__(..., pinned))

    def time(self, replays: Sequence[Callable[[], None]]) -> list[float]:
        """The last one is the fastest."""
        for replay in replays:
            replay()
        return [float(len(replays) - number) for number in range(len(replays))]

    def mark(self) -> Callable[[], None]:
        return self.stream.mark()

    def synchronize(self) -> None:
        self.stream.wait("all")

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        return self.stream.capture(work)

    def register(self, memory: np.ndarray) -> Callable[[], None]:
        self.fixed.append(memory)

        def unregister() -> None:
            del self.fixed[[held is memory for held in self.fixed].index(True)]

        return unregister

    def chip(self) -> str:
        return self._chip

    def collectives(self) -> Any:
        return self._by_mpi if self._nccl else "none was made"

    def _by_mpi(self, size: int, rank: int, agree: Callable[[bytes], bytes]) -> ByMPI:
        assert agree(b"12345678" if rank == 0 else b"") == b"12345678"
        return ByMPI(self.stream)

    def _pinned(self, memory: np.ndarray) -> None:
        told = "a copy to memory that is not pinned"
        assert not memory.size or any(np.shares_memory(memory, fixed) for fixed in self.fixed), told
