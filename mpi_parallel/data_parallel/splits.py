"""Train, validation and test from one pile of rows: seeded, stratified, disjoint."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mpi_parallel.nn.hashing import combine, combine_int

SPLIT = 3  # what the seed is hashed for (see order.py)


def stratified(labels: NDArray[np.integer], shares: Sequence[float], seed: int) -> list[NDArray[np.int64]]:
    """For each share the rows (ascending) that it gets: its share of all rows to the nearest row, and of each class
    up to one.

    labels is (N,); shares sum to 1. Rows of a class are ranked by a hash of (seed, row), so the same labels and seed
    give
    the same split anywhere.
    """
    assert abs(sum(shares) - 1) < 1e-9
    rows = np.arange(len(labels), dtype=np.int64)
    by_class = np.lexsort((combine(np.array([combine_int(SPLIT, seed)], np.uint32), rows.astype(np.uint32)), labels))
    _, starts, counts = np.unique(labels[by_class], return_index=True, return_counts=True)
    # Merged by their quantile within their class, the classes are spread evenly over the order, wherever it is cut.
    quantile = (rows - np.repeat(starts, counts) + 0.5) / np.repeat(counts, counts)
    order = by_class[np.lexsort((labels[by_class], quantile))]
    edges = np.floor(np.cumsum(shares)[:-1] * len(labels) + 0.5).astype(np.int64)
    return [np.sort(part) for part in np.split(order, edges)]
