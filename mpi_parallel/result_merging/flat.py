"""The simplest merger, and the reference for all others: one Allreduce of everything."""

from __future__ import annotations

from mpi_parallel.mpi.communicator import Communicator
from mpi_parallel.nn.store import ParameterStore
from mpi_parallel.result_merging.merger import Merger
from mpi_parallel.result_merging.metrics import Totals


class Flat(Merger):
    """Every rank gets the whole sum and takes the whole optimizer step."""

    name = "flat"

    def __init__(self, store: ParameterStore, comm: Communicator) -> None:
        super().__init__(store, comm)
        self.relays = comm.size == 1

    def merge(self) -> Totals:
        """Sum gradients and tail over the ranks."""
        self.comm.sum(self.store.merged)
        return Totals.of(self.store.device.to_host(self.store.tail))
