"""The compiled kernels of kernels/openmp.c, as kernels/module.c shows them to Python."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any

import numpy as np

from mpi_parallel.device.blas import BELOW, blas_architecture, find_sgemm
from mpi_parallel.device.expressions import Expressions, threshold
from mpi_parallel.device.hashing import half_of
from mpi_parallel.device.interface import Array, Augmentation, Raw, Work

MODULE, VERSION = "mpi_parallel.device._kernels", 7  # what module.c must call itself
GATHERS = {np.dtype(np.uint8): "gather_u8", np.dtype(np.uint16): "gather_u16", np.dtype(np.float32): "gather_f32"}
# Those that take the arguments that callers have are called without a detour, and products if we know the BLAS.
AS_THEY_ARE = ("pick", "name_positions", "bias", "relu_gradient", "column_sums", "check", "sum_slots", "meet")
PRODUCTS = ("linear", "input_gradient", "weight_gradient")
RULES = ("sgd", "momentum", "adam")  # behind the public ones, which read the pace


class OpenMP(Expressions):
    """The kernels of `device.Kernels` on the cores of the rank. Each method says in expressions.py what it computes.

    What is not here NumPy does as well.
    """

    def __init__(self) -> None:
        """Load the library. Raises ImportError where it was not built, or for another version of the package."""
        super().__init__(np)
        library: Any = import_module(MODULE)
        if getattr(library, "VERSION", None) != VERSION:
            raise ImportError(f"{MODULE} was built for another version: install the package again")
        probe = np.zeros(2)[1:]
        if library.address(probe) != probe.__array_interface__["data"][0]:
            raise ImportError("NumPy's arrays are laid out in another way than kernels/module.c knows")
        self.library = library
        self._augmented = {d: getattr(library, f"{n}_augmented") for d, n in GATHERS.items()}
        self._gathers: dict[Any, Callable[..., None]] = {d: getattr(library, n) for d, n in GATHERS.items()}
        sgemm = find_sgemm()
        products = sgemm is not None and self._set_products(*sgemm)
        self.name = f"OpenMP kernels{' and products' if products else ''} ({library.instruction_set()})"
        for name in (*AS_THEY_ARE, *(PRODUCTS if sgemm else ())):
            setattr(self, name, getattr(library, name))
        for name in RULES:
            setattr(self, f"_{name}", getattr(library, name))
        self._changed = np.empty(0, np.uint8)  # scratch of gather_augmented: an image a thread
        self._rows = np.empty((2, 0), np.float32)  # scratch of cross_entropy: loss and hit of each row

    def _set_products(self, address: int, wide: bool) -> bool:
        """Multiply with this sgemm, and with products.c where that is quicker; whether that may be.

        Not where OpenBLAS was told to be the same on older CPUs, too: who asks for that wants the same bits there.
        """
        own = self.library.instruction_set() == "AVX-512" and blas_architecture() not in BELOW["avx512f"]
        self.library.set_sgemm(address, wide, own)
        return own

    def gather(self, raw: Raw, index_B: Array, x_BF: Array, t_B: Array) -> None:
        kernel = self._gathers.get(raw.images.dtype)
        if kernel is None:
            super().gather(raw, index_B, x_BF, t_B)
        else:
            kernel(raw, index_B, x_BF, t_B)

    def gather_augmented(
        self, raw: Raw, index_B: Array, keys_B: Array, how: Augmentation, x_BF: Array, t_B: Array
    ) -> None:
        kernel = self._augmented.get(raw.images.dtype)
        if kernel is None:
            super().gather_augmented(raw, index_B, keys_B, how, x_BF, t_B)
            return
        nbytes = self.library.threads() * x_BF.shape[1] * raw.images.itemsize
        if self._changed.nbytes < nbytes:
            self._changed = np.empty(nbytes, np.uint8)
        kernel(raw, index_B, keys_B, *how, x_BF, t_B, self._changed)

    def recorded(self, work: Work) -> Work:
        calls: list[Any] = []
        self.library.record(calls)
        try:
            work()
        finally:
            self.library.record(None)
        return partial(self.library.play, calls)

    def permute(self, image: Array, first: int, n: int, keys: Array, starts: Array) -> None:
        self.library.permute(image, first, n, half_of(n), keys, starts)

    def narrow(self, a: Array, out: Array, precision: str) -> None:
        getattr(self.library, f"to_{precision}")(a, out)

    def pack(self, a: Array, out: Array, precision: str) -> None:
        getattr(self.library, f"pack_{precision}")(a, out)

    def unpack(self, a: Array, out: Array, precision: str) -> None:
        getattr(self.library, f"unpack_{precision}")(a, out)

    def cross_entropy(self, z_BK: Array, t_B: Array, sums: Array) -> None:
        if self._rows.shape[1] < len(t_B):
            self._rows = np.empty((2, len(t_B)), np.float32)
        self.library.cross_entropy(z_BK, t_B, *self._rows, sums)

    def dropout(self, x_BU: Array, keys_B: Array, layer: int, rate: float, y_BU: Array, first: int = 0) -> None:
        self.library.dropout(x_BU, keys_B, y_BU, layer, threshold(rate), 1 / (1 - rate), first)
