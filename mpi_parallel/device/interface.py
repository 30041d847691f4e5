"""What the maths need of a device: arrays, the kernels that compute with them, and the pace of steps."""

from __future__ import annotations

from collections.abc import Callable, Container
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]  # of NumPy or of CuPy

# meet(tickets, rank, size, ticket, spins, yields): a barrier in shared memory, see kernels/openmp.c
Meet = Callable[[Array, int, int, int, int, int], bool]

Work = Callable[[], None]

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


class Raw(NamedTuple):
    """Rows as a rank holds them, and how they become what a network takes: (image - mean) * inverse_std."""

    images: Array  # (N, F), of the file's type
    labels: Array  # (N,) int32
    mean: Array  # (1,) or (F,) float32
    inverse_std: Array  # as mean


class SmallNetwork(NamedTuple):
    """A multilayer perceptron of float32 numbers, as `Kernels.small_pass` is told it."""

    widths: tuple[int, ...]  # features, hidden widths, classes
    starts: tuple[tuple[int, int], ...]  # where W and b of each layer stand in the weights, and in the gradients
    dropout: float  # behind each hidden layer


class Kernels(Protocol):
    """The arithmetic beside matrix products. What each computes is written in expressions.py."""

    name: str
    file_types: Container[Any] | None  # dtypes of images that are gathered; None: all
    rules_narrow: bool  # whether sgd, momentum and adam also keep the weights as operands, in `factors`

    @property
    def recorded(self) -> Callable[[Work], Work] | None:
        """What makes the calls of compiled kernels that work would make, again and again; None where there are none.

        Whatever else the work does is done once, with arrays in which nothing was computed, and is not repeated.
        """

    @property
    def meet(self) -> Meet | None:
        """The barrier of processes that share memory; None where there are no compiled kernels."""

    def gather(self, raw: Raw, index_B: Array, x_BF: Array, t_B: Array) -> None: ...

    def gather_augmented(
        self, raw: Raw, index_B: Array, keys_B: Array, how: Augmentation, x_BF: Array, t_B: Array
    ) -> None: ...

    def pick(self, labels_N: Array, index_B: Array, t_B: Array) -> None: ...

    def permute(
        self, image: NDArray[np.int64], first: int, n: int, keys: NDArray[np.uint32], starts: NDArray[np.int64]
    ) -> None: ...

    def name_positions(
        self, keys: NDArray[np.uint32], first: int, of: int, shards: NDArray[np.int64], salt: int
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

    def small_numbers(self, network: SmallNetwork, rows: int) -> int: ...

    def small_pass(
        self, network: SmallNetwork, x_BF: Array, keys_B: Array, t_B: Array, weights: Array, merged: Array, room: Array
    ) -> None: ...

    def squares(self, a: Array, out: Array) -> None: ...

    def check(self, a: Array, bad: Array) -> None: ...

    def finish(self, gradients: Array, bad: Array, count: Array, rows: int) -> None: ...

    def deal(
        self, index_N: Array, keys_N: Array, cursor: Array, index_B: Array, keys_B: Array, tail: Array
    ) -> None: ...

    def advance(self, pace: Array, tail: Array, squares: Array | None, schedule: Schedule, told: Array) -> None: ...

    def sum_slots(self, out: Array, slots_SN: Array) -> None: ...

    def sgd(self, w: Array, g_SN: Array, pace: Pace | Array, l2: float, factors: Array | None = None) -> None: ...

    def momentum(
        self, w: Array, v: Array, g_SN: Array, pace: Pace | Array, mu: float, l2: float, factors: Array | None = None
    ) -> None: ...

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
        factors: Array | None = None,
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
