"""A layer's matrix products on a GPU: by cublasLt with what follows them in one kernel, else by CuPy and kernels.

Operands are float32, float16, or bfloat16 as the uint16 of its bits; sums are made in float32. Row-major arrays are
column-major ones of the transposed shape to cublasLt, which is why its operands stand the other way round here.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any

import numpy as np

from mpi_parallel.device.cublaslt import CublasLt, Matrix, mask_ld
from mpi_parallel.device.cublaslt_library import BGRADA, BIAS, DRELU, PLAIN, RELU_AUX_BIAS, RELU_BIAS
from mpi_parallel.device.cuda_kernels import CudaKernels, address
from mpi_parallel.device.interface import Array


class CudaProducts(CudaKernels):
    """All kernels of a GPU. `capturable` until CuPy has multiplied: cuBLAS is refused while a graph is captured."""

    def __init__(self, cupy: ModuleType, lt: CublasLt | None) -> None:
        super().__init__(cupy)
        self.lt = lt
        self.capturable = lt is not None
        self._masks: dict[int, bool] = {}  # by address, whether a mask of relu was written there
        self._together: dict[Any, bool] = {}  # whether one kernel for dW and db pays, by their types and shapes
        self.name = f"CUDA kernels, products by {'CuPy' if lt is None else 'cublasLt'}"

    def mask_bytes(self, width: int) -> int:
        """What relu's mask takes a row; 0 where none is kept."""
        return 0 if self.lt is None else mask_ld(width) // 8

    def linear(
        self, x_BI: Array, W_IO: Array, b_O: Array | None, y_BO: Array, relu: bool, mask: Array | None = None
    ) -> None:
        if mask is not None:
            self._masks[address(mask)] = False
        if not y_BO.size:
            return
        wished = (RELU_BIAS if mask is None else RELU_AUX_BIAS) if relu else BIAS
        for epilogue in dict.fromkeys((wished, RELU_BIAS if relu else BIAS)) if b_O is not None else ():
            aux = address(mask) if epilogue == RELU_AUX_BIAS else 0  # a mask is nice to have
            if self._fused(x_BI, W_IO, y_BO, epilogue=epilogue, bias=address(b_O), aux=aux):
                if aux:
                    self._masks[aux] = True
                return
        super().linear(x_BI, W_IO, b_O, y_BO, relu)

    def input_gradient(
        self, dy_BO: Array, W_IO: Array, dx_BI: Array, x_BI: Array | None = None, mask: Array | None = None
    ) -> None:
        """dx = dy W^T; where x, the output of a relu, is given, dx is that of its input. `mask` is that of `linear`.

        Of a relu's input that was exactly 0 cublasLt may keep that it was positive, which does no harm.
        """
        if not dx_BI.size:
            return
        kept = x_BI is not None and mask is not None and self._masks.get(address(mask), False)
        if not (kept and self._fused(dy_BO, W_IO.T, dx_BI, epilogue=DRELU, aux=address(mask))):
            super().input_gradient(dy_BO, W_IO, dx_BI, x_BI)

    def weight_gradient(self, x_BI: Array, dy_BO: Array, dW_IO: Array, db_O: Array | None, add: bool) -> None:
        if not len(x_BI):
            if not add:
                dW_IO.fill(0)
                if db_O is not None:
                    db_O.fill(0)
            return
        apart = partial(super().weight_gradient, x_BI, dy_BO, dW_IO, db_O, add)
        together = partial(self._fused, x_BI.T, dy_BO, dW_IO, epilogue=BGRADA, bias=address(db_O))
        fits = db_O is not None and not add and self._pays((dy_BO.dtype, x_BI.shape, dy_BO.shape), together, apart)
        if not (fits and together()):
            apart()

    def _pays(self, product: Any, together: Callable[[], bool], apart: Callable[[], None]) -> bool:
        """Whether sums within a product are no slower than sums behind it, as they are in some large ones.

        Both are measured where algorithms are, else they are taken together, as they are where CuPy would multiply. The
        arrays then hold what either made of them.
        """
        time = None if self.lt is None else self.lt.time
        if time is not None and product not in self._together:
            capturable, self.capturable = self.capturable, True
            self._together[product] = together() and (time(together) <= time(apart) or not self.capturable)
            self.capturable = capturable
        return self._together.get(product, True)

    def multiply(self, a: Array, b: Array, out: Array, add: bool = False) -> None:
        if self._fused(a, b, out, epilogue=PLAIN, add=add):
            return
        self.capturable = False
        a, b = self._wide(a), self._wide(b)
        if add or out.dtype == np.float32:
            super().multiply(a, b, out, add)
        else:
            self.narrow(self.xp.matmul(a, b), out, "")

    def _fused(self, a: Array, b: Array, out: Array, **how: Any) -> bool:
        """Whether cublasLt has done it, as out^T = b^T a^T."""
        if self.lt is None:
            return False
        (left, turned_left), (right, turned_right), (made, turned) = map(_matrix, (a, b, out))
        assert not turned
        return self.lt.product(right, left, made, transposed=(turned_right, turned_left), **how)

    def _wide(self, a: Array) -> Array:
        """float32 numbers, for a product by CuPy."""
        if a.dtype == np.float32:
            return a
        if _turned(a):
            return self._wide(a.T).T
        wide: Array = self.xp.empty(a.shape, np.float32)
        self.widen(a, wide)
        return wide


def _turned(a: Array) -> bool:
    """Whether it is a view of an array whose rows are contiguous, with its axes swapped."""
    return a.strides[1] != a.itemsize and a.shape[1] > 1


def _matrix(a: Array) -> tuple[Matrix, bool]:
    """An array whose rows are contiguous, however far apart, and whether it is that with its axes swapped."""
    turned = _turned(a)
    kept = a.T if turned else a
    rows, columns = kept.shape
    assert kept.strides[1] == kept.itemsize or columns <= 1
    apart = kept.strides[0] // kept.itemsize if rows > 1 else columns
    return Matrix(address(kept), kept.dtype.name, columns, rows, max(columns, apart)), turned
