"""What the maths and the messages need of the place where arrays live: memory, copies, order, graphs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from types import ModuleType
from typing import Any, Protocol

import numpy as np
from numpy.typing import DTypeLike, NDArray

from mpi_parallel.device.interface import Array, Kernels

Taken = tuple[NDArray[Any], NDArray[np.int32], NDArray[np.int64]]  # images, labels, and which of them in which order
BATCHES_AT_HAND = 3  # for which a landing has room: steps of two may be under way while the third is brought


class Landing(Protocol):
    """A ring of rows in the device's memory, always at the same addresses, which the host fills batch by batch."""

    images: Array  # (room, features)
    labels: Array  # (room,) int32
    room: int
    landed: int  # how many rows were brought; the n-th of all lies at n mod room

    def bring(self, count: int, taken: Iterable[Taken]) -> None:
        """Have these rows there, `count` in all, before any work that is started from now on.

        They are copied beside the work that was started before, of which they wait for that on the rows that they
        overwrite: started on them before the next ones were brought.
        """


class Collectives(Protocol):
    """Sums over the ranks, each on a chip of its own, as work of the devices: begun in order, and to be captured."""

    def sum(self, array: Array) -> None:
        """Replace the array by its sum over the ranks."""

    def sum_shares(self, array: Array, mine: Array) -> None:
        """Of size equal shares of the array this rank gets the sum of its own."""

    def gather_shares(self, array: Array) -> None:
        """Of size equal shares of the array all ranks get what each has in its own."""

    def close(self) -> None:
        """Take part no more; all ranks together, when nothing that was captured has any of this work."""


# Those of `size` ranks, which all call this with their rank and `agree`, which gives all of them the first one's bytes.
MakeCollectives = Callable[[int, int, Callable[[bytes], bytes]], Collectives]


class Device(Protocol):
    """Where arrays live and who computes with them."""

    kind: str  # "cpu" or "cuda"
    place: str  # which of the node's GPUs it is; "" for the node itself
    apart: int  # bytes of which the starts of weights are to be multiples
    measures: bool  # whether choices that change bits may hang on its clock
    lacks: str  # why it is not the GPU that `auto` looked for; "" where nothing hints at one
    xp: ModuleType  # the array module: numpy or cupy

    @property
    def kernels(self) -> Kernels:
        """The arithmetic."""

    def to_device(self, array: NDArray[Any]) -> Array:
        """The array in the device's memory; the same array where that is the host's."""

    def to_host(self, array: Array) -> NDArray[Any]:
        """The array in the host's memory, all work on it done; the same array where it is there already."""

    def refill(self, array: Array, values: NDArray[Any]) -> None:
        """Copy values that `to_host` gave back into the array; nothing to do where they are the same."""

    def landing(self, most: int, features: int, dtype: np.dtype[Any]) -> Landing:
        """Where rows land that are brought from the host, of which `most` at a time; not of the host itself."""

    def storage(self, precision: str) -> Any:
        """The dtype of arrays of numbers of this format (nn/precision.py).

        float32 where the device has no such arrays, which then hold float32 numbers that are rounded to the format.
        """

    def rounds(self, precision: str) -> bool:
        """Whether operands of this format are other numbers than the float32 ones that they are made of."""

    def empty_bytes(self, count: int) -> Array:
        """(count,) uint8 with arbitrary contents, from an address that is a multiple of host.ALIGNMENT."""

    def synchronize(self) -> None:
        """Wait for the work that was started."""

    @property
    def can_capture(self) -> bool:
        """Whether all that was done so far could be captured; known once it has been done."""

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """What does the same device work again on the same arrays, as one launch where the device can.

        `work` has been done once before, so that everything it needs is there: now it may launch, and nothing else. It
        must not allocate, copy to pageable memory or wait. What changes from time to time it reads from the device.
        """

    def time(self, replays: Sequence[Callable[[], None]]) -> list[float]:
        """Seconds that each of these takes, work of the device that may be done again and again."""

    def pinned(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """An array of zeros in the host's memory that the device copies to and from without a detour.

        Kernels that say so write to it as to their own memory. Raises InputError where there is too little.
        """

    def fetch(self, array: Array, pinned: NDArray[Any]) -> None:
        """Begin to copy the array there, behind the work that was started; may be captured."""

    def put(self, pinned: NDArray[Any], array: Array) -> None:
        """Begin to copy a pinned array to the device, behind the work that was started; may be captured."""

    def mark(self) -> Callable[[], None]:
        """What waits until all work that has been started by now is done, and for nothing later."""

    def register(self, memory: NDArray[Any]) -> Callable[[], None]:
        """Have memory of the host, such as a shared window, count as pinned until what is returned is called.

        Raises InputError where it cannot.
        """

    def chip(self) -> str:
        """A name that no other chip of this host has."""

    def collectives(self) -> MakeCollectives | str:
        """Who makes those of this device, or why it has none."""

    def describe(self) -> str:
        """One line for people: which chip, which library."""
