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

from mpi_parallel.mpi.communicator import Communicator
from mpi_parallel.nn.store import BAD, TAIL, ParameterStore
from mpi_parallel.result_merging.metrics import Totals
from mpi_parallel.result_merging.node import OnNode
from mpi_parallel.result_merging.wire import Wire


class Window(OnNode):
    """Each rank sums and updates its slice for all ranks of its node; nothing is copied."""

    def __init__(
        self, store: ParameterStore, comm: Communicator, node: Communicator | None = None, wire: str = "float32"
    ) -> None:
        """Between nodes gradients travel as numbers of the format `wire`.

        Raises InputError on a GPU, and where the node has too little shared memory.
        """
        super().__init__(store, comm, node)
        slot = self._open([1] * self.node.size, self.nodes + self.node.size)[0, : store.size + TAIL]
        self._of_nodes, self._overflow = self.tails[: self.nodes], self.tails[self.nodes :, 0]
        self._overflow[self.node.rank] = 0
        self.wire = Wire(self.across, self.owned.stop - self.owned.start, wire)
        slot[...] = store.merged
        self._settle(slot)
        self._gradients = self.rows[:, : store.size]  # of the ranks
        self._tails = self.rows[:, store.size : store.size + TAIL]
        self._tail = np.empty(TAIL, np.float32)

    def merge(self) -> Totals:
        """Wait for the slots of the others; between nodes also sum my slice."""
        self.window.meet()
        self.store.terms = self._gradients
        tails = self._tails
        if self.nodes > 1:
            self._sum_across()
            tails = self._of_nodes
        tail = np.add.reduce(tails, axis=0, out=self._tail)
        if self.wire.narrow:
            tail[BAD] += self._overflow.sum()
        return Totals.of(tail)

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

    def _forget(self) -> None:
        del self._gradients, self._tails, self._of_nodes, self._overflow

    def _sum_slots(self) -> None:
        """My slice of the sum, in slot 0: no other rank reads or writes it there before the next step."""
        self.store.device.kernels.sum_slots(self.rows[0, self.owned], self._gradients[:, self.owned])
        self.store.terms = self._gradients[:1]

    def _sum_across(self) -> None:
        """Sum my slice over the nodes; the first rank also fetches the nodes' tails, for all to sum in one order."""
        self._sum_slots()
        mine = self.rows[0, self.owned]
        self.wire.sum(mine)
        if self.wire.narrow:  # what was too large for the format is so on all nodes
            flag = self._overflow[self.node.rank :][:1]
            flag[:] = 0
            self.store.device.kernels.check(mine, flag)
        if self.node.rank == 0:
            self._of_nodes[:] = self.across.gather(np.add.reduce(self._tails, axis=0, out=self._tail))
        self.window.meet()
