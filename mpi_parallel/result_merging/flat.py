"""The simplest merger, and the reference for all others: one Allreduce of everything."""

from __future__ import annotations

from mpi_parallel.mpi.communicator import Communicator
from mpi_parallel.nn.store import ParameterStore
from mpi_parallel.result_merging.merger import Merger
from mpi_parallel.result_merging.metrics import Totals
from mpi_parallel.result_merging.relay import Relay
from mpi_parallel.result_merging.wire import Wire


class Flat(Merger):
    """Every rank gets the whole sum and takes the whole optimizer step."""

    name = "flat"

    def __init__(self, store: ParameterStore, comm: Communicator, wire: str = "float32") -> None:
        """Gradients travel as numbers of the format `wire`, the tail in float32."""
        super().__init__(store, comm)
        self.wire = Wire(comm, store.size, wire)

    def relay(self) -> Relay | None:
        return Relay() if self.comm.size == 1 else None

    def merge(self) -> Totals:
        """Sum gradients and tail over the ranks."""
        store = self.store
        if self.wire.narrow:
            self.wire.sum(store.gradients)
            self.comm.sum(store.tail)
            store.flag_bad()  # what was too large for the format, on all ranks alike
        else:
            self.comm.sum(store.merged)
        return Totals.of(store.device.to_host(store.tail))
