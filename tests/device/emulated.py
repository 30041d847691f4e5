"""CuPy as device/cuda.py uses it, on the host: strict arrays, the shim's kernels, streams that record a capture.

    cupy = installed(monkeypatch, gpus=2)

`cupy.events` tells what was done: ("launch", name), ("copy", bytes), ("allocate", bytes), ("wait",), ("replay", count).
Within a capture launches and copies are recorded and not done, and whatever CUDA or our own rules forbid there raises.
With `late` a stream does nothing before somebody waits for it: what the host reads or overwrites too early shows.
"""

from __future__ import annotations

import ctypes
import sys
import weakref
from collections.abc import Callable
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np

from tests.device import strict
from tests.device.shim import shim
from tests.device.streams import CUDARuntimeError, Event, Stream
from tests.device.strict import StrictArray, StrictModule, inside

POOL = 512  # bytes, of which addresses are multiples
SHARED = 227 << 10  # bytes of shared memory that a block of an H200 may have
SMALL_STATIC = 2112  # bytes of it that small_rows_4 has by itself, the most of those kernels that ask for more


class OutOfMemoryError(MemoryError):
    """As CuPy names it."""


class Emulated(StrictModule):
    """The module."""

    __version__ = "14.2.0"

    def __init__(self, gpus: int = 1, memory: int = 8 << 30, late: bool = False) -> None:
        super().__init__()
        self.late = late
        self.kept: list[Any] = []  # arrays that late work may be about, as a pool of memory would keep them
        self.events: list[tuple[Any, ...]] = []
        self.used: list[int] = []
        self.memory = memory
        self.lockable = 1 << 62  # bytes of the host
        self.streams: dict[int, Stream] = {}
        self.recorded: list[list[tuple[Any, ...]]] = []  # the events of each capture
        self.default: Any = SimpleNamespace(recording=None, ptr=0, give=self._alone)
        self.current: Any = self.default
        self.stack: list[Any] = []  # of `with`, which knows nothing of `use`
        self.empty, self.zeros = self._empty, self._zeros
        self.RawModule = lambda **keywords: Module(self, **keywords)
        self.cuda = self._cuda(gpus)

    def asarray(self, array: np.ndarray) -> StrictArray:
        self._not_captured("a copy from pageable memory")
        return self._allocated(StrictArray(np.array(array)))

    def asnumpy(self, array: StrictArray, stream: Any = None) -> np.ndarray:
        self._not_captured("a copy that waits")
        if not inside(array).flags.c_contiguous:
            with stream:  # and so on
                pass
        self.events.append(("wait",))
        self.catch_up()
        return array._values.copy()

    def do(self, event: tuple[Any, ...], work: Callable[[], None], stream: int | None = None) -> None:
        """On its stream, or at each replay of what is being captured there."""
        where = self.current if stream is None else self.streams[stream]
        if where.recording is not None:
            where.recording.append((event, work))
            return
        self.events.append(event)
        where.give(work)

    def _alone(self, work: Callable[[], None]) -> None:
        """On the default stream, for which ours do not wait, nor it for them."""
        assert not self.streams, "work on the default stream"
        work()

    def catch_up(self) -> None:
        """Do all that any stream was given."""
        for stream in self.streams.values():
            stream.catch_up()

    def _empty(self, shape: Any, dtype: Any = np.float32) -> Any:
        """From an address as a pool gives them."""

        return strict.outside(self.allocate("empty", lambda: _from_pool(shape, dtype)))

    def _zeros(self, shape: Any, dtype: Any = np.float32) -> Any:
        def work() -> np.ndarray:
            array = _from_pool(shape, dtype)
            array.fill(0)
            return array

        return strict.outside(self.allocate("zeros", work))

    def _not_captured(self, what: str) -> None:
        if self.current.recording is not None:
            raise CUDARuntimeError(f"cudaErrorStreamCaptureUnsupported: {what}")

    def _register(self, address: int, size: int, flags: int) -> None:
        self._lock(size)
        self.events.append(("register", size))

    def _pin(self, size: int) -> np.ndarray:
        self._lock(size)
        return np.zeros(size, np.uint8)

    def _lock(self, size: int) -> None:
        if size > self.lockable:
            raise CUDARuntimeError("cudaErrorMemoryAllocation: out of memory")

    def _allocated(self, array: Any) -> Any:
        if array.nbytes > self.memory:
            raise OutOfMemoryError(f"Out of memory allocating {array.nbytes:,} bytes")
        self.events.append(("allocate", array.nbytes))
        if self.late:
            self.kept.append(array)
        return array

    # What strict arrays do, of strict.STREAM.

    def launch(self, name: str, work: Callable[[], Any]) -> None:
        if name == "matmul":
            self._not_captured("cuBLAS")  # whose workspace would be allocated
        self.do(("launch", name), work)

    def allocate(self, name: str, work: Callable[[], Any]) -> Any:
        if self.current.recording is not None:
            self.allocator(1)
        self.catch_up()
        array = work()
        if isinstance(array, (np.ndarray, StrictArray)):
            self._allocated(array)
        return array

    def wait(self, name: str) -> None:
        self._not_captured(f"{name} of an array")
        self.events.append(("wait",))
        self.catch_up()

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
            self.do(("copy", size), lambda: ctypes.memmove(to, source, size), stream)

        runtime = SimpleNamespace(
            getDeviceCount=lambda: gpus,
            getDeviceProperties=lambda number: {"name": b"Emulated GPU", "major": 9, "minor": 0},
            deviceGetPCIBusId=lambda number: f"0000:{number:02x}:00.0",
            memGetInfo=lambda: (self.memory, self.memory),
            driverGetVersion=lambda: 13000,
            runtimeGetVersion=lambda: 12090,
            memcpyAsync=copy,
            hostRegister=self._register,
            hostUnregister=lambda address: None,
            streamCaptureModeThreadLocal=1,
            getDevice=lambda: 0,
            deviceGetAttribute=lambda attribute, number: attribute,
            cudaDevAttrMaxSharedMemoryPerBlockOptin=SHARED,
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
            alloc_pinned_memory=self._pin,
            memory=SimpleNamespace(OutOfMemoryError=OutOfMemoryError),
            get_elapsed_time=lambda start, stop: 1.0,
        )


