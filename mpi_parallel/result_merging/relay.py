"""What a merger has the device and the host do in turn, so that a device can take its own part all by itself.

    device    send  |            |  receive
    host            |  exchange  |

What the device does needs nothing from the host meanwhile: it can be captured, and replayed (training/captured.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from mpi_parallel.device import Array, Device
from mpi_parallel.mpi.communicator import Communicator

Work = Callable[[], None]
ALL = slice(None)


def nothing() -> None:
    """There is nothing to do."""


class Relay(NamedTuple):
    """The device gives something away; the host exchanges it, if it has to; the device takes what came of it."""

    send: Work = nothing
    exchange: Work | None = None
    receive: Work = nothing

    def run(self, device: Device) -> None:
        """All of it. The host waits for the device before the exchange, and not behind it."""
        self.send()
        if self.exchange is not None:
            device.mark()()
            self.exchange()
        self.receive()


class Mirror:
    """`values`, memory of the host beside an array of a device; where that is the host, the array itself."""

    def __init__(self, device: Device, array: Array) -> None:
        """The array is contiguous."""
        self.device, self.array, self.there = device, array, device.kind != "cpu"
        self.values = device.pinned(array.shape, array.dtype) if self.there else array

    def fetch(self, part: slice = ALL) -> None:
        """Have the device bring what it has in this part."""
        if self.there:
            self.device.fetch(self.array[part], self.values[part])

    def put(self, part: slice = ALL) -> None:
        """Have the device take this part."""
        if self.there:
            self.device.put(self.values[part], self.array[part])


def shares_of(array: Array, owned: slice, device: Device, host: Communicator) -> Relay:
    """How all ranks of `host` get what each has in its share of the array, for which `owned` is this one's."""
    if host.size == 1:
        return Relay()
    mirror = Mirror(device, array)
    return Relay(lambda: mirror.fetch(owned), lambda: host.gather_shares(mirror.values), mirror.put)
