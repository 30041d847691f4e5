"""Optimizer shares (ZeRO stage 1, Rajbhandari et al. 2020): each rank gets the sum of its slice and updates that."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from mpi_parallel.mpi.communicator import Communicator
from mpi_parallel.nn.store import ParameterStore
from mpi_parallel.result_merging.merger import Merger
from mpi_parallel.result_merging.metrics import Totals


class Sharded(Merger):
    """Reduce-scatter of gradients, all-gather of weights: the work and the state of the update are divided."""

    name = "sharded"

    def __init__(self, store: ParameterStore, comm: Communicator) -> None:
        super().__init__(store, comm)
        self.owned = comm.share(store.size)
        self._mine = np.empty(self.owned.stop - self.owned.start, np.float32)  # where MPI puts my slice of the sum

    def merge(self) -> Totals:
        """Sum my slice of the gradients, and the tail, over the ranks."""
        tail = self.comm.begin_sum(self.store.tail)
        self.comm.sum_shares(self.store.gradients, self._mine)
        tail.wait()
        return Totals.of(self.store.device.to_host(self.store.tail))

    def norm(self) -> float:
        """From the squares of all slices."""
        return math.sqrt(self.comm.total(self._squares(self.owned)))

    def total(self, sums: NDArray[np.float64]) -> None:
        """Over all ranks, also when one owns the whole of a tiny store."""
        self.comm.on_host().sum(sums)

    def publish(self) -> None:
        """Every rank gets the slices that the others have updated."""
        self.comm.gather_shares(self.store.weights)
