"""The simplest merger, and the reference for all others: one Allreduce of everything."""

from __future__ import annotations

import math
from collections.abc import Sequence

from mpi_parallel.mpi.communicator import Communicator
from mpi_parallel.nn.store import Parameter, ParameterStore
from mpi_parallel.result_merging.metrics import Totals


class Flat:
    """Every rank gets the whole sum and takes the whole optimizer step."""

    def __init__(self, store: ParameterStore, comm: Communicator) -> None:
        self.store, self.comm = store, comm
        self.owned = slice(0, store.size)

    def ready(self, parameters: Sequence[Parameter]) -> None:
        """Nothing to do before all gradients are complete."""

    def merge(self) -> Totals:
        """Sum gradients and tail over the ranks."""
        self.comm.sum(self.store.merged)
        return Totals.of(self.store.device.to_host(self.store.tail))

    def norm(self) -> float:
        """Euclidean norm of the summed gradient."""
        squares = self.store.device.xp.dot(self.store.gradients, self.store.gradients)
        return math.sqrt(float(squares))

    def publish(self) -> None:
        """Nothing to do: every rank took the same step."""
