"""The simplest merger, and the reference for all others: one Allreduce of everything."""

from __future__ import annotations

from mpi_parallel.device.relay import Mirror, Relay
from mpi_parallel.mpi.communicator import Communicator
from mpi_parallel.nn.store import ParameterStore
from mpi_parallel.result_merging.merger import Merger
from mpi_parallel.result_merging.metrics import Totals
from mpi_parallel.result_merging.wire import Wire


class Flat(Merger):
    """Every rank gets the whole sum and takes the whole optimizer step."""

    name = "flat"

    def __init__(self, store: ParameterStore, comm: Communicator, wire: str = "float32") -> None:
        """Gradients travel as numbers of the format `wire`, the tail in float32."""
        super().__init__(store, comm)
        self.host, self.wire = comm.on_host(), Wire(comm.on_host(), store.size, wire)
        self._merged = Mirror(store.device, store.merged) if comm.size > 1 else None

    def relay(self) -> Relay:
        if self._merged is None:
            return Relay()
        return Relay(self._merged.fetch, self._sum, self._take)

    def merge(self) -> Totals:
        """Sum gradients and tail over the ranks."""
        self.relay().run(self.store.device)
        return Totals.of(self.store.device.to_host(self.store.tail))

    def _sum(self) -> None:
        assert self._merged is not None
        values, size = self._merged.values, self.store.size
        if self.wire.narrow:
            self.wire.sum(values[:size])
            self.host.sum(values[size:])
        else:
            self.host.sum(values)

    def _take(self) -> None:
        assert self._merged is not None
        self._merged.put()
        if self.wire.narrow:
            self.store.flag_bad()  # what was too large for the format, on all ranks alike
