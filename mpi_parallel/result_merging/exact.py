"""The mergers whose sums are the same bits on any number of ranks, by the canonical tree of tree.py.

`Exact` is the plainest: every rank gets all ranks' subtrees and finishes the whole tree. `ExactShares` finishes only
the rank's own slice of it, as Sharded; exact_window.py has the one in shared memory.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any

import numpy as np

from mpi_parallel.device import Array
from mpi_parallel.mpi.communicator import Communicator
from mpi_parallel.nn.store import TAIL, ParameterStore
from mpi_parallel.result_merging.merger import Merger
from mpi_parallel.result_merging.metrics import Totals
from mpi_parallel.result_merging.tree import Collector, Forest


class Canonical(Merger):
    """What those mergers share: groups that are collected, and a norm that is rounded alike wherever it is computed."""

    forest: Forest
    collector: Collector

    @property
    def groups(self) -> int:
        return len(self.collector.own)

    def collect(self) -> None:
        self.collector.collect()

    def norm(self) -> float:
        """Of the same terms wherever the parameters are, in a sum that is rounded once (fsum)."""
        return math.sqrt(math.fsum(self.squares()))

    def squares(self) -> list[float]:
        """One term a parameter, as rank 0 has it."""
        gradient = self.whole()
        mine = np.zeros(len(self.store.parameters), np.float64)
        if self.comm.rank == 0:
            dot = self.store.device.xp.dot
            parts = (gradient[parameter.span] for parameter in self.store.parameters.values())
            mine[:] = [float(dot(part, part)) for part in parts]
        terms: list[float] = self.comm.gather(mine)[0].tolist()
        return terms

    @abstractmethod
    def whole(self) -> Array:
        """The whole summed gradient, on rank 0 at least; all ranks together."""


class Exact(Canonical):
    """Every rank gets the whole sum, always of the same additions, and takes the whole optimizer step."""

    name = "exact"

    def __init__(self, store: ParameterStore, comm: Communicator, groups: int) -> None:
        """`groups` is a power of two; this rank will collect those of its `block`, in their order."""
        super().__init__(store, comm)
        self.xp, self.forest = store.device.xp, Forest(groups, comm.size)
        waiting = self.xp.zeros((self.forest.waiting(comm.rank), len(store.merged)), np.float32)
        self.collector = Collector(store, self.forest.own[comm.rank], waiting)
        self.everyone: Array = self.xp.zeros((self.forest.rows, len(store.merged)), np.float32)

    def merge(self) -> Totals:
        """Finish the tree on every rank."""
        forest, size, everyone = self.forest, self.store.size, self.everyone
        self.collector.finish()
        mine = self.collector.waiting[: forest.counts[self.comm.rank]]
        self.comm.gather_rows(mine, forest.counts, everyone)
        totals = forest.totals(np.array(self.store.device.to_host(everyone[:, size:])))
        add_up(forest.plan, everyone, self.store.merged, self.xp)
        return totals

    def whole(self) -> Array:
        return self.store.gradients


class ExactShares(Canonical):
    """Each rank gets its slice of all subtrees, finishes that and updates it: the state is divided, as in Sharded."""

    name = "sharded"

    def __init__(self, store: ParameterStore, comm: Communicator, groups: int) -> None:
        super().__init__(store, comm)
        self.xp, self.forest, self.owned = store.device.xp, Forest(groups, comm.size), comm.share(store.size)
        waiting = self.xp.zeros((self.forest.waiting(comm.rank), len(store.merged)), np.float32)
        self.collector = Collector(store, self.forest.own[comm.rank], waiting)
        self._theirs: Array = self.xp.zeros((self.forest.rows, self.owned.stop - self.owned.start), np.float32)
        self._tails: Array = self.xp.zeros((self.forest.rows, TAIL), np.float32)

    def merge(self) -> Totals:
        """Exchange slices of the subtrees, and finish my own."""
        forest, size = self.forest, self.store.size
        self.collector.finish()
        mine = self.collector.waiting[: forest.counts[self.comm.rank]]
        self.comm.exchange_columns(mine[:, :size], forest.counts, self._theirs)
        self.comm.gather_rows(self.xp.ascontiguousarray(mine[:, size:]), forest.counts, self._tails)
        add_up(forest.plan, self._theirs, self.store.gradients[self.owned], self.xp)
        return forest.totals(np.array(self.store.device.to_host(self._tails)))

    def whole(self) -> Array:
        self.comm.gather_shares(self.store.gradients)
        return self.store.gradients

    def publish(self) -> None:
        """Every rank gets the slices that the others have updated."""
        self.comm.gather_shares(self.store.weights)


def add_up(plan: list[tuple[int, int]], rows: Array, out: Array, xp: Any) -> None:
    """The planned additions of rows; the last one goes to `out`, as does a single row."""
    for to, other in plan[:-1]:
        xp.add(rows[to], rows[other], out=rows[to])
    if plan:
        to, other = plan[-1]
        xp.add(rows[to], rows[other], out=out)
    else:
        out[...] = rows[0]
