"""Train, validation and test from one pile of rows: seeded, stratified, disjoint."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mpi_parallel.device.hashing import combine, combine_int

SPLIT = 3  # what the seed is hashed for (see order.py)


def stratified(labels: NDArray[np.integer], shares: Sequence[float], seed: int) -> list[NDArray[np.int64]]:
    """For each share the rows (ascending) that it gets: its share of all rows, and of each class within two.

    labels is (N,); shares sum to 1. Rows of a class are ranked by a hash of (seed, row), so the same labels and seed
    give the same split anywhere.
    """
    assert abs(sum(shares) - 1) < 1e-9
    rows = np.arange(len(labels), dtype=np.int64)
    by_class = np.lexsort((combine(np.array([combine_int(SPLIT, seed)], np.uint32), rows.astype(np.uint32)), labels))
    _, starts, counts = np.unique(labels[by_class], return_index=True, return_counts=True)
    ends = [counts]  # how many rows of each class lie before the end of each part; the last part ends with all of them
    for edge in reversed(np.floor(np.cumsum(shares)[:-1] * len(labels) + 0.5).astype(np.int64)):
        ends.insert(0, _apportion(ends[0], edge))
    place = rows - np.repeat(starts, counts)
    part = sum((place >= np.repeat(end, counts) for end in ends[:-1]), start=np.zeros_like(rows))
    return [np.sort(by_class[part == number]) for number in range(len(shares))]


def _apportion(counts: NDArray[np.int64], total: np.int64) -> NDArray[np.int64]:
    """Each count's part of the total: rounded down, then one more where rounding took most (Hamilton's method)."""
    whole, lost = np.divmod(counts * total, max(1, counts.sum()))
    whole[np.argsort(-lost, kind="stable")[: total - whole.sum()]] += 1
    return whole
