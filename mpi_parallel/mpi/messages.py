"""Arrays as messages: cut where they are too long for one, rows as one element each, and sums under way."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

from mpi4py import MPI

from mpi_parallel.device import Array, Device
from mpi_parallel.mpi.pulse import waiting

MOST = 1 << 30  # bytes of a message: beyond 2^31 some libraries and some networks fail


def at_once(values: Array) -> bool:
    """Whether an array fits into one message."""
    return bool(values.nbytes <= MOST)


def messages(values: Array) -> Iterator[Array]:
    """The elements of a contiguous array in views of at most MOST bytes."""
    assert values.flags.c_contiguous, "only contiguous arrays can be sent in place"
    if at_once(values):
        yield values
        return
    flat, most = values.reshape(-1), max(1, MOST // values.itemsize)
    for begin in range(0, flat.size, most):
        yield flat[begin : begin + most]


@cache
def row_type(size: int) -> MPI.Datatype:
    """So many bytes as one: MPICH's Allgatherv cuts rows of numbers in pieces, and takes 1.5 to 2 times as long."""
    return MPI.BYTE.Create_contiguous(size).Commit()


class PendingSum:
    """A sum over the ranks that is under way."""

    def __init__(self, comm: MPI.Intracomm, device: Device, array: Array) -> None:
        self._device, self._array = device, array
        self._requests: list[MPI.Request] = []
        if comm.size > 1:
            self._values = device.to_host(array)
            self._requests = [comm.Iallreduce(MPI.IN_PLACE, part) for part in messages(self._values)]

    def done(self) -> bool:
        """Whether nothing is left to wait for; MPI works on the sum meanwhile."""
        return MPI.Request.Testall(self._requests)

    @waiting
    def wait(self) -> None:
        """The array holds the sum when this returns."""
        if self._requests:
            MPI.Request.Waitall(self._requests)
            self._device.refill(self._array, self._values)
            self._requests = []
