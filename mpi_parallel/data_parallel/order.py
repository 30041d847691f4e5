"""Which samples make up a step: a pure function of (seed, epoch, step) that has never heard of ranks.

The N training rows are cut into S contiguous shards by `block`. Position p of an epoch belongs to shard p mod S, at
place p div S of that shard's own permutation; step t takes the positions [tB, (t+1)B). Since the longer shards come
first, the positions 0..N-1 meet every place of every shard exactly once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpi_parallel.device.hashing import combine, combine_int, mix
from mpi_parallel.mpi.partition import block

ROUNDS = 6  # four make a good cipher of wide words (Luby and Rackoff 1988); halves of a few bits want some more
# What the same (seed, epoch) is hashed for, so that no two uses see the same bits.
ORDER, ROW_KEYS = 1, 2

Integers = NDArray[np.int64]
Keys = NDArray[np.uint32]


def permute(places: Integers, n: int, key: int | Keys) -> Integers:
    """The image of each place under a permutation of range(n) chosen by the key (uint32, one or one for each place).

    A Feistel network permutes the smallest 4^h >= n; images beyond n are permuted again until they fall inside (cycle
    walking, Black and Rogaway 2002). Needs no array of n. Places and keys broadcast.
    """
    half = max(1, (max(n - 1, 1).bit_length() + 1) // 2)
    numbers = np.arange(1, ROUNDS + 1, dtype=np.uint32) * np.uint32(0x9E3779B9)
    keys = np.atleast_1d(np.asarray(key, np.uint32))
    rounds = [mix(keys ^ number) for number in numbers]  # mixed here, where there may be one for many places
    image = _feistel(places.astype(np.uint32), rounds, half)
    outside = np.nonzero(image >= n)
    while outside[0].size:
        theirs = [np.broadcast_to(one, image.shape)[outside] for one in rounds]
        image[outside] = _feistel(image[outside], theirs, half)
        beyond = image[outside] >= n
        outside = tuple(axis[beyond] for axis in outside)
    return image.astype(np.int64)


def shard_order(n: int, shard: int, seed: int, epoch: int) -> Integers:
    """The shard's rows (from 0, within the shard of n rows) in the order in which the epoch uses them."""
    return permute(np.arange(n), n, combine_int(ORDER, seed, epoch, shard))


def positions_of(shards: Sequence[int], total: int, of: int, span: range | None = None) -> Integers:
    """The epoch's positions, ascending, that belong to these of `of` shards of `total` rows; those in `span` only."""
    positions = _grid(shards, of, _places(total, of, span))
    return positions[_inside(positions, total, span)]


def local_order(
    shards: Sequence[int], total: int, of: int, seed: int, epoch: int, span: range | None = None
) -> Integers:
    """For each of `positions_of(...)`: the row among those of these shards, laid one shard after the other."""
    lengths = np.array([len(block(total, of, shard)) for shard in shards], np.int64)
    starts = np.cumsum(lengths) - lengths
    keys = np.array([combine_int(ORDER, seed, epoch, shard) for shard in shards], np.uint32)
    places = _places(total, of, span)
    rows = np.full((len(places), len(shards)), -1, np.int64)
    for length in set(lengths.tolist()):  # two at most: all shards of a length are permuted together
        same = np.flatnonzero(lengths == length)
        held = np.arange(places.start, max(places.start, min(places.stop, length)))
        rows[: len(held), same] = permute(held[:, None], length, keys[same]) + starts[same]
    return rows[_inside(_grid(shards, of, places), total, span)]


def grouped(
    positions: Integers, span: range, batch_size: int, groups: int, own: range
) -> tuple[Integers | slice, list[list[int]]]:
    """How to take positions so that each step's groups follow one another, and where the groups of each step end.

    Position p belongs to group p mod `groups`; the positions, ascending, are of the `own` groups and of the steps that
    `span` begins and ends. Gives the sequence to take them in, and for each step the edges of its own groups in that.
    """
    number = positions // batch_size * groups + positions % groups
    sequence: Integers | slice = slice(None)
    if groups > 1:
        sequence = np.argsort(number, kind="stable")
        number = number[sequence]
    steps = np.arange(span.start // batch_size, -(-span.stop // batch_size))
    wanted = steps[:, None] * groups + np.arange(own.start, own.stop + 1)[None, :]
    return sequence, np.searchsorted(number, wanted).tolist()


def row_keys(positions: Integers, seed: int, epoch: int) -> Keys:
    """A uint32 for each position of the epoch that names it to whatever is random about a sample, such as dropout."""
    words: Any = positions.astype(np.uint32)
    keys: Keys = combine(np.array([combine_int(ROW_KEYS, seed, epoch)], np.uint32), words)
    return keys


def _places(total: int, of: int, span: range | None) -> range:
    """The places of the shards that these positions touch."""
    return range(-(-total // of)) if span is None else range(span.start // of, -(-min(span.stop, total) // of))


def _grid(shards: Sequence[int], of: int, places: range) -> Integers:
    """(places, shards) the position of each."""
    return np.arange(places.start, places.stop)[:, None] * of + np.asarray(shards, np.int64)[None, :]


def _inside(positions: Integers, total: int, span: range | None) -> NDArray[np.bool_]:
    """Which positions are there and asked for."""
    first, last = (0, total) if span is None else (span.start, min(span.stop, total))
    return (positions >= first) & (positions < last)


def _feistel(words: Keys, rounds: Sequence[Keys], half: int) -> Keys:
    """Permute words below 4^half: in each round one half is changed by a hash of the other and the round's key."""
    mask = np.uint32((1 << half) - 1)
    left, right = words >> np.uint32(half), words & mask
    for key in rounds:
        left, right = right, left ^ (mix(right ^ key) & mask)
    return left << np.uint32(half) | right
