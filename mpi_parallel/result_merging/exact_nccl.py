"""The canonical tree between GPUs: each gets all ranks' subtrees by NCCL, and finishes the whole tree.

    rank 0   [ subtree | subtree ]  \\                                   the rows of a rank lie together, as many for
    rank 1   [ subtree | unused  ]   >  everyone's, (ranks * most, N)   each as the rank with most of them has
    rank 2   [ subtree | unused  ]  /

What travels is moved and never added up on its way, so the bits are those of the other mergers of this kind; and all of
it is work of the GPUs, which a graph captures in one piece.
"""

from __future__ import annotations

import numpy as np

from mpi_parallel.device import Array
from mpi_parallel.device.relay import Relay
from mpi_parallel.mpi.communicator import Communicator
from mpi_parallel.nn.store import SAVE, STOP, ParameterStore
from mpi_parallel.result_merging.chips import open_collectives
from mpi_parallel.result_merging.exact import Canonical, add_up
from mpi_parallel.result_merging.metrics import Totals
from mpi_parallel.result_merging.tree import Collector, Forest


class ExactNccl(Canonical):
    """As Exact, without the host."""

    name = "exact"

    def __init__(self, store: ParameterStore, comm: Communicator, groups: int) -> None:
        """`groups` is a power of two. Raises InputError, on all ranks alike, as chips.open_collectives does."""
        super().__init__(store, comm)
        self.gpus = open_collectives(store, comm, "nccl")
        self.xp, self.forest = store.device.xp, Forest(groups, comm.size)
        counts, width = self.forest.counts, len(store.merged)
        most, mine = max(counts), counts[comm.rank]
        waiting = self.xp.zeros((self.forest.waiting(comm.rank), width), np.float32)
        self.collector = Collector(store, self.forest.own[comm.rank], waiting)
        self._subtrees: Array = waiting[:mine]
        self._everyone: Array = self.xp.zeros((comm.size * most, width), np.float32)
        self._mine = self._everyone[comm.rank * most : comm.rank * most + mine]
        where = [rank * most + n for rank, count in enumerate(counts) for n in range(count)]
        self._plan = [(where[to], where[other]) for to, other in self.forest.plan]
        # What a rank asks for is in its first row, also where it has no group and so no part in the plan.
        asked = slice(store.size + STOP, store.size + SAVE + 1)
        self._asked_by: Array = self._everyone.reshape(comm.size, most * width)[:, asked]
        self._asked: Array = self.xp.zeros(SAVE + 1 - STOP, np.float32)

    def merge(self) -> Totals:
        self._sum()
        return Totals.of(self.store.device.to_host(self.store.tail))

    def relay(self) -> Relay:
        return Relay(self._sum)

    def whole(self) -> Array:
        return self.store.gradients

    def close(self) -> None:
        self.gpus.close()

    def _sum(self) -> None:
        self.collector.finish()
        self._mine[...] = self._subtrees
        self.gpus.gather_shares(self._everyone.reshape(-1))
        self.store.device.kernels.sum_slots(self._asked, self._asked_by)
        add_up(self._plan, self._everyone, self.store.merged, self.xp)
        self.store.tail[STOP : SAVE + 1] = self._asked
