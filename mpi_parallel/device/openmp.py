"""The compiled kernels of kernels/openmp.c, called through ctypes, which lets other Python threads run meanwhile."""

from __future__ import annotations

import ctypes
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from mpi_parallel.device.blas import find_add_product
from mpi_parallel.device.expressions import Expressions, steady, threshold
from mpi_parallel.device.interface import Array, Pace

POINTER, LONG, INT, FLOAT = ctypes.c_void_p, ctypes.c_long, ctypes.c_int, ctypes.c_float
SLOTS = [POINTER, LONG, INT]  # the first, the distance to the next in elements, how many
LIBRARY = Path(__file__).parent / f"_kernels{sysconfig.get_config_var('EXT_SUFFIX')}"
GATHERS = {np.dtype(np.uint8): "gather_u8", np.dtype(np.uint16): "gather_u16", np.dtype(np.float32): "gather_f32"}
NARROWINGS = {"bfloat16": "to_bfloat16", "float16": "to_float16", "tf32": "to_tf32"}
SIGNATURES: dict[str, list[Any]] = {
    **{name: [POINTER, POINTER, LONG, LONG, POINTER, POINTER, INT, POINTER] for name in GATHERS.values()},
    "bias": [POINTER, POINTER, LONG, LONG, INT],
    "relu_gradient": [POINTER, POINTER, LONG],
    "column_sums": [POINTER, POINTER, LONG, LONG, INT],
    **{name: [POINTER, POINTER, LONG] for name in NARROWINGS.values()},
    "cross_entropy": [POINTER, POINTER, POINTER, POINTER, POINTER, LONG, LONG, POINTER],
    "dropout": [POINTER, POINTER, POINTER, LONG, LONG, ctypes.c_uint32, ctypes.c_uint32, FLOAT, ctypes.c_uint32],
    "sum_slots": [POINTER, *SLOTS, LONG],
    "sgd": [POINTER, *SLOTS, LONG, *[FLOAT] * 3],
    "momentum": [POINTER, POINTER, *SLOTS, LONG, *[FLOAT] * 4],
    "adam": [POINTER, POINTER, POINTER, *SLOTS, LONG, *[FLOAT] * 7],
}


