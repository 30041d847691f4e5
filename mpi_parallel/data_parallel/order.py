"""Which samples make up a step: a pure function of (seed, epoch, step) that has never heard of ranks.

The N training rows are cut into S contiguous shards by `block`. Position p of an epoch belongs to shard p mod S, at
place p div S of that shard's own permutation; step t takes the positions [tB, (t+1)B). Since the longer shards come
first, the positions 0..N-1 meet every place of every shard exactly once.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mpi_parallel.device.expressions import Expressions
from mpi_parallel.device.hashing import Keys, combine_each, combine_int, mix, mix_in_place
from mpi_parallel.device.interface import Kernels

# What the same (seed, epoch) is hashed for, so that no two uses see the same bits.
ORDER, ROW_KEYS = 1, 2

Integers = NDArray[np.int64]
NUMPY: Kernels = Expressions(np)


def positions_of(shards: Sequence[int], total: int, of: int, span: range | None = None) -> Integers:
    """The epoch's positions, ascending, that belong to these of `of` shards of `total` rows; those in `span` only.

    The shards are ascending.
    """
    places, own = _places(total, of, span), np.asarray(shards, np.int64)
    positions = np.arange(places.start * of, places.stop * of, of)[:, None] + own[None, :]
    return positions.reshape(-1)[_inside(own, of, places, total, span)]


def local_order(
    shards: Sequence[int],
    total: int,
    of: int,
    seed: int,
    epoch: int,
    span: range | None = None,
    kernels: Kernels = NUMPY,
) -> Integers:
    """For each of `positions_of(...)`: the row among those of these shards, laid one shard after the other."""
    own = np.asarray(shards, np.int64)
    lengths = total // of + (own < total % of)  # as `block` cuts them
    starts = np.cumsum(lengths) - lengths
    keys = combine_each((ORDER, seed, epoch), own)
    places = _places(total, of, span)
    rows = np.empty((len(places), len(shards)), np.int64)
    for length in set(lengths.tolist()):  # two at most: all shards of a length are permuted together
        same = np.flatnonzero(lengths == length)
        there = rows[: max(0, min(places.stop, length) - places.start), same[0] : same[-1] + 1]
        kernels.permute(there, places.start, length, keys[same], starts[same])
    return rows.reshape(-1)[_inside(own, of, places, total, span)]


def grouped(
    positions: Integers, span: range, batch_size: int, groups: int, own: range
) -> tuple[Integers | slice, list[list[int]]]:
    """How to take positions so that each step's groups follow one another, and where the groups of each step end.

    Position p belongs to group p mod `groups`; the positions, ascending, are of the `own` groups and of the steps that
    `span` begins and ends. Gives the sequence to take them in, and for each step the edges of its own groups in that.
    """
    steps = np.arange(span.start // batch_size, -(-span.stop // batch_size))
    wanted = steps[:, None] * groups + np.arange(own.start, own.stop + 1)[None, :]
    if groups == 1:
        return slice(None), np.searchsorted(positions, wanted * batch_size).tolist()
    number = positions // batch_size * groups + positions % groups
    sequence = np.argsort(number, kind="stable")
    return sequence, np.searchsorted(number[sequence], wanted).tolist()


def row_keys(positions: Integers, seed: int, epoch: int) -> Keys:
    """A uint32 for each position of the epoch that names it to whatever is random about a sample, such as dropout."""
    words: Keys = positions.astype(np.uint32)
    words += mix(np.array([combine_int(ROW_KEYS, seed, epoch)], np.uint32))
    return mix_in_place(words)


def _places(total: int, of: int, span: range | None) -> range:
    """The places of the shards that these positions touch."""
    return range(-(-total // of)) if span is None else range(span.start // of, -(-min(span.stop, total) // of))


def _inside(shards: Integers, of: int, places: range, total: int, span: range | None) -> slice:
    """Which positions of these places of the shards are there and asked for; the first and the last place say."""
    if not places:
        return slice(0, 0)
    first, last = (0, total) if span is None else (span.start, min(span.stop, total))
    before = np.count_nonzero(places.start * of + shards < first)
    behind = np.count_nonzero((places.stop - 1) * of + shards >= last)
    return slice(int(before), len(places) * len(shards) - int(behind))
