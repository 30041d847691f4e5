"""CuPy as device/cuda.py uses it, on the host: strict arrays, the shim's kernels, streams that record a capture.

    cupy = installed(monkeypatch, gpus=2)

`cupy.events` tells what was done: ("launch", name), ("copy", bytes), ("allocate", bytes), ("wait",), ("replay", count).
Within a capture launches and copies are recorded and not done, and whatever CUDA or our own rules forbid there raises.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np

from tests.device import strict
from tests.device.shim import shim
from tests.device.strict import StrictArray, StrictModule, inside


class CUDARuntimeError(RuntimeError):
    """As CuPy names it."""


class OutOfMemoryError(MemoryError):
    """As CuPy names it."""


class Emulated(StrictModule):
    """The module."""

    __version__ = "14.2.0"

    def __init__(self, gpus: int = 1, memory: int = 8 << 30) -> None:
        super().__init__()
        self.events: list[tuple[Any, ...]] = []
        self.used: list[int] = []
        self.memory = memory
        self.streams: set[int] = set()
        self.recorded: list[list[tuple[Any, ...]]] = []  # the events of each capture
        self.current = SimpleNamespace(recording=None, ptr=0)
        self.RawModule = lambda **keywords: Module(self, **keywords)
        self.cuda = self._cuda(gpus)

    def asarray(self, array: np.ndarray) -> StrictArray:
        self._not_captured("a copy from pageable memory")
        return self._allocated(StrictArray(np.array(array)))

    def asnumpy(self, array: StrictArray, stream: Any = None) -> np.ndarray:
        self._not_captured("a copy that waits")
        self.events.append(("wait",))
        return array._values.copy()

    def do(self, event: tuple[Any, ...], work: Callable[[], None]) -> None:
        """Now, or at each replay of what is being captured."""
        if self.current.recording is not None:
            self.current.recording.append((event, work))
            return
        self.events.append(event)
        work()

    def _not_captured(self, what: str) -> None:
        if self.current.recording is not None:
            raise CUDARuntimeError(f"cudaErrorStreamCaptureUnsupported: {what}")

    def _allocated(self, array: Any) -> Any:
        if array.nbytes > self.memory:
            raise OutOfMemoryError(f"Out of memory allocating {array.nbytes:,} bytes")
        self.events.append(("allocate", array.nbytes))
        return array

    # What strict arrays do, of strict.STREAM.

    def launch(self, name: str, work: Callable[[], Any]) -> None:
        if name == "matmul":
            self._not_captured("cuBLAS")  # whose workspace would be allocated
        self.do(("launch", name), work)

    def allocate(self, name: str, work: Callable[[], Any]) -> Any:
        if self.current.recording is not None:
            self.allocator(1)
        array = work()
        if isinstance(array, (np.ndarray, StrictArray)):
            self._allocated(array)
        return array

    def wait(self, name: str) -> None:
        self._not_captured(f"{name} of an array")
        self.events.append(("wait",))

    def allocator(self, size: int) -> None:
        """The pool; another one may be put in its place."""

    @contextmanager
    def _using_allocator(self, allocator: Callable[[int], Any]):
        before, self.allocator = self.allocator, allocator
        try:
            yield
        finally:
            self.allocator = before

    def _cuda(self, gpus: int) -> SimpleNamespace:
        def copy(to: int, source: int, size: int, kind: int, stream: int) -> None:
            assert stream in self.streams
            self.do(("copy", size), lambda: ctypes.memmove(to, source, size))

        runtime = SimpleNamespace(
            getDeviceCount=lambda: gpus,
            getDeviceProperties=lambda number: {"name": b"Emulated GPU", "major": 9, "minor": 0},
            deviceGetPCIBusId=lambda number: f"0000:{number:02x}:00.0",
            memGetInfo=lambda: (self.memory, self.memory),
            driverGetVersion=lambda: 13000,
            runtimeGetVersion=lambda: 12090,
            memcpyAsync=copy,
            hostRegister=lambda address, size, flags: self.events.append(("register", size)),
            hostUnregister=lambda address: None,
            streamCaptureModeThreadLocal=1,
            memcpyHostToDevice=1,
            memcpyDeviceToHost=2,
            CUDARuntimeError=CUDARuntimeError,
        )
        return SimpleNamespace(
            runtime=runtime,
            Device=lambda number: SimpleNamespace(use=lambda: self.used.append(number)),
            Stream=lambda non_blocking=False: Stream(self),
            Event=lambda **keywords: Event(self),
            get_current_stream=lambda: self.current,
            using_allocator=self._using_allocator,
            alloc_pinned_memory=lambda size: np.zeros(size, np.uint8),
            memory=SimpleNamespace(OutOfMemoryError=OutOfMemoryError),
            get_elapsed_time=lambda start, stop: 1.0,
        )


class Stream:
    """Does things at once, or records them."""

    numbers = 0

    def __init__(self, cupy: Emulated) -> None:
        self.cupy, self.recording = cupy, None
        Stream.numbers += 1
        self.ptr = 1000 + Stream.numbers
        cupy.streams.add(self.ptr)

    def use(self) -> Stream:
        self.cupy.current = self
        return self

    def __enter__(self) -> Stream:
        self._before, self.cupy.current = self.cupy.current, self
        return self

    def __exit__(self, *_: object) -> None:
        self.cupy.current = self._before

    def synchronize(self) -> None:
        self.cupy._not_captured("waiting")
        self.cupy.events.append(("wait",))

    def wait_event(self, event: Event) -> None:
        pass

    def begin_capture(self, mode: Any = None) -> None:
        assert self.recording is None
        self.recording = []

    def end_capture(self) -> SimpleNamespace:
        recorded, self.recording = self.recording, None
        self.cupy.recorded.append([event for event, _ in recorded])
        return SimpleNamespace(launch=lambda stream=None: self._replay(recorded))

    def is_capturing(self) -> bool:
        return self.recording is not None

    def _replay(self, recorded: list[tuple[tuple[Any, ...], Callable[[], None]]]) -> None:
        self.cupy._not_captured("a graph")
        self.cupy.events.append(("replay", len(recorded)))
        for _, work in recorded:
            work()


class Event:
    """Is always over."""

    done = True

    def __init__(self, cupy: Emulated) -> None:
        self.cupy = cupy

    def record(self, stream: Any = None) -> None:
        self.cupy._not_captured("an event that is waited for outside")

    def synchronize(self) -> None:
        self.cupy.events.append(("wait",))


class Module:
    """Compiled kernels."""

    def __init__(self, cupy: Emulated, code: str, options: tuple[str, ...]) -> None:
        self.cupy = cupy
        assert '#include "' not in code

    def get_function(self, name: str) -> Callable[..., None]:
        def kernel(grid: tuple[int, ...], block: tuple[int, ...], arguments: tuple[Any, ...]) -> None:
            self.cupy.do(("launch", name), lambda: shim().launch(name, grid, block, arguments))

        return kernel


def installed(monkeypatch: Any, **how: Any) -> Any:
    """A new one that `import cupy` finds, and on which strict arrays do what they do."""
    cupy = emulated(**how)
    monkeypatch.setattr(strict, "STREAM", cupy)
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    return cupy


def emulated(gpus: int = 1, memory: int = 8 << 30) -> Any:
    """A new one, with nothing done on it."""
    return Emulated(gpus, memory)


def values(array: StrictArray) -> np.ndarray:
    """What is in a device array, without an event."""
    return inside(array)