class OpenMP(Expressions):
    """The kernels of `device.Kernels` on the cores of the rank. Each method says in expressions.py what it computes.

    What is not here NumPy does as well.
    """

    def __init__(self, library: Path = LIBRARY) -> None:
        """Load the library. Raises OSError where it was not built."""
        super().__init__(np)
        self.library = ctypes.CDLL(str(library))
        self.library.instruction_set.restype = ctypes.c_char_p
        for name, types in SIGNATURES.items():
            function = getattr(self.library, name)
            function.argtypes, function.restype = types, None
        self.library.meet.argtypes = [POINTER, INT, INT, ctypes.c_int64, INT, INT]
        self.name = f"OpenMP kernels ({self.library.instruction_set().decode()})"
        self._gathers: dict[Any, Callable[..., None]] = {d: getattr(self.library, n) for d, n in GATHERS.items()}
        self._add_product = find_add_product() or super().add_product
        self._narrowings: dict[str, Callable[..., None]] = {f: getattr(self.library, n) for f, n in NARROWINGS.items()}
        self._rows = np.empty((2, 0), np.float32)  # scratch of cross_entropy: loss and hit of each row

    def gather(self, images_NF: Array, index_B: Array, mean: Array, inverse_std: Array, x_BF: Array) -> None:
        kernel = self._gathers.get(images_NF.dtype)
        if kernel is None or index_B.dtype != np.int64:
            return super().gather(images_NF, index_B, mean, inverse_std, x_BF)
        rows, features = x_BF.shape
        kernel(at(images_NF), at(index_B), rows, features, at(mean), at(inverse_std), mean.size == 1, at(x_BF))
        return None

    def bias(self, y_BO: Array, b_O: Array, relu: bool) -> None:
        self.library.bias(at(y_BO), at(b_O), *y_BO.shape, relu)

    def relu_gradient(self, dy: Array, y: Array) -> None:
        self.library.relu_gradient(at(dy), at(y), dy.size)

    def column_sums(self, a_BO: Array, sums_O: Array, add: bool) -> None:
        self.library.column_sums(at(a_BO), at(sums_O), *a_BO.shape, add)

    def narrow(self, a: Array, out: Array, precision: str) -> None:
        self._narrowings[precision](at(a), at(out), a.size)

    def cross_entropy(self, z_BK: Array, t_B: Array, sums: Array) -> None:
        rows, classes = z_BK.shape
        if self._rows.shape[1] < rows:
            self._rows = np.empty((2, rows), np.float32)
        loss, hits = self._rows
        self.library.cross_entropy(at(z_BK), at(t_B), at(z_BK), at(loss), at(hits), rows, classes, at(sums))

    def dropout(self, x_BU: Array, keys_B: Array, layer: int, rate: float, y_BU: Array, first: int = 0) -> None:
        factor = 1 / (1 - rate)
        self.library.dropout(at(x_BU), at(keys_B), at(y_BU), *x_BU.shape, layer, threshold(rate), factor, first)

    def sum_slots(self, out: Array, slots_SN: Array) -> None:
        self.library.sum_slots(at(out), *slots(slots_SN), out.size)

    def add_product(self, a_BI: Array, b_BO: Array, c_IO: Array) -> None:
        self._add_product(a_BI, b_BO, c_IO)

    def sgd(self, w: Array, g_SN: Array, pace: Pace | Array, l2: float) -> None:
        scale, alpha, _, _ = steady(pace)
        if scale == scale:
            self.library.sgd(at(w), *slots(g_SN), w.size, scale, alpha, l2)

    def momentum(self, w: Array, v: Array, g_SN: Array, pace: Pace | Array, mu: float, l2: float) -> None:
        scale, alpha, _, _ = steady(pace)
        if scale == scale:
            self.library.momentum(at(w), at(v), *slots(g_SN), w.size, scale, alpha, mu, l2)

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
    ) -> None:
        scale, alpha, correction, root = steady(pace, beta1, beta2)
        if scale == scale:
            self.library.adam(
                at(w), at(m), at(v), *slots(g_SN), w.size,
                scale, alpha * correction, beta1, beta2, epsilon * root, l2, 1 - alpha * decay,
            )  # fmt: skip

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
    ) -> None:
        scale, _, correction, root = steady(pace, beta1, beta2)
        if scale == scale:  # Adam's step of size 1, upwards from the decay
            np.multiply(w, decay, out=r)
            self.library.adam(
                at(r), at(m), at(v), *slots(g_SN), w.size, scale, -correction, beta1, beta2, epsilon * root, 0.0, 1.0
            )

    def meet(self, tickets: Array, rank: int, size: int, ticket: int, spins: int, yields: int) -> bool:
        """Whether all processes have given this ticket or a later one; see kernels/openmp.c."""
        return bool(self.library.meet(at(tickets), rank, size, ticket, spins, yields))


def slots(slots_SN: Array) -> tuple[int | None, int, int]:
    """SLOTS of a float32 array whose rows are contiguous, however far apart."""
    return at(slots_SN), slots_SN.strides[0] // slots_SN.itemsize, len(slots_SN)


def at_interface(array: Array) -> int:
    """The address of an array's first element."""
    address: int = array.__array_interface__["data"][0]
    return address


def at_head(array: Array) -> int | None:
    """The same, fifteen times as fast: NumPy's binary interface has it right behind the head that all objects have."""
    return _pointer_at(id(array) + _HEAD).value


_HEAD, _pointer_at = object.__basicsize__, ctypes.c_void_p.from_address
_probe = np.zeros(2)[1:]
at = at_head if at_head(_probe) == at_interface(_probe) else at_interface
