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
from mpi_parallel.device.relay import Mirror, Relay
from mpi_parallel.mpi.communicator import Communicator
from mpi_parallel.nn.store import TAIL, ParameterStore
from mpi_parallel.result_merging.merger import Merger, in_order
from mpi_parallel.result_merging.metrics import Totals
from mpi_parallel.result_merging.sharded import shares_of
from mpi_parallel.result_merging.tree import Collector, Forest


class Canonical(Merger):
    """What those mergers share: groups that are collected, and a norm that is rounded alike wherever it is computed."""

    collects = True
    forest: Forest
    collector: Collector

    @property
    def groups(self) -> int:
        return len(self.collector.own)

    def collect(self) -> None:
        self.collector.collect()

    def norm(self) -> float:
        """Of the same terms in the same order wherever the parameters are."""
        return math.sqrt(in_order(self.squares()))

    def squares(self) -> list[float]:
        """One term a parameter, as rank 0 has it."""
        gradient = self.whole()
        mine: Array = self.store.device.xp.zeros(len(self.store.parameters), np.float64)
        if self.comm.rank == 0:
            self._square(gradient, mine)
        terms: list[float] = self.comm.on_host().gather(self.store.device.to_host(mine))[0].tolist()
        return terms

    def relay_squares(self, squares: Array) -> Relay:
        return Relay(lambda: self._square(self.store.gradients, squares))

    @abstractmethod
    def whole(self) -> Array:
        """The whole summed gradient, on rank 0 at least; all ranks together."""

    def _square(self, gradient: Array, squares: Array) -> None:
        for number, parameter in enumerate(self.store.parameters.values()):
            self.store.device.kernels.squares(gradient[parameter.span], squares[number : number + 1])


class Relayed(Canonical):
    """Those that collect in the device's memory and exchange by way of the host's."""

    def __init__(self, store: ParameterStore, comm: Communicator, groups: int) -> None:
        """`groups` is a power of two; this rank will collect those of its `block`, in their order."""
        super().__init__(store, comm)
        self.xp, self.host, self.forest = store.device.xp, comm.on_host(), Forest(groups, comm.size)
        waiting = self.xp.zeros((self.forest.waiting(comm.rank), len(store.merged)), np.float32)
        self.collector = Collector(store, self.forest.own[comm.rank], waiting)
        self._mine = Mirror(store.device, waiting[: self.forest.counts[comm.rank]])
        self._tail = store.device.pinned((TAIL,), np.float32)
        self._merging = Relay(self._send, self._exchange, self._receive)
        if comm.size == 1:  # its one subtree is the tree
            self._merging = Relay(self.collector.finish, None, self._take)

    def merge(self) -> Totals:
        self._merging.run(self.store.device)
        return Totals.of(self.store.device.to_host(self.store.tail))

    def relay(self) -> Relay:
        return self._merging

    def _send(self) -> None:
        self.collector.finish()
        self._mine.fetch()

    @abstractmethod
    def _exchange(self) -> None:
        """Have all that the tree needs in the host's memory, and in `_tail` its sums."""

    @abstractmethod
    def _receive(self) -> None:
        """Finish the tree."""

    def _take(self) -> None:
        self.store.merged[...] = self.collector.waiting[0]


class Exact(Relayed):
    """Every rank gets the whole sum, always of the same additions, and takes the whole optimizer step."""

    name = "exact"

    def __init__(self, store: ParameterStore, comm: Communicator, groups: int) -> None:
        super().__init__(store, comm, groups)
        rows = self.forest.rows if comm.size > 1 else 0
        self._everyone = Mirror(store.device, self.xp.zeros((rows, len(store.merged)), np.float32))

    def whole(self) -> Array:
        return self.store.gradients

    def _exchange(self) -> None:
        everyone = self._everyone.values
        self.host.gather_rows(self._mine.values, self.forest.counts, everyone)
        self._tail[...] = self.forest.tail(everyone[:, self.store.size :])

    def _receive(self) -> None:
        self._everyone.put()
        add_up(self.forest.plan, self._everyone.array, self.store.merged, self.xp)
        self.store.device.put(self._tail, self.store.tail)


class ExactShares(Relayed):
    """Each rank gets its slice of all subtrees, finishes that and updates it: the state is divided, as in Sharded."""

    name = "sharded"

    def __init__(self, store: ParameterStore, comm: Communicator, groups: int) -> None:
        super().__init__(store, comm, groups)
        self.owned, self.divides = comm.share(store.size), comm.size > 1
        width = self.owned.stop - self.owned.start if comm.size > 1 else 0
        self._theirs = Mirror(store.device, self.xp.zeros((self.forest.rows, width), np.float32))
        self._tails = np.zeros((self.forest.rows, TAIL), np.float32)
        both = store.gradients, store.weights
        self._gradients, self._weights = (shares_of(array, self.owned, store.device, self.host) for array in both)

    def whole(self) -> Array:
        self._gradients.run(self.store.device)
        return self.store.gradients

    def publish(self) -> None:
        """Every rank gets the slices that the others have updated."""
        self._weights.run(self.store.device)

    def relay_squares(self, squares: Array) -> Relay:
        """Every rank gets the slices of the sum that the others have finished."""
        send, exchange, receive = self._gradients

        def square() -> None:
            receive()
            self._square(self.store.gradients, squares)

        return Relay(send, exchange, square)

    def relay_weights(self) -> Relay:
        return self._weights

    def _exchange(self) -> None:
        mine, counts, size = self._mine.values, self.forest.counts, self.store.size
        self.host.exchange_columns(mine[:, :size], counts, self._theirs.values)
        self.host.gather_rows(np.ascontiguousarray(mine[:, size:]), counts, self._tails)
        self._tail[...] = self.forest.tail(self._tails)

    def _receive(self) -> None:
        self._theirs.put()
        add_up(self.forest.plan, self._theirs.array, self.store.gradients[self.owned], self.xp)
        self.store.device.put(self._tail, self.store.tail)


def add_up(plan: list[tuple[int, int]], rows: Array, out: Array, xp: Any) -> None:
    """The planned additions of rows; the last one goes to `out`, as does a single row."""
    for to, other in plan[:-1]:
        row = rows[to]  # CuPy takes another view of it for another array, and copies it
        xp.add(row, rows[other], out=row)
    if plan:
        to, other = plan[-1]
        xp.add(rows[to], rows[other], out=out)
    else:
        out[...] = rows[0]
