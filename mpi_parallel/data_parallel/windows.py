"""The order of samples when they are streamed: a pure function of file, options, seed and epoch, shard by shard.

A shard is cut into blocks, runs of rows that end where chunks of the file end. An epoch permutes the blocks of each
shard, takes them in windows of several blocks, and permutes the rows of each window. Only windows have to be in memory,
and as in `order` the positions of an epoch are dealt to the shards in turn, so ranks do not matter.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from mpi_parallel.data_parallel.order import Integers
from mpi_parallel.data_parallel.split import Split
from mpi_parallel.device.hashing import combine, combine_int, permute

BLOCKS, ROWS = 4, 5  # what (seed, epoch) is hashed for; see order.py
BLOCKS_OF_A_WINDOW = 16  # rows that follow each other in a shard have that much to do with each other: 1/16
LABEL_BYTES, SLOT_BYTES = 4, 8  # that a row of a window takes beside its image


@dataclass(frozen=True)
class Cut:
    """A block is `rows` consecutive rows of the file, a window is `blocks` of them."""

    rows: int
    blocks: int

    @property
    def capacity(self) -> int:
        """Rows of the file in a window."""
        return self.rows * self.blocks


@dataclass(frozen=True)
class Window:
    """What is read and shuffled together: these places of the split, from place `first` of the lane (shard) on."""

    lane: int
    first: int
    parts: tuple[range, ...]
    key: int | None = None  # of the permutation of its rows; None leaves them as they are

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def order(self) -> Integers:
        """Which of its rows comes first, second, …"""
        if self.key is None:
            return np.arange(len(self))
        # No two rows have the same hash, and sorting takes a fifth of the time that permute does.
        rows = np.arange(len(self), dtype=np.uint32)
        return np.argsort(combine(rows, np.array([self.key], np.uint32)))


def row_bytes(split: Split) -> int:
    """What a row takes in memory."""
    return split.dtype.itemsize * split.features + LABEL_BYTES


def cut_of(split: Split, window: int) -> Cut:
    """The cut of a split for windows of about `window` bytes, at least a block; blocks are whole chunks of the file."""
    rows = split.chunk * max(1, window // BLOCKS_OF_A_WINDOW // (split.chunk * row_bytes(split)))
    return Cut(rows, max(1, min(BLOCKS_OF_A_WINDOW, window // (rows * row_bytes(split)))))


def shuffled(lane: int, shard: int, blocks: list[range], cut: Cut, seed: int, epoch: int) -> Iterator[Window]:
    """The windows of a shard in the order in which an epoch uses them.

    The first is of another size in every shard: were all shards to need a new window at once, as much again would
    have to be read ahead.
    """
    order = permute(np.arange(len(blocks)), len(blocks), combine_int(BLOCKS, seed, epoch, shard))
    edges = [0, *range(1 + shard % cut.blocks, len(blocks), cut.blocks), len(blocks)] if blocks else []
    first = 0
    for number, (start, stop) in enumerate(pairwise(edges)):
        parts = tuple(blocks[block] for block in np.sort(order[start:stop]))
        window = Window(lane, first, parts, combine_int(ROWS, seed, epoch, shard, number))
        yield window
        first += len(window)


def in_file_order(blocks: list[range]) -> Iterator[Window]:
    """Blocks one after the other, for evaluation."""
    first = 0
    for block in blocks:
        yield Window(0, first, (block,))
        first += len(block)
