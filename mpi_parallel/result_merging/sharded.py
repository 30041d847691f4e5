"""Optimizer shares (ZeRO stage 1, Rajbhandari et al. 2020): each rank gets the sum of its slice and updates that."""

from __future__ import annotations

import math

import numpy as np

from mpi_parallel.device import Array, Device
from mpi_parallel.device.relay import Mirror, Relay
from mpi_parallel.mpi.communicator import Communicator
from mpi_parallel.nn.store import ParameterStore
from mpi_parallel.result_merging.merger import Merger
from mpi_parallel.result_merging.metrics import Totals


class Sharded(Merger):
    """Reduce-scatter of gradients, all-gather of weights: the work and the state of the update are divided."""

    name = "sharded"

    def __init__(self, store: ParameterStore, comm: Communicator) -> None:
        super().__init__(store, comm)
        self.owned, self.divides, self.host = comm.share(store.size), comm.size > 1, comm.on_host()
        self._mine = np.empty(self.owned.stop - self.owned.start, np.float32)  # where MPI puts my slice of the sum
        self._merged, self._tail = Mirror(store.device, store.merged), slice(store.size, len(store.merged))
        self._weights = shares_of(store.weights, self.owned, store.device, self.host)

    def merge(self) -> Totals:
        """Sum my slice of the gradients, and the tail, over the ranks."""
        self.relay().run(self.store.device)
        return Totals.of(self.store.device.to_host(self.store.tail))

    def relay(self) -> Relay:
        return Relay(self._merged.fetch, self._sum, self._take)

    def relay_squares(self, squares: Array) -> Relay:
        everyones = Mirror(self.store.device, squares)

        def square() -> None:
            self.store.device.kernels.squares(self.store.gradients[self.owned], squares[:1])
            everyones.fetch()

        return Relay(square, lambda: self.host.sum(everyones.values), everyones.put)

    def relay_weights(self) -> Relay:
        return self._weights

    def norm(self) -> float:
        """From the squares of all slices."""
        return math.sqrt(self.comm.total(self._squares(self.owned)))

    def publish(self) -> None:
        """Every rank gets the slices that the others have updated."""
        self._weights.run(self.store.device)

    def _sum(self) -> None:
        values = self._merged.values
        tail = self.host.begin_sum(values[self._tail])
        self.host.sum_shares(values[: self.store.size], self._mine)
        tail.wait()

    def _take(self) -> None:
        self._merged.put(self.owned)
        self._merged.put(self._tail)


def shares_of(array: Array, owned: slice, device: Device, host: Communicator) -> Relay:
    """How all ranks of `host` get what each has in its share of the array, for which `owned` is this one's."""
    if host.size == 1:
        return Relay()
    mirror = Mirror(device, array)
    return Relay(lambda: mirror.fetch(owned), lambda: host.gather_shares(mirror.values), mirror.put)
