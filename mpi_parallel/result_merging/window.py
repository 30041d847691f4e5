"""Merging through memory: the ranks of a node keep weights and gradients in one MPI shared-memory window.

    slot 0   [ gradients of rank 0              | tail ]      each rank of the node writes its own slot in backward
    slot 1   [ gradients of rank 1              | tail ]
    weights  [ mine: sum of slots, step | of the next  ]      each updates its slice, all read the whole in place

A step has two barriers. Before the first all write their slots and read the weights; behind it each rank reads its
slice of all slots and writes that of the weights. Behind the second the weights are new, and nobody reads the slots.
The sum is part of the optimizer's pass over the slice (`store.terms`), in the order of the ranks.

With several nodes the slices are the same on each, and their owners, one a node, Allreduce them in slot 0.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from mpi_parallel.device import Array
from mpi_parallel.mpi.communicator import Communicator
from mpi_parallel.mpi.partition import LINE, share
from mpi_parallel.mpi.window import SharedWindow, aligned
from mpi_parallel.nn.store import TAIL, ParameterStore
from mpi_parallel.options import InputError
from mpi_parallel.result_merging.merger import Merger
from mpi_parallel.result_merging.metrics import Totals


class Window(Merger):
    """Each rank sums and updates its slice for all ranks of its node; nothing is copied."""

    name = "window"

    def __init__(self, store: ParameterStore, comm: Communicator, node: Communicator | None = None) -> None:
        """Move the store into the window of `node`, the ranks of `comm` that share memory with this one.

        Raises InputError on a GPU, and where the node has too little shared memory.
        """
        super().__init__(store, comm)
        if store.device.kind != "cpu":
            raise InputError(
                f"--merge window works in the host's memory, and the device is {store.device.kind}: choose --merge flat"
            )
        self._mine = [] if node else [comm.node()]  # communicators to free
        self.node = node or self._mine[0]
        slices = -comm.maximum(-self.node.size)  # as many as the smallest node has ranks; the rest only compute
        self.owned = share(store.size, slices, self.node.rank) if self.node.rank < slices else slice(0, 0)
        self.across = comm.split(self.node.rank)  # the owners of this slice; of rank 0's, one of every node
        self._mine.append(self.across)
        self.nodes = self.node.maximum(self.across.size)

        length = aligned(4 * (store.size + TAIL)) // 4
        room = (self.node.size * length + length) * 4 + self.nodes * LINE * 4
        self.window = SharedWindow(self.node, room, comm)
        self._slots = self.window.array((self.node.size, length), np.float32)
        self._of_nodes = self.window.array((self.nodes, LINE), np.float32)[:, :TAIL]
        self._terms = self._slots[:, : store.size]  # the gradients of the ranks
        self._tails = self._slots[:, store.size : store.size + TAIL]
        self._tail = np.empty(TAIL, np.float32)
        self._settle()

    def merge(self) -> Totals:
        """Wait for the slots of the others; between nodes also sum my slice."""
        self.window.meet()
        self.store.terms = self._terms
        tails = self._tails
        if self.nodes > 1:
            self._sum_across()
            tails = self._of_nodes
        return Totals.of(np.add.reduce(tails, axis=0, out=self._tail))

    def norm(self) -> float:
        """From the squares of all slices of the node. Those of other nodes are the same, but for processors that round
        differently: so one node's are taken on all."""
        if len(self.store.terms) > 1:
            self._sum_slots()
        mine = self.store.terms[0, self.owned]
        squares = float(np.dot(mine, mine))
        if self.nodes > 1:
            squares = self.across.total(squares if self.across.rank == 0 else 0.0)
        return math.sqrt(self.window.total(squares))

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
        del self._slots, self._terms, self._tails, self._of_nodes
        self.window.free()
        for communicator in self._mine:
            communicator.free()

    def _settle(self) -> None:
        """Put the store into the window. Who works on a part touches it first, and then has it near (NUMA)."""
        store, mine = self.store, self._slots[self.node.rank]
        weights: Array = self.window.array((store.size,), np.float32)
        mine[:] = 0
        mine[: store.size + TAIL] = store.merged
        weights[self.owned] = store.weights[self.owned]
        self.window.meet()
        store.move(weights, mine[: store.size + TAIL])

    def _sum_slots(self) -> None:
        """My slice of the sum, in slot 0: no other rank reads or writes it there before the next step."""
        self.store.device.kernels.sum_slots(self._slots[0, self.owned], self._terms[:, self.owned])
        self.store.terms = self._terms[:1]

    def _sum_across(self) -> None:
        """Sum my slice over the nodes; the first rank also fetches the nodes' tails, for all to sum in one order."""
        self._sum_slots()
        self.across.sum(self._slots[0, self.owned])
        if self.node.rank == 0:
            self._of_nodes[:] = self.across.gather(np.add.reduce(self._tails, axis=0, out=self._tail))
        self.window.meet()
