"""The canonical tree in shared memory: the same bits as by exact, with the work of the sum and of the update divided.

Every rank of a node collects its groups in rows of the node's window. Behind a barrier each finishes the tree for its
own slice, in place, and updates that slice of the weights, which all read where it is. Between nodes the owners of a
slice send each other what their nodes have of it, and each finishes the tree by itself.
"""

from __future__ import annotations

import numpy as np

from mpi_parallel.device import Array
from mpi_parallel.mpi.communicator import Communicator
from mpi_parallel.nn.store import TAIL, ParameterStore
from mpi_parallel.result_merging.exact import Canonical
from mpi_parallel.result_merging.metrics import Totals
from mpi_parallel.result_merging.node import OnNode
from mpi_parallel.result_merging.tree import Collector, Forest


class ExactWindow(OnNode, Canonical):
    """Each rank finishes and updates its slice for all ranks of its node."""

    def __init__(
        self, store: ParameterStore, comm: Communicator, groups: int, node: Communicator | None = None
    ) -> None:
        """`groups` is a power of two. Raises InputError on a GPU and where the node has too little shared memory."""
        super().__init__(store, comm, node)
        self.forest = forest = Forest(groups, comm.size)
        here = self.node.gather(np.array([comm.rank])).ravel().tolist()  # the node's ranks, as `comm` numbers them
        held = [forest.waiting(rank) for rank in here]
        mine = self._open(held, forest.rows)
        self.collector = Collector(store, forest.own[comm.rank], mine)
        self._settle(store.merged.copy())
        starts = np.cumsum([0, *held[:-1]]).tolist()
        # Where the window has the node's rows of the forest, and which of all rows of the forest these are.
        self._held = [start + n for start, rank in zip(starts, here, strict=True) for n in range(forest.counts[rank])]
        numbers = [forest.first[rank] + n for rank in here for n in range(forest.counts[rank])]
        self._hear_of(numbers)

    def merge(self) -> Totals:
        """Wait for the others' groups; finish my slice of the tree, but for the last addition: the optimizer's."""
        self.collector.finish()
        self.window.meet()
        if self.nodes > 1:
            return self._merge_across()
        size, owned = self.store.size, self.owned
        totals = self.forest.totals(self.rows[self._rows, size : size + TAIL])
        for to, other in self._plan[:-1]:
            np.add(self.rows[to, owned], self.rows[other, owned], out=self.rows[to, owned])
        low, high = sorted(self._plan[-1]) if self._plan else (self._rows[self.forest.root],) * 2
        self.store.terms = self.rows[low : high + 1 : max(1, high - low), :size]
        return totals

    def whole(self) -> Array:
        if len(self.store.terms) > 1:
            self.store.device.kernels.sum_slots(self.store.terms[0, self.owned], self.store.terms[:, self.owned])
            self.store.terms = self.store.terms[:1]
        self.window.meet()
        gradient: Array = self.store.terms[0]
        return gradient

    def _forget(self) -> None:
        del self.collector

    def _merge_across(self) -> Totals:
        """Get the other nodes' rows of my slice, and finish the tree in memory of my own."""
        size, owned, theirs = self.store.size, self.owned, self._theirs
        if owned.stop > owned.start:
            for to, row in zip(self._given, self._held, strict=True):
                to[...] = self.rows[row, owned]
            self.across.gather_rows(self._given, self._counts, theirs)
            for to, other in self._plan:
                np.add(theirs[to], theirs[other], out=theirs[to])
            self.rows[0, owned] = theirs[self._rows[self.forest.root]]
        if self.node.rank == 0:
            tails = np.empty((self.forest.rows, TAIL), np.float32)
            self.across.gather_rows(self.rows[self._held, size : size + TAIL], self._counts, tails)
            self.tails[...] = tails[self._rows]
        self.store.terms = self.rows[:1, :size]
        self.window.meet()
        return self.forest.totals(self.tails)

    def _hear_of(self, numbers: list[int]) -> None:
        """Find out where the rows of the forest will be: in the window, or node by node behind an exchange."""
        order, where = numbers, self._held
        if self.nodes > 1:
            texts = self.across.gather_text(" ".join(map(str, numbers)))
            self._counts = [len(text.split()) for text in texts]
            order = [int(number) for text in texts for number in text.split()]
            where = list(range(len(order)))
            width = self.owned.stop - self.owned.start
            self._given, self._theirs = (np.empty((n, width), np.float32) for n in (len(numbers), len(order)))
        at = dict(zip(order, where, strict=True))
        self._rows = [at.get(row, 0) for row in range(self.forest.rows)]  # who owns nothing may not hear of all
        self._plan = [(self._rows[to], self._rows[other]) for to, other in self.forest.plan]
