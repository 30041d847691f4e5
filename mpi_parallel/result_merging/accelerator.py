"""Mergers for GPUs: NCCL between distinct ones, a pinned window of the host between those that share, MPI where it can.

Those of NCCL are work on the GPUs' streams like any other, so a step with one of them is captured in one piece. MPI is
given addresses of a GPU's memory only after a process of its own has tried that and lived, and only by blocking calls.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import numpy as np

from mpi_parallel.device import Array
from mpi_parallel.device.relay import Relay
from mpi_parallel.mpi.communicator import Communicator
from mpi_parallel.mpi.cuda_probe import probe
from mpi_parallel.nn.store import TAIL, ParameterStore
from mpi_parallel.options import InputError
from mpi_parallel.result_merging.chips import open_collectives
from mpi_parallel.result_merging.exact_nccl import ExactNccl
from mpi_parallel.result_merging.flat import Flat
from mpi_parallel.result_merging.merger import Merger
from mpi_parallel.result_merging.metrics import Totals
from mpi_parallel.result_merging.pinned import Pinned


class Nccl(Merger):
    """The GPUs sum everything among themselves."""

    name = "nccl"

    def __init__(self, store: ParameterStore, comm: Communicator) -> None:
        """Raises InputError, on all ranks alike, where the ranks have no GPU each or no NCCL."""
        super().__init__(store, comm)
        self.gpus = open_collectives(store, comm, self.name)

    def merge(self) -> Totals:
        self._sum()
        return Totals.of(self.store.device.to_host(self.store.tail))

    def relay(self) -> Relay:
        return Relay(self._sum)

    def close(self) -> None:
        self.gpus.close()

    def _sum(self) -> None:
        self.gpus.sum(self.store.merged)


class NcclSharded(Nccl):
    """As Sharded, by the GPUs: reduce-scatter of gradients, a share of the step each, all-gather of weights."""

    name = "sharded"
    divides = True

    def __init__(self, store: ParameterStore, comm: Communicator) -> None:
        """Moves the store into arrays that have room for equal shares."""
        super().__init__(store, comm)
        xp, share = store.device.xp, -(-store.size // comm.size)
        self.padded = share * comm.size
        weights: Array = xp.zeros(self.padded, np.float32)
        merged: Array = xp.zeros(max(self.padded, store.size + TAIL), np.float32)
        weights[: store.size], merged[: store.size + TAIL] = store.weights, store.merged
        store.move(weights[: store.size], merged[: store.size + TAIL])
        self._weights, self._merged, self._share = weights, merged, xp.zeros(share, np.float32)
        start = min(comm.rank * share, store.size)
        self.owned = slice(start, min(start + share, store.size))

    def _sum(self) -> None:
        """My share of the gradients, in its place, and everyone's tail; what the shares hold beyond counts nowhere."""
        self.gpus.sum_shares(self._merged[: self.padded], self._share)
        self.store.gradients[self.owned] = self._share[: self.owned.stop - self.owned.start]
        self.gpus.sum(self.store.tail)

    def norm(self) -> float:
        return math.sqrt(self.comm.total(self._squares(self.owned)))

    def relay_squares(self, squares: Array) -> Relay:
        return super().relay_squares(squares)._replace(receive=lambda: self.gpus.sum(squares))

    def publish(self) -> None:
        self.gpus.gather_shares(self._weights)


class Aware(Merger):
    """MPI itself reads and writes the GPUs' memory."""

    name = "aware"

    def __init__(self, store: ParameterStore, comm: Communicator) -> None:
        """Raises InputError, on all ranks alike, where a trial message between arrays of a GPU does not arrive."""
        super().__init__(store, comm)
        if store.device.kind == "cpu":
            raise InputError("--merge aware is for GPUs, and the device is cpu: choose --merge auto")
        found = probe()  # on every rank: nodes may have MPIs of their own
        told = next(filter(None, comm.gather_text("" if found.aware else found.why)), "")
        if told:
            raise InputError(f"--merge aware needs an MPI that takes arrays of a GPU: {told}; choose --merge auto")

    def merge(self) -> Totals:
        self.relay().run(self.store.device)
        return Totals.of(self.store.device.to_host(self.store.tail))

    def relay(self) -> Relay:
        return Relay(exchange=self._exchange)

    def _exchange(self) -> None:
        """One blocking Allreduce; the device has nothing else to do meanwhile."""
        self.comm.sum_there(self.store.merged)


ACCELERATED: dict[str, type[Merger]] = {"nccl": Nccl, "pinned": Pinned, "aware": Aware}


def open_accelerated(name: str, store: ParameterStore, comm: Communicator, groups: int | None = None) -> Merger | None:
    """The merger of a GPU for this name, of which `auto` takes the best that can serve; None where another must.

    NCCL where each rank has a GPU; else the pinned window, which on one node beats MPI that knows of GPUs, as it copies
    once; with one rank a node there is no other rank to share a window with, and MPI is asked whether it knows. Where
    rows come in `groups` it is NCCL or none of these.
    """
    if groups is not None:
        serves = store.device.kind != "cpu" and comm.size > 1 and name in ("auto", "exact")
        return _first(store, comm, partial(ExactNccl, groups=groups)) if serves else None
    if name in ACCELERATED:
        return ACCELERATED[name](store, comm)
    if store.device.kind == "cpu" or comm.size == 1 or name not in ("auto", "sharded"):
        return None
    if name == "sharded":
        return _first(store, comm, NcclSharded)
    node = comm.node()
    alone = comm.maximum(node.size) == 1
    node.free()
    return _first(store, comm, Nccl, *((Aware, Pinned) if alone else (Pinned,)), Flat)


def _first(
    store: ParameterStore, comm: Communicator, *candidates: Callable[[ParameterStore, Communicator], Merger]
) -> Merger | None:
    for candidate in candidates:
        try:
            return candidate(store, comm)
        except InputError:  # on all ranks alike
            continue
    return None
