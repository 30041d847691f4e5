"""A GPU, driven by CuPy: one stream for all work, one beside it for rows that stream in, graphs of whole steps."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from mpi_parallel.device import nccl
from mpi_parallel.device.cublaslt import CublasLt
from mpi_parallel.device.cublaslt_library import WORKSPACE, LtError, load
from mpi_parallel.device.cuda_choice import choose, driver_complaint, import_cupy
from mpi_parallel.device.cuda_kernels import address
from mpi_parallel.device.cuda_products import CudaProducts
from mpi_parallel.device.interface import Array
from mpi_parallel.device.landing import CudaLanding
from mpi_parallel.device.places import Landing, MakeCollectives
from mpi_parallel.device.tuning import Tuning, tuning_file
from mpi_parallel.options import InputError

STORAGE = {"float16": np.float16, "bfloat16": np.uint16}  # NumPy has no bfloat16: its bits
WARM, TIMED = 2, 5  # replays that are not measured, and launches of a product in one that is
REPLAYED = 50  # of a graph
SLAB = 64 << 20  # bytes that are copied at a time


class Cuda:
    """Arrays in the memory of one GPU, computed on one stream."""

    kind = "cuda"
    apart = 64  # what cublasLt's fastest kernels load at a time, and more than the 16 bytes that its biases want
    lacks = ""

    def __init__(self, node_rank: int, precision: str = "float32", measure: bool = True) -> None:
        """Take this rank's GPU: ranks of a node take the GPUs that they see in turn. Raises NoGPU.

        With `measure` the algorithm of each product is the fastest of several, and so is the way that a small network
        takes, else the library's first choice and layer by layer, which are the same every time.
        """
        self.xp: ModuleType = import_cupy()
        chosen = choose(self.xp, node_rank)
        self.visible, self.number, self.place = chosen
        self.xp.cuda.Device(self.number).use()
        driver_complaint(self.xp)
        self.runtime, self.node_rank = self.xp.cuda.runtime, node_rank
        self.stream = self.xp.cuda.Stream(non_blocking=True)
        self.stream.use()
        self.copies = self.xp.cuda.Stream(non_blocking=True)
        self.measures = measure
        self.kernels = CudaProducts(self.xp, self._open_lt(precision, measure))

    def to_device(self, array: NDArray[Any]) -> Array:
        copy: Array
        if array.nbytes <= SLAB:
            copy = self.xp.asarray(array)
            return copy
        # CuPy copies by way of page-locked memory as large as the next power of two, which it keeps.
        copy, step = self.xp.empty(array.shape, array.dtype), max(1, SLAB * len(array) // array.nbytes)
        for start in range(0, len(array), step):
            copy[start : start + step] = self.xp.asarray(array[start : start + step])
        return copy

    def to_host(self, array: Array) -> NDArray[Any]:
        # Waits for the work on the stream: MPI must never see an array that is still being written. What is in pieces
        # CuPy itself would put together within `with stream`, which ends on the default stream (see `capture`).
        copy: NDArray[Any] = self.xp.asnumpy(self.xp.ascontiguousarray(array), stream=self.stream)
        self.stream.synchronize()  # asnumpy of some versions returns before the copy is done
        return copy

    def refill(self, array: Array, values: NDArray[Any]) -> None:
        array[...] = self.xp.asarray(values)

    def landing(self, most: int, features: int, dtype: np.dtype[Any]) -> Landing:
        return CudaLanding(self, most, features, dtype)

    def storage(self, precision: str) -> Any:
        return STORAGE.get(precision, np.float32)

    def rounds(self, precision: str) -> bool:
        return precision in STORAGE  # a tensor core itself takes of float32 what TF32 has

    def empty_bytes(self, count: int) -> Array:
        block: Array = self.xp.empty(count, "uint8")  # CuPy's pool gives multiples of 512 bytes
        return block

    def synchronize(self) -> None:
        self.stream.synchronize()

    @property
    def can_capture(self) -> bool:
        return self.kernels.capturable

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        # Not within `with self.stream`: CuPy forgets at its end that the stream was in use before, and goes on with the
        # default one, which waits for ours no more than ours for it.
        with self.xp.cuda.using_allocator(_refuse), _uncollected():
            # Other threads, such as one that writes a checkpoint, may go on meanwhile.
            self.stream.begin_capture(self.runtime.streamCaptureModeThreadLocal)
            try:
                work()
            except BaseException:
                with suppress(self.runtime.CUDARuntimeError):  # that the capture is spoilt
                    self.stream.end_capture()
                raise
            graph = self.stream.end_capture()

        def replay() -> None:
            graph.launch(self.stream)

        return replay

    def time(self, replays: Sequence[Callable[[], None]]) -> list[float]:
        return [self._time(replay, REPLAYED) / REPLAYED / 1000 for replay in replays]

    def pinned(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        count, kind = int(np.prod(shape, dtype=np.int64)), np.dtype(dtype)
        try:
            memory = self.xp.cuda.alloc_pinned_memory(max(1, count * kind.itemsize))
        except self.runtime.CUDARuntimeError as error:
            raise _no_pages(f"{count * kind.itemsize:,} bytes of the host's memory", error) from None
        array: NDArray[Any] = np.frombuffer(memory, kind, count).reshape(shape)
        array[...] = 0
        return array

    def fetch(self, array: Array, pinned: NDArray[Any]) -> None:
        assert array.nbytes == pinned.nbytes
        self.copy(pinned.ctypes.data, address(array), array.nbytes, self.runtime.memcpyDeviceToHost, self.stream)

    def put(self, pinned: NDArray[Any], array: Array) -> None:
        assert array.nbytes == pinned.nbytes
        self.copy(address(array), pinned.ctypes.data, array.nbytes, self.runtime.memcpyHostToDevice, self.stream)

    def mark(self) -> Callable[[], None]:
        event = self.xp.cuda.Event(disable_timing=True)
        event.record(self.stream)
        wait: Callable[[], None] = event.synchronize
        return wait

    def register(self, memory: NDArray[Any]) -> Callable[[], None]:
        runtime, address = self.runtime, memory.ctypes.data
        try:
            runtime.hostRegister(address, memory.nbytes, 0)
        except runtime.CUDARuntimeError as error:
            raise _no_pages(f"{memory.nbytes:,} bytes of memory that ranks share", error) from None

        def unregister() -> None:
            runtime.hostUnregister(address)

        return unregister

    def chip(self) -> str:
        bus: str = self.xp.cuda.runtime.deviceGetPCIBusId(self.number)
        return bus

    def collectives(self) -> MakeCollectives | str:
        return nccl.complaint() or partial(nccl.Nccl, self.xp)

    def describe(self) -> str:
        name = self.runtime.getDeviceProperties(self.number)["name"].decode()
        cuda = f"{self.runtime.runtimeGetVersion() // 1000}.{self.runtime.runtimeGetVersion() % 1000 // 10}"
        return (
            f"cuda, GPU {self.number} of {self.visible}: {name}, CuPy {self.xp.__version__}, CUDA {cuda}; "
            f"{self.kernels.name}"
        )

    def copy(self, to: int, source: int, nbytes: int, kind: int, stream: Any) -> None:
        """Begin to copy between addresses, behind the work on this stream."""
        if nbytes:
            self.runtime.memcpyAsync(to, source, nbytes, kind, stream.ptr)

    def _open_lt(self, precision: str, measure: bool) -> CublasLt | None:
        """cublasLt, or None where this machine has none that works."""
        try:
            from cuda import pathfinder  # CuPy 14 brings it, and it knows where wheels put the library

            find = lambda: str(pathfinder.load_nvidia_dynamic_lib("cublasLt").abs_path)  # noqa: E731
        except ImportError:
            find = None
        try:
            library = load(find, self.runtime.runtimeGetVersion() // 1000)
            self._workspace = self.xp.empty(WORKSPACE, np.uint8)
            time, tuning = (self._time_launches, self._tuning(library)) if measure else (None, None)
            lt = CublasLt(library, address(self._workspace), self.stream.ptr, time, tuning)
        except (OSError, LtError):
            return None
        lt.tf32 = precision == "tf32"
        return lt

    def _tuning(self, library: Any) -> Tuning:
        """What was measured on such a GPU before; the first rank of a node adds to it."""
        name, driver = self.runtime.getDeviceProperties(self.number)["name"], self.runtime.driverGetVersion()
        return Tuning(tuning_file(name.decode(), driver, library.cublasLtGetVersion()), self.node_rank == 0)

    def _time_launches(self, launch: Callable[[], object]) -> float:
        """Milliseconds of some launches; none where a capture is under way, which must not be disturbed.

        By replay, as a step makes them: the host takes longer to tell of a small product than the GPU to do it. What
        cannot be captured is of no use to a step, and takes for ever.
        """
        if self.stream.is_capturing():
            return 0.0
        launch()  # compiles and loads what is not to be captured

        def several() -> None:
            for _ in range(TIMED):
                if launch() is False:
                    raise LtError("refused while captured")

        try:
            return self._time(self.capture(several), 1)
        except RuntimeError:  # of the runtime, of the driver, or of cublasLt, as may be
            return float("inf")

    def _time(self, launch: Callable[[], None], times: int) -> float:
        """Milliseconds of so many launches, behind others that warm up."""
        start, stop = self.xp.cuda.Event(), self.xp.cuda.Event()
        for _ in range(WARM):
            launch()
        start.record(self.stream)
        for _ in range(times):
            launch()
        stop.record(self.stream)
        stop.synchronize()
        milliseconds: float = self.xp.cuda.get_elapsed_time(start, stop)
        return milliseconds


@contextmanager
def _uncollected() -> Iterator[None]:
    """No garbage is looked for meanwhile: a graph found there would be destroyed, which spoils what is captured."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _refuse(size: int) -> Any:
    """In place of CuPy's pool: what is allocated in a capture would be given to others before the graph is replayed."""
    raise RuntimeError(f"{size:,} bytes are allocated while a step is captured: only the workspace may serve it")


def _no_pages(what: str, error: Exception) -> InputError:
    return InputError(
        f"{what} cannot be page-locked for the GPU ({error}): give the job more of the host's memory (what is locked "
        "cannot be swapped), or start fewer ranks a node"
    )
