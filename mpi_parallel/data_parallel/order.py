"""Which samples make up a step: a pure function of (seed, epoch, step) that has never heard of ranks.

The N training rows are cut into S contiguous shards by `block`. Position p of an epoch belongs to shard p mod S, at
place p div S of that shard's own permutation; step t takes the positions [tB, (t+1)B). Since the longer shards come
first, the positions 0..N-1 meet every place of every shard exactly once.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from mpi_parallel.device.expressions import Expressions
from mpi_parallel.device.hashing import Keys, combine_each, combine_int, mix
from mpi_parallel.device.interface import Kernels

# What the same (seed, epoch) is hashed for, so that no two uses see the same bits.
ORDER, ROW_KEYS = 1, 2

Integers = NDArray[np.int64]
NUMPY: Kernels = Expressions(np)


class Positions:
    """The positions of an epoch that belong to some of the `of` shards of `total` rows, in ascending order.

    A span of them is a range of all positions; without one they are those of the whole epoch.
    """

    def __init__(self, shards: Sequence[int], total: int, of: int, kernels: Kernels = NUMPY) -> None:
        """`shards` ascend; `kernels` are the host's."""
        self.shards, self.total, self.of, self.kernels = np.asarray(shards, np.int64), total, of, kernels
        lengths = total // of + (self.shards < total % of)  # as `block` cuts them
        self._starts = np.cumsum(lengths) - lengths
        longer = int(np.searchsorted(self.shards, total % of))
        self._alike = (slice(0, longer), total // of + 1), (slice(longer, len(self.shards)), total // of)

    def below(self, *stops: int) -> Integers:
        """How many of them are below each of these, which are at most `total`."""
        turns, rest = np.divmod(np.array(stops, np.int64), self.of)
        below: Integers = turns * len(self.shards) + np.searchsorted(self.shards, rest)
        return below

    def numbers(self, span: range | None = None) -> Integers:
        """The positions themselves."""
        places, inside = self._places(span)
        numbers = np.arange(places.start * self.of, places.stop * self.of, self.of)[:, None] + self.shards
        return numbers.reshape(-1)[inside]

    def rows(self, seed: int, epoch: int, span: range | None = None) -> Integers:
        """For each of them: the row among those of these shards, laid one shard after the other."""
        places, inside = self._places(span)
        rows, keys = (
            np.empty((len(places), len(self.shards)), np.int64),
            combine_each((ORDER, seed, epoch), self.shards),
        )
        for alike, length in self._alike:  # shards of a length are permuted together
            there = rows[: max(0, min(places.stop, length) - places.start), alike]
            self.kernels.permute(there, places.start, length, keys[alike], self._starts[alike])
        return rows.reshape(-1)[inside]

    def keys(self, seed: int, epoch: int, span: range | None = None) -> Keys:
        """For each of them a uint32 that names it to whatever is random about a sample, such as dropout."""
        places, inside = self._places(span)
        keys = np.empty((len(places), len(self.shards)), np.uint32)
        salt = int(mix(np.array([combine_int(ROW_KEYS, seed, epoch)], np.uint32))[0])
        self.kernels.name_positions(keys, places.start, self.of, self.shards, salt)
        return keys.reshape(-1)[inside]

    def steps(
        self, span: range, batch_size: int, groups: int = 1, own: range = range(1)
    ) -> tuple[Integers | slice, Sequence[Sequence[int]]]:
        """How to take them so that each step's groups follow one another, and where the groups of each step end.

        Position p belongs to group p mod `groups`, and `span`, which begins and ends with a step, has none but those of
        the `own` groups. Gives the sequence to take them in, and for each step the edges of its own groups in that.
        """
        if groups == len(own) == 1:
            ends = self.below(*range(span.start, span.stop, batch_size), span.stop) - self.below(span.start)
            return slice(None), list(pairwise(ends.tolist()))
        positions = self.numbers(span)
        number = positions // batch_size * groups + positions % groups
        sequence = np.argsort(number, kind="stable")
        steps = np.arange(span.start // batch_size, -(-span.stop // batch_size))
        wanted = steps[:, None] * groups + np.arange(own.start, own.stop + 1)
        return sequence, np.searchsorted(number[sequence], wanted).tolist()

    def _places(self, span: range | None) -> tuple[range, slice]:
        """The places of the shards that a span touches, and which of all positions there are in the span."""
        span = range(self.total) if span is None else span
        places = range(span.start // self.of, -(-span.stop // self.of))
        start, stop = self.below(span.start, span.stop) - places.start * len(self.shards)
        return places, slice(int(start), int(stop))
