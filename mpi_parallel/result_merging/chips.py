"""Collectives of the ranks' GPUs, where each rank has one of its own, and NCCL."""

from __future__ import annotations

import platform

import numpy as np

from mpi_parallel.device.places import Collectives, MakeCollectives
from mpi_parallel.mpi.communicator import Communicator
from mpi_parallel.nn.store import ParameterStore
from mpi_parallel.options import InputError


def open_collectives(store: ParameterStore, comm: Communicator, name: str) -> Collectives:
    """Those of `comm`, for --merge `name`. Raises InputError, on all ranks alike, where they are not to be had."""
    make, host = _check_chips(store, comm, name), comm.on_host()

    def agree(mine: bytes) -> bytes:
        return host.broadcast(np.frombuffer(mine, np.uint8) if comm.rank == 0 else None).tobytes()

    return make(comm.size, comm.rank, agree)


def _check_chips(store: ParameterStore, comm: Communicator, name: str) -> MakeCollectives:
    """Who makes the collectives, once it is clear that all ranks have NCCL, and each a GPU of its own."""
    device = store.device
    make = device.collectives()
    complaints = comm.gather_text(make if isinstance(make, str) else "")
    chips = comm.gather_text(f"{platform.node()} {device.chip()}")
    for rank, complaint in enumerate(complaints):
        if complaint:
            raise InputError(f"--merge {name} needs NCCL, and rank {rank} has none: {complaint}; choose --merge auto")
    for rank, chip in enumerate(chips):
        if (first := chips.index(chip)) < rank:
            raise InputError(
                f"--merge {name} needs a GPU for each rank, and ranks {first} and {rank} share {chip}: choose --merge "
                f"auto, or as many ranks as GPUs"
            )
    assert not isinstance(make, str)
    return make
