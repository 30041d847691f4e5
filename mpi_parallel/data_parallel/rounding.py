"""Whether numbers that were text may be kept as float32: the whole of a file can tell, and no part of it.

A feature that is the same in a thousand rows may be another in the next thousand, by less than float32 can tell.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpi_parallel.mpi.communicator import Communicator

LEAST = 5e-7  # of a feature's range: rounding by less moves its deviation by less than 1e-6, even if it has two values


class Rounding:
    """What rounding to float32 does to each feature: maxima alone, so the ranks make no difference."""

    def __init__(self, features: int) -> None:
        self._seen = np.full((3, features), -np.inf)  # the largest value, the smallest one negated, the largest error

    def see(self, rows: NDArray[Any]) -> None:
        """Rows (n, features), of any type."""
        if not len(rows):
            return
        seen = np.zeros_like(self._seen)
        seen[0], seen[1] = rows.max(axis=0), -rows.min(axis=0).astype(np.float64)
        if not np.can_cast(rows.dtype, np.float32):  # pixels are not to be slowed down
            with np.errstate(over="ignore"):
                seen[2] = np.abs(rows.astype(np.float32) - rows).max(axis=0)
        np.maximum(self._seen, seen, out=self._seen)

    def harmless(self, comm: Communicator) -> bool:
        """Whether it leaves what tells all ranks' rows apart; of a constant feature that is nothing. Collective."""
        comm.largest(self._seen)
        high, low, error = self._seen
        with np.errstate(over="ignore"):
            spread = high + low
        return bool(((error < np.inf) & ((error <= LEAST * spread) | (spread == 0))).all())
