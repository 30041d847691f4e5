"""What the maths and the messages need of a device: arrays, somewhere to put them, and kernels."""

from __future__ import annotations

from collections.abc import Callable, Container
from types import ModuleType
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import DTypeLike, NDArray

Array = NDArray[Any]  # of NumPy or of CuPy

# meet(tickets, rank, size, ticket, spins, yields): a barrier in shared memory, see kernels/openmp.c
Meet = Callable[[Array, int, int, int, int, int], bool]

# What a pace array (PACE,) float64 in the device's memory holds, so that a captured step needs nothing from the host:
# the factor of the summed gradient (NaN: leave the weights alone), the learning rate, Adam's two bias corrections, the
# factor of the loss, steps in a row that were finite, steps taken, steps that were begun, and whether one went bad that
# the factor does not explain: then the device holds, and begins none, until the host has looked into it.
SCALE, RATE, CORRECTION, ROOT, LOSS_SCALE, GOOD, TAKEN, BEGUN, HELD = range(9)
PACE = 9


class Pace(NamedTuple):
    """What an update rule is told: the factor of the summed gradient, the learning rate, the number of the step."""

    scale: float
    alpha: float
    t: int = 1  # the first is 1


class Schedule(NamedTuple):
    """What `Kernels.advance` makes a pace array of; see nn/learning_rate.py for the rate."""

    base: float
    cosine: bool
    warmup: int
    total: int
    clip: float = 0.0  # largest norm of the mean gradient; 0 leaves it alone
    beta1: float = 0.9
    beta2: float = 0.999
    growth: int = 0  # finite steps after which the factor of the loss doubles; 0 keeps it at what it is


class Augmentation(NamedTuple):
    """How training images are changed by the keys of their rows; device/augmentation.py says what comes of it."""

    height: int
    width: int
    channels: int
    shift: int = 0  # pixels each way, fewer than there are
    flip: bool = False  # mirror every other image
    erase: float = 0.0  # the share of images that lose a rectangle


class Kernels(Protocol):
    """The arithmetic beside matrix products. What each computes is written in expressions.py."""

    name: str
    file_types: Container[Any] | None  # dtypes of images that are gathered as they are, without an array; None: all

    @property
    def meet(self) -> Meet | None:
        """The barrier of processes that share memory; None where there are no compiled kernels."""

    def gather(self, images_NF: Array, index_B: Array, mean: Array, inverse_std: Array, x_BF: Array) -> None: ...

    def gather_labelled(
        self,
        images_NF: Array,
        labels_N: Array,
        index_B: Array,
        mean: Array,
        inverse_std: Array,
        x_BF: Array,
        t_B: Array,
    ) -> None: ...

    def gather_augmented(
        self,
        images_NF: Array,
        labels_N: Array,
        index_B: Array,
        keys_B: Array,
        how: Augmentation,
        mean: Array,
        inverse_std: Array,
        x_BF: Array,
        t_B: Array,
    ) -> None: ...

    def pick(self, labels_N: Array, index_B: Array, t_B: Array) -> None: ...

    def permute(
        self, image: NDArray[np.int64], first: int, n: int, keys: NDArray[np.uint32], starts: NDArray[np.int64]
    ) -> None: ...

    def bias(self, y_BO: Array, b_O: Array, relu: bool) -> None: ...

    def relu_gradient(self, dy: Array, y: Array) -> None: ...

    def column_sums(self, a_BO: Array, sums_O: Array, add: bool) -> None: ...

    def narrow(self, a: Array, out: Array, precision: str) -> None: ...

    def pack(self, a: NDArray[np.float32], out: NDArray[np.uint16], precision: str) -> None: ...

    def unpack(self, a: NDArray[np.uint16], out: NDArray[np.float32], precision: str) -> None: ...

    def dropout(self, x_BU: Array, keys_B: Array, layer: int, rate: float, y_BU: Array, first: int = 0) -> None: ...

    def cross_entropy(self, z_BK: Array, t_B: Array, sums: Array) -> None: ...

    def linear(
        self, x_BI: Array, W_IO: Array, b_O: Array | None, y_BO: Array, relu: bool, mask: Array | None = None
    ) -> None: ...

    def mask_bytes(self, width: int) -> int: ...

    def input_gradient(
        self, dy_BO: Array, W_IO: Array, dx_BI: Array, x_BI: Array | None = None, mask: Array | None = None
    ) -> None: ...

    def weight_gradient(self, x_BI: Array, dy_BO: Array, dW_IO: Array, db_O: Array | None, add: bool) -> None: ...

    def squares(self, a: Array, out: Array) -> None: ...

    def check(self, a: Array, bad: Array) -> None: ...

    def deal(self, index_N: Array, keys_N: Array, cursor: Array, index_B: Array, keys_B: Array) -> None: ...

    def advance(self, pace: Array, tail: Array, squares: Array | None, schedule: Schedule, told: Array) -> None: ...

    def sum_slots(self, out: Array, slots_SN: Array) -> None: ...

    def sgd(self, w: Array, g_SN: Array, pace: Pace | Array, l2: float) -> None: ...

    def momentum(self, w: Array, v: Array, g_SN: Array, pace: Pace | Array, mu: float, l2: float) -> None: ...

    def adam(
        self,
        w: Array,
        m: Array,
        v: Array,
        g_SN: Array,
        pace: Pace | Array,
        beta1: float,
        beta2: float,
        epsilon: float,
        l2: float,
        decay: float,
    ) -> None: ...

    def lamb(
        self,
        r: Array,
        w: Array,
        m: Array,
        v: Array,
        g_SN: Array,
        pace: Pace | Array,
        beta1: float,
        beta2: float,
        epsilon: float,
        decay: float,
    ) -> None: ...

    def trust(self, w: Array, r: Array, squares_2: Array, pace: Pace | Array) -> None: ...


