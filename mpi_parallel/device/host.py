"""The cores of the rank: NumPy arrays, BLAS and its threads."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from timeit import timeit
from types import ModuleType
from typing import Any

import numpy as np
import threadpoolctl
from numpy.typing import DTypeLike, NDArray

from mpi_parallel.device.blas import BELOW, blas_architecture, blas_pool
from mpi_parallel.device.expressions import Expressions
from mpi_parallel.device.interface import Kernels
from mpi_parallel.device.openmp import OpenMP
from mpi_parallel.device.places import Landing, MakeCollectives

ALIGNMENT = 64  # bytes: a cache line, and the widest vector register


class Host:
    """Arrays in the memory of the node, computed by NumPy and its BLAS."""

    kind = "cpu"
    place = ""
    can_capture = True

    apart = 4
    measures = False

    def __init__(self, lacks: str = "") -> None:
        self.lacks = lacks
        self.xp: ModuleType = np
        self.kernels = best_kernels()

    def to_device(self, array: NDArray[Any]) -> NDArray[Any]:
        return array

    def to_host(self, array: NDArray[Any]) -> NDArray[Any]:
        return array

    def refill(self, array: NDArray[Any], values: NDArray[Any]) -> None:
        assert array is values

    def landing(self, most: int, features: int, dtype: np.dtype[Any]) -> Landing:
        raise AssertionError("rows in the host's memory are where it computes")

    def storage(self, precision: str) -> Any:
        return np.float32  # a core has no products of narrower numbers: they are rounded, and summed in float32

    def rounds(self, precision: str) -> bool:
        return precision != "float32"

    def empty_bytes(self, count: int) -> NDArray[Any]:
        block = np.empty(count + ALIGNMENT, np.uint8)  # NumPy itself promises 16 bytes
        start = -block.ctypes.data % ALIGNMENT
        return block[start : start + count]

    def synchronize(self) -> None:
        pass

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        return work

    def time(self, replays: Sequence[Callable[[], None]]) -> list[float]:
        return [timeit(replay, number=1) for replay in replays]

    def pinned(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        return np.zeros(shape, dtype)

    def fetch(self, array: NDArray[Any], pinned: NDArray[Any]) -> None:
        pinned[...] = array

    def put(self, pinned: NDArray[Any], array: NDArray[Any]) -> None:
        array[...] = pinned

    def mark(self) -> Callable[[], None]:
        return self.synchronize

    def register(self, memory: NDArray[Any]) -> Callable[[], None]:
        return self.synchronize

    def chip(self) -> str:
        return "cpu"

    def collectives(self) -> MakeCollectives | str:
        return "the device is cpu"

    def describe(self) -> str:
        return f"cpu, {blas()}; {self.kernels.name}"


def best_kernels() -> Kernels:
    """The compiled kernels, or NumPy's expressions where the package was installed without a compiler."""
    try:
        return OpenMP()
    except ImportError:
        return Expressions(np)


def blas() -> str:
    """The BLAS in use, its kernels and its threads, as threadpoolctl sees them."""
    pool = blas_pool()
    if pool is None:
        return "unknown BLAS"
    kernels = f" ({pool['architecture']} kernels)" if pool.get("architecture") else ""
    threads = pool["num_threads"]
    return f"{pool['internal_api']} {pool.get('version') or ''}{kernels}, {threads} thread{'s' * (threads > 1)}"


def blas_complaint(flags: frozenset[str] | None = None) -> str | None:
    """What to tell the user where OpenBLAS was made to run kernels below what the CPU (its `flags`) can do."""
    kernels, flags = blas_architecture(), cpu_flags() if flags is None else flags
    needs = next((flag for flag, architectures in BELOW.items() if flag in flags and kernels in architectures), None)
    if needs is None:
        return None
    pin = os.environ.get("OPENBLAS_CORETYPE")
    why = f"OPENBLAS_CORETYPE={pin} asks for them: unset it" if pin else "a newer NumPy may know this CPU"
    return (
        f"OpenBLAS runs its {kernels} kernels, but this CPU has {needs}: matrix products may take twice as long; {why}"
    )


def cpu_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """The instruction sets of the first core, as Linux names them; none where it does not tell."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), []))


def set_threads(count: int) -> None:
    """Let BLAS and OpenMP of this process use `count` threads."""
    best_kernels()  # loads the OpenMP that is to be told: what is loaded later takes all cores
    threadpoolctl.threadpool_limits(limits=count)


def usable_cores() -> frozenset[int]:
    """The cores that the launcher lets this process run on."""
    return frozenset(os.sched_getaffinity(0))


def fair_threads(mine: frozenset[int], on_node: Sequence[frozenset[int]]) -> int:
    """How many threads a rank should run: each core that it may use, divided among the ranks that may use it too.

    A rank bound to its own cores gets them all; four unbound ranks on eight cores get two each.
    """
    share = sum(1 / sum(core in cores for cores in on_node) for core in mine)
    return max(1, int(share + 1e-9))
