"""What the mergers share whose weights lie in memory that all ranks of a node read in place."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mpi_parallel.device import Array
from mpi_parallel.mpi.communicator import Communicator
from mpi_parallel.mpi.partition import LINE, share
from mpi_parallel.mpi.window import SharedWindow, aligned
from mpi_parallel.nn.store import TAIL, ParameterStore
from mpi_parallel.options import InputError
from mpi_parallel.result_merging.merger import Merger


class OnNode(Merger):
    """Weights in a shared-memory window, and beside them rows of gradients and tails that all ranks of the node see.

    Each rank owns a slice of both. With several nodes the slices are the same on each, and `across` joins their owners,
    one a node.
    """

    name = "window"

    def __init__(self, store: ParameterStore, comm: Communicator, node: Communicator | None = None) -> None:
        """Share out the store among the ranks of `node`, those of `comm` that share memory with this one.

        Raises InputError on a GPU.
        """
        super().__init__(store, comm)
        if store.device.kind != "cpu":
            raise InputError(
                f"--merge window works in the host's memory, and the device is {store.device.kind}: choose --merge auto"
            )
        self._mine = [] if node else [comm.node()]  # communicators to free
        self.node = node or self._mine[0]
        slices = -comm.maximum(-self.node.size)  # as many as the smallest node has ranks; the rest only compute
        self.owned = share(store.size, slices, self.node.rank) if self.node.rank < slices else slice(0, 0)
        self.across = comm.split(self.node.rank)  # the owners of this slice; of rank 0's, one of every node
        self._mine.append(self.across)
        self.nodes = self.node.maximum(self.across.size)

    def _open(self, counts: list[int], tails: int) -> NDArray[np.float32]:
        """The window: this rank's rows (counts[rank], length), of zeros, in `rows` of all ranks of the node; `tails`
        (tails, TAIL) beside them, for what comes from other nodes.

        Raises InputError where the node has too little shared memory.
        """
        length, rows = aligned(4 * (self.store.size + TAIL)) // 4, sum(counts)
        self.window = SharedWindow(self.node, 4 * (rows * length + length + tails * LINE), self.comm)
        self.rows = self.window.array((rows, length), np.float32)
        self.tails = self.window.array((tails, LINE), np.float32)[:, :TAIL]
        start = sum(counts[: self.node.rank])
        mine = self.rows[start : start + counts[self.node.rank]]
        mine[...] = 0  # who works on a part touches it first, and then has it near (NUMA)
        return mine

    def _settle(self, merged: Array) -> None:
        """Move the store's weights into the window, and its gradient and tail to `merged`."""
        store = self.store
        weights: Array = self.window.array((store.size,), np.float32)
        weights[self.owned] = store.weights[self.owned]
        self.window.meet()
        store.move(weights, merged)

    def publish(self) -> None:
        """Wait until all slices are updated."""
        self.window.meet()

    def total(self, sums: NDArray[np.float64]) -> None:
        """Each node has all slices, so its own ranks' sums are enough."""
        self.node.on_host().sum(sums)

    def close(self) -> None:
        """Move the store into memory of its own and free the window."""
        weights, merged = self.store.weights.copy(), self.store.merged.copy()
        self.store.move(weights, merged)
        self._forget()
        del self.rows, self.tails
        self.window.free()
        for communicator in self._mine:
            communicator.free()

    def _forget(self) -> None:
        """Drop what else looks into the window."""
