"""A GPU, driven by CuPy through the same array expressions as the host."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from mpi_parallel.device.expressions import Expressions
from mpi_parallel.device.interface import Array, Kernels


class NoGPU(Exception):
    """There is no GPU to be had, and why."""


class Cuda:
    """Arrays in the memory of one GPU, computed by CuPy on its current stream."""

    kind = "cuda"

    def __init__(self, node_rank: int) -> None:
        """Take this rank's GPU: ranks of a node take the GPUs that they see in turn. Raises NoGPU."""
        self.xp: ModuleType = _import_cupy()
        self.visible = _count(self.xp)
        self.number = node_rank % self.visible
        self.shared = node_rank >= self.visible
        self.xp.cuda.Device(self.number).use()
        self.kernels: Kernels = Expressions(self.xp)

    def to_device(self, array: NDArray[Any]) -> Array:
        copy: Array = self.xp.asarray(array)
        return copy

    def to_host(self, array: Array) -> NDArray[Any]:
        # asnumpy waits for the work on the array's stream: MPI must never see a GPU array that is still being written.
        copy: NDArray[Any] = self.xp.asnumpy(array)
        return copy

    def refill(self, array: Array, values: NDArray[Any]) -> None:
        array[...] = self.xp.asarray(values)

    def storage(self, precision: str) -> Any:
        return np.float32

    def empty_bytes(self, count: int) -> Array:
        block: Array = self.xp.empty(count, "uint8")  # CuPy's pool gives multiples of 512 bytes
        return block

    def synchronize(self) -> None:
        self.xp.cuda.get_current_stream().synchronize()

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        return work

    def pinned(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        return np.zeros(shape, dtype)

    def fetch(self, array: Array, pinned: NDArray[Any]) -> None:
        pinned[...] = self.to_host(array)

    def put(self, pinned: NDArray[Any], array: Array) -> None:
        array[...] = self.xp.asarray(pinned)

    def mark(self) -> Callable[[], None]:
        return self.synchronize

    def describe(self) -> str:
        name = self.xp.cuda.runtime.getDeviceProperties(self.number)["name"].decode()
        return f"cuda, GPU {self.number} of {self.visible}: {name}, CuPy {self.xp.__version__}"


def _import_cupy() -> ModuleType:
    try:
        import cupy
    except ImportError as error:
        raise NoGPU(
            f"CuPy cannot be imported ({error}); install mpi_parallel[cuda12] or mpi_parallel[cuda13]"
        ) from None
    module: ModuleType = cupy
    return module


def _count(cupy: ModuleType) -> int:
    try:
        count: int = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        raise NoGPU(f"CuPy finds no GPU ({error})") from None
    if count == 0:
        raise NoGPU("CuPy finds no GPU (CUDA_VISIBLE_DEVICES hides all of them?)")
    return count
