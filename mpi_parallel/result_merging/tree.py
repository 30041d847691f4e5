"""The canonical tree of a reproducible run: which groups of rows are added in which order, whatever the ranks.

The rows of a step fall into G groups, G a power of two. The sum over the groups is defined as that of a balanced binary
tree with the groups as leaves. Ranks own runs of groups; each adds up the largest subtrees that lie within its run, and
whoever finishes a part of the sum adds these subtrees in the order of the tree. Floating-point addition is not
associative, but nobody ever adds in another order; nothing is rounded or quantised beside.
"""

from __future__ import annotations

import numpy as np

from mpi_parallel.device import Array
from mpi_parallel.mpi.partition import block
from mpi_parallel.nn.store import SAVE, STOP, TAIL, ParameterStore
from mpi_parallel.result_merging.metrics import Totals

Subtree = range  # of groups; its length is a power of two that divides its start


class Forest:
    """The subtrees of all ranks, a row each, by rank; a rank without groups has a row that only carries flags."""

    def __init__(self, groups: int, size: int) -> None:
        """`groups` is a power of two."""
        self.own = [block(groups, size, rank) for rank in range(size)]
        trees = [subtrees(own) for own in self.own]
        self.counts = [max(1, len(those)) for those in trees]  # rows of each rank
        self.first = np.cumsum([0, *self.counts[:-1]]).tolist()  # the first of them
        self.rows = sum(self.counts)
        row_of = {tree: row + n for row, those in zip(self.first, trees, strict=True) for n, tree in enumerate(those)}
        self.plan = additions(row_of, range(groups))  # (to, from), the last one's `to` has the sum
        self.root = self.plan[-1][0] if self.plan else row_of[range(groups)]

    def waiting(self, rank: int) -> int:
        """Rows that a rank needs while its groups come in."""
        return deepest(self.own[rank])

    def totals(self, tails: Array) -> Totals:
        """Of the tails, as `tail`."""
        return Totals.of(self.tail(tails))

    def tail(self, tails: Array) -> Array:
        """The sum (TAIL,) of the tails (rows, TAIL) on the host, by the tree; what any rank asks for counts."""
        tails = tails.copy()
        asked = tails[self.first, STOP : SAVE + 1].sum(axis=0)
        for to, other in self.plan:
            tails[to] += tails[other]
        tails[self.root, STOP : SAVE + 1] = asked
        summed: Array = tails[self.root]
        return summed


class Collector:
    """Adds up a rank's groups as they come in, in rows of `waiting` (see Forest.waiting)."""

    def __init__(self, store: ParameterStore, own: range, waiting: Array) -> None:
        """`waiting` is (rows, size + TAIL at least) float32, all zeros."""
        self.store, self.own, self.waiting = store, own, waiting[:, : store.size + TAIL]
        self.trees: list[Subtree] = []  # what stands in the rows of `waiting`
        self.next = own.start  # the group that is collected next

    def collect(self) -> None:
        """The store holds gradient and tail of the next group: add them to its sibling, and so on up the tree."""
        tree, values, xp = range(self.next, self.next + 1), self.store.merged, self.store.device.xp
        self.next += 1
        while self.trees and siblings(self.trees[-1], tree):
            left = self.trees.pop()
            row = self.waiting[len(self.trees)]
            xp.add(row, values, out=row)
            tree, values = range(left.start, tree.stop), row
        if values is self.store.merged:
            self.waiting[len(self.trees)] = values
        self.trees.append(tree)

    def finish(self) -> None:
        """All groups of the step have been collected: the next one is the first again."""
        asked = self.store.size + STOP  # by a rank, not by a group
        self.waiting[0, asked : asked + 1 + SAVE - STOP] = self.store.tail[STOP : SAVE + 1]
        self.trees.clear()
        self.next = self.own.start


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
