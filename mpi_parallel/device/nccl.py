"""NVIDIA's collectives (NCCL) through CuPy: sums between GPUs, which a graph captures as any other work."""

from __future__ import annotations

import warnings
from types import ModuleType
from typing import Any

import numpy as np

from mpi_parallel.device.cuda_kernels import address
from mpi_parallel.device.interface import Array

IDENTITY = 128  # bytes by which the ranks of a communicator find each other
BYTES_SINCE = 14  # CuPy's version
REMEDY = "install nvidia-nccl-cu12 or nvidia-nccl-cu13"


def complaint() -> str | None:
    """Why there is no NCCL; None where there is."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # CuPy 14 warns where it does not find the library
            from cupy.cuda import nccl
    except ImportError as error:
        return f"CuPy has no NCCL ({error}); {REMEDY}"
    return None if getattr(nccl, "available", True) and nccl.get_version() else f"CuPy has no NCCL; {REMEDY}"


class Nccl:
    """A communicator of ranks with a GPU each. Arrays are contiguous, float32 or float64."""

    def __init__(self, cupy: ModuleType, size: int, rank: int, agree: Any) -> None:
        from cupy.cuda import nccl

        self.cupy, self.size, self.rank = cupy, size, rank
        mine = bytes(word % 256 for word in nccl.get_unique_id()) if rank == 0 else bytes(IDENTITY)
        identity: Any = agree(mine)
        if int(cupy.__version__.partition(".")[0]) < BYTES_SINCE:  # a tuple of C chars, which may be negative
            identity = tuple(byte - 256 if byte > 127 else byte for byte in identity)
        self.comm = nccl.NcclCommunicator(size, identity, rank)
        self.types = {np.dtype(np.float32): nccl.NCCL_FLOAT32, np.dtype(np.float64): nccl.NCCL_FLOAT64}
        self.add = nccl.NCCL_SUM

    def sum(self, array: Array) -> None:
        at, kind = address(array), self.types[array.dtype]
        self.comm.allReduce(at, at, array.size, kind, self.add, self._stream())

    def sum_shares(self, array: Array, mine: Array) -> None:
        kind = self.types[array.dtype]
        self.comm.reduceScatter(address(array), address(mine), mine.size, kind, self.add, self._stream())

    def gather_shares(self, array: Array) -> None:
        share = array.size // self.size
        own = address(array) + self.rank * share * array.itemsize
        self.comm.allGather(own, address(array), share, self.types[array.dtype], self._stream())

    def close(self) -> None:
        self.cupy.cuda.get_current_stream().synchronize()
        self.comm.destroy()

    def _stream(self) -> int:
        pointer: int = self.cupy.cuda.get_current_stream().ptr
        return pointer
