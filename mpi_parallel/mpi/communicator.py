"""A communicator with the few verbs in use; the one place that orders a GPU's work before a message."""

from __future__ import annotations

from typing import Any

import numpy as np
from mpi4py import MPI
from numpy.typing import NDArray

from mpi_parallel.device import Array, Device, Host


class Communicator:
    """Some ranks that talk to each other about arrays of one device.

    Every verb is collective: all ranks of the communicator call it, with arrays of the same shape and dtype. Arrays
    of a
    GPU are staged through the host's memory, which waits for the work on them.
    """

    def __init__(self, comm: MPI.Intracomm, device: Device | None = None) -> None:
        self.comm = comm
        self.device: Device = Host() if device is None else device
        self.rank, self.size = comm.rank, comm.size

    def on(self, device: Device) -> Communicator:
        """The same ranks, for arrays of `device`."""
        return Communicator(self.comm, device)

    def node(self) -> Communicator:
        """The ranks that share this rank's node."""
        return Communicator(MPI.Intracomm(self.comm.Split_type(MPI.COMM_TYPE_SHARED)), self.device)

    def sum(self, array: Array) -> None:
        """Replace the array by its elementwise sum over the ranks."""
        if self.size > 1:
            values = self.device.to_host(array)
            self.comm.Allreduce(MPI.IN_PLACE, values, MPI.SUM)
            self.device.refill(array, values)

    def maximum(self, value: int) -> int:
        """The largest of the ranks' numbers."""
        values = np.array([value], np.int64)
        self.comm.Allreduce(MPI.IN_PLACE, values, MPI.MAX)
        return int(values[0])

    def gather(self, row: NDArray[Any]) -> NDArray[Any]:
        """(size, *row.shape) on every rank: the host arrays of all ranks, by rank."""
        rows = np.empty((self.size, *row.shape), row.dtype)
        self.comm.Allgather(np.ascontiguousarray(row), rows)
        return rows

    def gather_text(self, text: str) -> list[str]:
        """The ranks' texts on every rank, by rank."""
        return self.comm.allgather(text)

    def broadcast(self, array: NDArray[Any] | None, root: int = 0) -> NDArray[Any]:
        """The root's host array on every rank; only the root needs to give one."""
        assert self.rank != root or array is not None
        head = None if array is None else (array.shape, array.dtype.str)
        shape, dtype = self.comm.bcast(head, root)
        values = np.asarray(array, order="C") if array is not None else np.empty(shape, dtype)
        self.comm.Bcast(values, root)
        return values

    def free(self) -> None:
        """Give the communicator back to MPI."""
        self.comm.Free()