class Collectives(Protocol):
    """Sums over the ranks, each on a chip of its own, as work of the devices: begun in order, and to be captured."""

    def sum(self, array: Array) -> None:
        """Replace the array by its sum over the ranks."""

    def sum_shares(self, array: Array, mine: Array) -> None:
        """Of size equal shares of the array this rank gets the sum of its own."""

    def gather_shares(self, array: Array) -> None:
        """Of size equal shares of the array all ranks get what each has in its own."""


# Those of `size` ranks, which all call this with their rank and `agree`, which gives all of them the first one's bytes.
MakeCollectives = Callable[[int, int, Callable[[bytes], bytes]], Collectives]


class Device(Protocol):
    """Where arrays live and who computes with them."""

    kind: str  # "cpu" or "cuda"
    place: str  # which of the node's GPUs it is; "" for the node itself
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

    def upload(self, rows: NDArray[Any], chosen: NDArray[Any]) -> Array:
        """rows[chosen] in the device's memory, while it works on what was before; it serves until two more were."""

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

    def pinned(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """An array of zeros in the host's memory that the device copies to and from without a detour.

        Kernels that say so write to it as to their own memory.
        """

    def fetch(self, array: Array, pinned: NDArray[Any]) -> None:
        """Begin to copy the array there, behind the work that was started; may be captured."""

    def put(self, pinned: NDArray[Any], array: Array) -> None:
        """Begin to copy a pinned array to the device, behind the work that was started; may be captured."""

    def mark(self) -> Callable[[], None]:
        """What waits until all work that has been started by now is done, and for nothing later."""

    def register(self, memory: NDArray[Any]) -> Callable[[], None]:
        """Have memory of the host, such as a shared window, count as pinned until what is returned is called."""

    def chip(self) -> str:
        """A name that no other chip of this host has."""

    def collectives(self) -> MakeCollectives | str:
        """Who makes those of this device, or why it has none."""

    def describe(self) -> str:
        """One line for people: which chip, which library."""
