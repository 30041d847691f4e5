"""Messages between two neighbours in a line of ranks, such as pipeline stages: begun early, awaited late."""

from __future__ import annotations

from typing import Any

import numpy as np
from mpi4py import MPI
from numpy.typing import NDArray

from mpi_parallel.device import Array
from mpi_parallel.mpi.communicator import Communicator
from mpi_parallel.mpi.messages import messages
from mpi_parallel.mpi.pulse import waiting

IN_FLIGHT = 2  # arrays on their way to a neighbour: one that it is about to take, and the next


class Link:
    """This rank's end of a connection to the rank `peer`. Arrays of one device arrive in the order sent."""

    def __init__(self, comm: Communicator, peer: int) -> None:
        self.comm, self.peer = comm, peer
        self._outbox = [Envelope() for _ in range(IN_FLIGHT)]
        self._sent = 0

    def send(self, array: Array) -> None:
        """Begin to send a copy of the array; waits only while too many are on their way."""
        envelope = self._outbox[self._sent % IN_FLIGHT]
        self._sent += 1
        envelope.wait()
        values = envelope.filled(_plain(self.comm.device.to_host(array)))
        envelope.requests = [self.comm.comm.Isend(part, self.peer) for part in messages(values)]

    def expect(self, array: Array) -> Expected:
        """Begin to receive into the array, which nobody may touch until `wait`."""
        return Expected(self, array)

    def settle(self) -> None:
        """Wait until all that was sent has left."""
        for envelope in self._outbox:
            envelope.wait()


class Envelope:
    """Memory of the host for one array on its way, used again and again."""

    def __init__(self) -> None:
        self._memory = np.empty(0, np.uint8)
        self.requests: list[MPI.Request] = []

    def filled(self, values: NDArray[Any]) -> NDArray[Any]:
        """A copy of the values."""
        if self._memory.nbytes < values.nbytes:
            self._memory = np.empty(values.nbytes, np.uint8)
        copy: NDArray[Any] = self._memory[: values.nbytes].view(values.dtype).reshape(values.shape)
        copy[...] = values
        return copy

    @waiting
    def wait(self) -> None:
        """Until what was sent from here has left."""
        MPI.Request.Waitall(self.requests)
        self.requests = []


class Expected:
    """An array that is on its way here."""

    def __init__(self, link: Link, array: Array) -> None:
        self._device, self._array = link.comm.device, array
        self._values = array if self._device.kind == "cpu" else np.empty(array.shape, array.dtype)
        self._requests = [link.comm.comm.Irecv(part, link.peer) for part in messages(_plain(self._values))]

    @waiting
    def wait(self) -> Array:
        """The array, when it has arrived."""
        MPI.Request.Waitall(self._requests)
        self._device.refill(self._array, self._values)
        return self._array


def _plain(values: NDArray[Any]) -> NDArray[Any]:
    """The same memory, of a type that MPI knows: of half precision it knows none."""
    return values.view(np.uint16) if values.dtype == np.float16 else values
