"""How far the clocks of ranks differ, from messages to and fro (Cristian 1989)."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter

import numpy as np

from mpi_parallel.mpi.communicator import Communicator
from mpi_parallel.mpi.pulse import waiting

ROUNDS = 25  # to and fro; the quickest tells most


@waiting
def seconds_behind(comm: Communicator, now: Callable[[], float] = perf_counter) -> tuple[float, float]:
    """(what to add to this rank's `now` to get rank 0's, the most by which that may be wrong), in seconds.

    Rank 0 answers with its time, which is somewhere between question and answer: the middle is wrong by half of the
    way at the most. Rank 0 talks to one rank after the other. All ranks together.
    """
    if comm.rank == 0:
        for rank in range(1, comm.size):
            _answer(comm, rank, now)
        return 0.0, 0.0
    comm_, buffer = comm.comm, np.zeros(1, np.float64)
    comm_.Recv(buffer, 0)  # my turn: until here rank 0 has talked to others
    best = (0.0, float("inf"))
    for _ in range(ROUNDS):
        asked = now()
        comm_.Send(buffer, 0)
        comm_.Recv(buffer, 0)
        told, way = float(buffer[0]), now() - asked
        if way / 2 < best[1]:
            best = (told - (asked + way / 2), way / 2)
    return best


def _answer(comm: Communicator, rank: int, now: Callable[[], float]) -> None:
    """Rank 0's part."""
    buffer = np.zeros(1, np.float64)
    comm.comm.Send(buffer, rank)
    for _ in range(ROUNDS):
        comm.comm.Recv(buffer, rank)
        buffer[0] = now()
        comm.comm.Send(buffer, rank)
