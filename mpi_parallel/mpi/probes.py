"""Quick measurements of the messages between ranks: how long they take, and how far the ranks' clocks are apart."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
from mpi4py import MPI
from numpy.typing import NDArray

from mpi_parallel.mpi.communicator import Communicator

ROUNDS = 12  # the quickest of so many exchanges tells most about a clock
NOTHING = np.zeros(1, np.float64)


def clock_offsets(comm: Communicator, clock: Callable[[], float] = time.time) -> NDArray[np.float64]:
    """(size,) seconds by which each rank's clock is ahead of rank 0's, on every rank; collective.

    As Cristian (1989): the answer is taken to have been read in the middle of the quickest exchange, so an offset is
    wrong by at most half of the time that this took.
    """
    offsets = np.zeros(comm.size)
    for rank in range(1, comm.size):
        if comm.rank == 0:
            offsets[rank] = _offset_of(comm, rank, clock)
        elif comm.rank == rank:
            _answer(comm, clock)
    return comm.broadcast(offsets)


def _offset_of(comm: Communicator, rank: int, clock: Callable[[], float]) -> float:
    reading = np.zeros(1)
    best = (float("inf"), 0.0)
    for _ in range(ROUNDS):
        began = clock()
        comm.comm.Send(NOTHING, rank)
        comm.comm.Recv(reading, rank)
        ended = clock()
        best = min(best, (ended - began, float(reading[0]) - (began + ended) / 2))
    return best[1]


def _answer(comm: Communicator, clock: Callable[[], float]) -> None:
    for _ in range(ROUNDS):
        comm.comm.Recv(np.empty(1), 0)
        comm.comm.Send(np.array([clock()]), 0)


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
