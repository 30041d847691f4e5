"""Quick measurements of the messages between ranks."""

from __future__ import annotations

import time

import numpy as np
from mpi4py import MPI
from numpy.typing import NDArray

from mpi_parallel.mpi.communicator import Communicator


def ping_pong(comm: Communicator, partner: int, nbytes: int, rounds: int) -> float:
    """Seconds of a message of so many bytes one way between rank 0 and `partner`, on every rank; collective.

    The shortest of the rounds: others met something else that ran here.
    """
    data, times = np.zeros(nbytes, np.uint8), [0.0]
    comm.meet()
    if comm.rank in (0, partner):
        first, other = comm.rank == 0, partner if comm.rank == 0 else 0
        times = [_exchange(comm.comm, data, first, other) for _ in range(rounds)]
    return float(comm.broadcast(np.array([min(times[len(times) > 3 :]) / 2]))[0])


def _exchange(comm: MPI.Intracomm, data: NDArray[np.uint8], first: bool, other: int) -> float:
    began = time.perf_counter()
    for sends in (first, not first):
        if sends:
            comm.Send(data, other)
        else:
            comm.Recv(data, other)
    return time.perf_counter() - began