def _from_pool(shape: Any, dtype: Any) -> np.ndarray:
    nbytes = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    block = np.empty(nbytes + POOL, np.uint8)
    start = -block.ctypes.data % POOL
    return block[start : start + nbytes].view(dtype).reshape(shape)


class Module:
    """Compiled kernels."""

    def __init__(self, cupy: Emulated, code: str, options: tuple[str, ...]) -> None:
        self.cupy = cupy
        assert '#include "' not in code

    def get_function(self, name: str) -> Callable[..., None]:
        def kernel(
            grid: tuple[int, ...], block: tuple[int, ...], arguments: tuple[Any, ...], *, shared_mem: int = 0
        ) -> None:
            assert shared_mem <= getattr(kernel, "max_dynamic_shared_size_bytes", (48 << 10) - SMALL_STATIC)
            if self.cupy.current.recording is not None:
                arguments = tuple(Unheld(one) if isinstance(one, StrictArray) else one for one in arguments)
            self.cupy.do(("launch", name), lambda: shim().launch(name, grid, block, arguments, shared_mem))

        return kernel


class Unheld:
    """An array in a graph, which has its address and nothing more: somebody else has to keep the memory."""

    nbytes = ndim = None

    def __init__(self, array: StrictArray) -> None:
        self._address, whole = array.data.ptr, inside(array)
        while isinstance(whole.base, np.ndarray):
            whole = whole.base
        self._memory = weakref.ref(whole)

    @property
    def data(self) -> SimpleNamespace:
        assert self._memory() is not None, "a graph is replayed whose memory was given back"
        return SimpleNamespace(ptr=self._address)


def installed(monkeypatch: Any, **how: Any) -> Any:
    """A new one that `import cupy` finds, and on which strict arrays do what they do."""
    cupy = emulated(**how)
    monkeypatch.setattr(strict, "STREAM", cupy)
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    return cupy


def emulated(gpus: int = 1, memory: int = 8 << 30, late: bool = False) -> Any:
    """A new one, with nothing done on it."""
    return Emulated(gpus, memory, late)


def values(array: StrictArray) -> np.ndarray:
    """What is in a device array, without an event."""
    return inside(array)
