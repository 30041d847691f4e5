"""Arrays and where they live: the only room that may import cupy.

`Array` stands for a NumPy or a CuPy array; a `Device` holds the array module that made it.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any, Protocol

from numpy.typing import NDArray

from mpi_parallel.device.host import Host
from mpi_parallel.options import InputError

Array = NDArray[Any]


class Device(Protocol):
    """What the maths and the messages need of a device."""

    kind: str  # "cpu" or "cuda"
    xp: ModuleType  # the array module: numpy or cupy

    def to_device(self, array: NDArray[Any]) -> Array:
        """The array in the device's memory; the same array where that is the host's."""

    def to_host(self, array: Array) -> NDArray[Any]:
        """The array in the host's memory, all work on it done; the same array where it is there already."""

    def refill(self, array: Array, values: NDArray[Any]) -> None:
        """Copy values that `to_host` gave back into the array; nothing to do where they are the same."""

    def empty_bytes(self, count: int) -> Array:
        """(count,) uint8 with arbitrary contents, from an address that is a multiple of host.ALIGNMENT."""

    def synchronize(self) -> None:
        """Wait for the work that was started."""

    def describe(self) -> str:
        """One line for people: which chip, which library."""


def open_device(kind: str, node_rank: int) -> Device:
    """The device that `--device` asks for; `node_rank` (this rank's number on its node) picks among several GPUs.

    `auto` takes a GPU where CuPy and a GPU are there. Raises InputError when cuda is asked for and is not there.
    """
    if kind == "cpu":
        return Host()
    from mpi_parallel.device import cuda  # here, because only runs that may use a GPU should load cupy

    try:
        return cuda.Cuda(node_rank)
    except cuda.NoGPU as error:
        if kind == "auto":
            return Host()
        raise InputError(f"--device cuda: {error}") from None


__all__ = ["Array", "Device", "Host", "open_device"]
