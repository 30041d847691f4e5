"""What device and host do in turn, so that a device can take its own part of a step all by itself.

    device    send  |            |  receive
    host            |  exchange  |

What the device does needs nothing from the host meanwhile: it can be captured, and replayed (training/captured.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from mpi_parallel.device.interface import Array
from mpi_parallel.device.places import Device

Work = Callable[[], None]
ALL = slice(None)


def nothing() -> None:
    """There is nothing to do."""


def in_turn(*works: Work) -> Work:
    """One after the other, as one."""

    def all_of_them() -> None:
        for work in works:
            work()

    return all_of_them


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
