"""What the maths and the messages need of a device: arrays, somewhere to put them, and kernels."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any, Protocol

from numpy.typing import NDArray

Array = NDArray[Any]  # of NumPy or of CuPy

# meet(tickets, rank, size, ticket, spins, yields): a barrier in shared memory, see kernels/openmp.c
Meet = Callable[[Array, int, int, int, int, int], bool]


class Kernels(Protocol):
    """The arithmetic beside matrix products. What each computes is written in expressions.py."""

    name: str

    @property
    def meet(self) -> Meet | None:
        """The barrier of processes that share memory; None where there are no compiled kernels."""

    def gather(self, images_NF: Array, index_B: Array, mean: Array, inverse_std: Array, x_BF: Array) -> None: ...

    def bias(self, y_BO: Array, b_O: Array, relu: bool) -> None: ...

    def relu_gradient(self, dy: Array, y: Array) -> None: ...

    def column_sums(self, a_BO: Array, sums_O: Array, add: bool) -> None: ...

    def dropout(self, x_BU: Array, keys_B: Array, layer: int, rate: float, y_BU: Array, first: int = 0) -> None: ...

    def cross_entropy(self, z_BK: Array, t_B: Array, sums: Array) -> None: ...

    def add_product(self, a_BI: Array, b_BO: Array, c_IO: Array) -> None: ...

    def sum_slots(self, out: Array, slots_SN: Array) -> None: ...

    def sgd(self, w: Array, g_SN: Array, scale: float, alpha: float, l2: float) -> None: ...

    def momentum(self, w: Array, v: Array, g_SN: Array, scale: float, alpha: float, mu: float, l2: float) -> None: ...

    def adam(
        self,
        w: Array,
        m: Array,
        v: Array,
        g_SN: Array,
        scale: float,
        alpha: float,
        beta1: float,
        beta2: float,
        epsilon: float,
        t: int,
        l2: float,
        decay: float,
    ) -> None: ...


class Device(Protocol):
    """Where arrays live and who computes with them."""

    kind: str  # "cpu" or "cuda"
    xp: ModuleType  # the array module: numpy or cupy
    kernels: Kernels

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
