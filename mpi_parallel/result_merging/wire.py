"""Sums that travel as numbers of 16 bits: half the bytes between nodes, for gradients that are noisy anyway."""

from __future__ import annotations

import numpy as np

from mpi_parallel.device import Array
from mpi_parallel.device.host import best_kernels
from mpi_parallel.mpi.communicator import Communicator


class Wire:
    """Sums over the ranks of `comm`. With float32 they are MPI's.

    In 16 bits each rank gets its share of everyone's numbers, adds these up in float32, in the order of the ranks, and
    sends the sum to all: what is sent is rounded to the nearest number of the format, and nothing else. All ranks end
    with the same bits. What the format cannot hold becomes infinite, and NaN stays NaN: who uses the sum has to look.
    """

    def __init__(self, comm: Communicator, size: int, precision: str = "float32") -> None:
        """For arrays of `size` numbers."""
        self.comm, self.precision = comm, precision
        self.narrow = precision != "float32" and comm.size > 1
        if self.narrow:
            self.kernels = best_kernels()
            share = comm.share(size)
            self._packed = np.empty(size, np.uint16)
            self._shares = np.empty((comm.size, share.stop - share.start), np.uint16)
            self._mine, self._other = (np.empty(share.stop - share.start, np.float32) for _ in range(2))

    def sum(self, array: Array) -> None:
        """Replace the flat float32 array by its sum over the ranks."""
        if not self.narrow:
            return self.comm.sum(array)
        values, kernels, precision = self.comm.device.to_host(array), self.kernels, self.precision
        kernels.pack(values, self._packed, precision)
        host = self.comm.on_host()
        host.exchange_columns(self._packed[None], [1] * host.size, self._shares)
        kernels.unpack(self._shares[0], self._mine, precision)
        for packed in self._shares[1:]:
            kernels.unpack(packed, self._other, precision)
            np.add(self._mine, self._other, out=self._mine)
        kernels.pack(self._mine, self._packed[self.comm.share(len(values))], precision)
        host.gather_shares(self._packed)
        kernels.unpack(self._packed, values, precision)
        return self.comm.device.refill(array, values)
