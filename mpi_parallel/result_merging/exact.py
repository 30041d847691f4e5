"""The merger whose sums are the same bits on any number of ranks: a canonical tree over fixed groups of the batch.

The rows of a step fall into G groups, G a power of two, whatever the ranks. The sum over the groups is defined as that
of a balanced binary tree with the groups as leaves. Ranks own runs of groups; each adds up the largest subtrees that
lie within its run, every rank gets all ranks' subtrees, and all finish the tree alike. Floating-point addition is not
associative, but nobody ever adds in another order; nothing is rounded or quantised beside.
"""

from __future__ import annotations

import math

import numpy as np

from mpi_parallel.device import Array
from mpi_parallel.mpi.communicator import Communicator
from mpi_parallel.mpi.partition import block
from mpi_parallel.nn.store import SAVE, STOP, ParameterStore
from mpi_parallel.result_merging.merger import Merger
from mpi_parallel.result_merging.metrics import Totals

Subtree = range  # of groups; its length is a power of two that divides its start


class Exact(Merger):
    """Every rank gets the whole sum, always of the same additions, and takes the whole optimizer step."""

    name = "exact"

    def __init__(self, store: ParameterStore, comm: Communicator, groups: int) -> None:
        """`groups` is a power of two; this rank will collect those of its `block`, in their order."""
        super().__init__(store, comm)
        self.xp = store.device.xp
        forest = [subtrees(block(groups, comm.size, rank)) for rank in range(comm.size)]
        # A rank without groups sends a row of zeros, which the tree leaves out but whose flags count.
        self.counts = [max(1, len(trees)) for trees in forest]
        self.first = np.cumsum([0, *self.counts[:-1]])
        rows = {
            tree: int(row) + n for row, trees in zip(self.first, forest, strict=True) for n, tree in enumerate(trees)
        }
        self.plan = additions(rows, range(groups))
        self.own = block(groups, comm.size, comm.rank)
        self.next = self.own.start  # the group that is collected next
        shape = (deepest(self.own), len(store.merged))
        self.waiting: Array = self.xp.zeros(shape, np.float32)
        self.trees: list[Subtree] = []  # what stands in the rows of `waiting`
        self.everyone: Array = self.xp.zeros((sum(self.counts), shape[1]), np.float32)

    def collect(self) -> None:
        """The store holds gradient and tail of the next group: add them to its sibling, and so on up the tree."""
        tree, values = range(self.next, self.next + 1), self.store.merged
        self.next += 1
        while self.trees and siblings(self.trees[-1], tree):
            left = self.trees.pop()
            row = self.waiting[len(self.trees)]
            self.xp.add(row, values, out=row)
            tree, values = range(left.start, tree.stop), row
        if values is self.store.merged:
            self.waiting[len(self.trees)] = values
        self.trees.append(tree)

    def merge(self) -> Totals:
        """Finish the tree on every rank."""
        asked = slice(STOP, SAVE + 1)  # by a rank, not by a group
        flags = slice(self.store.size + STOP, self.store.size + SAVE + 1)
        self.waiting[0, flags] = self.store.tail[asked]
        self.comm.gather_rows(self.waiting[: self.counts[self.comm.rank]], self.counts, self.everyone)
        flagged = self.everyone[self.first, flags].sum(axis=0)
        for to, other in self.plan[:-1]:
            self.xp.add(self.everyone[to], self.everyone[other], out=self.everyone[to])
        if self.plan:
            to, other = self.plan[-1]
            self.xp.add(self.everyone[to], self.everyone[other], out=self.store.merged)
        else:
            self.store.merged[...] = self.everyone[0]
        self.store.tail[asked] = flagged
        self.trees.clear()
        self.next = self.own.start
        return Totals.of(self.store.device.to_host(self.store.tail))

    def norm(self) -> float:
        """Of the same terms wherever the parameters are, in a sum that is rounded once (fsum)."""
        return math.sqrt(math.fsum(self.squares()))

    def squares(self) -> list[float]:
        """One term a parameter, as rank 0 has it."""
        mine = np.zeros(len(self.store.parameters), np.float64)
        if self.comm.rank == 0:
            mine[:] = [self._squares(parameter.span) for parameter in self.store.parameters.values()]
        terms: list[float] = self.comm.gather(mine)[0].tolist()
        return terms


def subtrees(groups: range) -> list[Subtree]:
    """The largest whole subtrees within a run of groups, from left to right."""
    trees: list[Subtree] = []
    for group in groups:
        _push(trees, group)
    return trees


def deepest(groups: range) -> int:
    """How many subtrees wait at the most while a run of groups comes in, at least one."""
    trees: list[Subtree] = []
    return max([1, *(_push(trees, group) for group in groups)])


def siblings(left: Subtree, right: Subtree) -> bool:
    """Whether two subtrees are the halves of one."""
    return len(left) == len(right) and left.stop == right.start and left.start % (2 * len(left)) == 0


def additions(rows: dict[Subtree, int], tree: Subtree) -> list[tuple[int, int]]:
    """The additions (to, from), rows of subtrees, that leave the sum of the whole tree in the last one's `to`."""
    plan: list[tuple[int, int]] = []

    def sum_of(tree: Subtree) -> int:
        if tree in rows:
            return rows[tree]
        middle = (tree.start + tree.stop) // 2
        plan.append((sum_of(range(tree.start, middle)), sum_of(range(middle, tree.stop))))
        return plan[-1][0]

    sum_of(tree)
    return plan


def _push(trees: list[Subtree], group: int) -> int:
    """What `collect` does to the list of subtrees; how many wait afterwards."""
    tree = range(group, group + 1)
    while trees and siblings(trees[-1], tree):
        tree = range(trees.pop().start, tree.stop)
    trees.append(tree)
    return len(trees)
