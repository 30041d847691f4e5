"""Merging for GPUs that share a node but no NCCL: each copies to and from memory of the host that all ranks see.

    GPU 0  -> slot 0   [ gradients and tail of rank 0 ]     one copy down, page-locked, at the bus' full rate
    GPU 1  -> slot 1   [ gradients and tail of rank 1 ]
              sum      [ slot 0 + slot 1: mine | next's ]   each rank sums a share with the compiled kernels
    all    <- sum                                           one copy up; every rank takes the whole step on its GPU

The sums are in the order of the ranks. Between nodes the owners of a share Allreduce it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mpi_parallel.device.host import best_kernels
from mpi_parallel.device.relay import Relay, nothing
from mpi_parallel.mpi.communicator import Communicator
from mpi_parallel.mpi.partition import share
from mpi_parallel.mpi.window import SharedWindow, aligned
from mpi_parallel.nn.store import ParameterStore
from mpi_parallel.options import InputError
from mpi_parallel.result_merging.merger import Merger
from mpi_parallel.result_merging.metrics import Totals


class Pinned(Merger):
    """One copy each way; the sum is the host's."""

    name = "pinned"

    def __init__(self, store: ParameterStore, comm: Communicator, node: Communicator | None = None) -> None:
        """With a window of `node`, the ranks of `comm` that share memory with this one.

        Raises InputError, on all ranks, where the device is the host itself, where the node has too little shared
        memory, and where that cannot be page-locked on all of them.
        """
        super().__init__(store, comm)
        device = store.device
        if device.kind == "cpu":
            raise InputError("--merge pinned is for GPUs, and the device is cpu: choose --merge window")
        self._mine = [] if node else [comm.node()]  # communicators to free
        self.node = (node or self._mine[0]).on_host()
        slices = -comm.maximum(-self.node.size)  # as many as the smallest node has ranks
        n = len(store.merged)
        self.own = share(n, slices, self.node.rank) if self.node.rank < slices else slice(0, 0)
        self.across = comm.split(self.node.rank).on_host()
        self._mine.append(self.across)
        self.nodes = self.node.maximum(self.across.size)

        length = aligned(4 * n) // 4
        self.window = SharedWindow(self.node, 4 * length * (self.node.size + 1), comm)
        block = self.window.array((self.node.size + 1, length), np.float32)
        self._slots, self._sum = block[:-1, :n], block[-1, :n]
        self._slots[self.node.rank] = 0
        self._lock(block)
        self._kernels = best_kernels()

    def merge(self) -> Totals:
        self.relay().run(self.store.device)
        return Totals.of(self._sum[self.store.size :].copy())

    def relay(self) -> Relay:
        return Relay(self._send, self._exchange, self._receive)

    def _send(self) -> None:
        self.store.device.fetch(self.store.merged, self._slots[self.node.rank])

    def _exchange(self) -> None:
        """Sum my share once all slots are there; wait until all shares are. Nobody looks at slots behind the second."""
        self.window.meet()
        self._kernels.sum_slots(self._sum[self.own], self._slots[:, self.own])
        if self.nodes > 1:
            self.across.sum(self._sum[self.own])
        self.window.meet()

    def _receive(self) -> None:
        self.store.device.put(self._sum, self.store.merged)

    def _lock(self, block: NDArray[np.float32]) -> None:
        self._unregister, complaint = nothing, ""
        try:
            self._unregister = self.store.device.register(block)
        except InputError as error:
            complaint = str(error)
        for rank, told in enumerate(self.comm.gather_text(complaint)):
            if told:
                self.close()
                raise InputError(f"--merge pinned: rank {rank}: {told}; or choose --merge flat")

    def close(self) -> None:
        """Give the window back."""
        self.store.device.synchronize()
        self._unregister()
        del self._slots, self._sum
        self.window.free()
        for communicator in self._mine:
            communicator.free()
