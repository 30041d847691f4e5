"""A layer's matrix products on a GPU: by cublasLt with what follows them in one kernel, else by CuPy and kernels.

Operands are float32, float16, or bfloat16 as the uint16 of its bits; sums are made in float32. Row-major arrays are
column-major ones of the transposed shape to cublasLt, which is why its operands stand the other way round here.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np

from mpi_parallel.device.cublaslt import (
    BGRADA,
    BIAS,
    DRELU,
    FLOAT32,
    PLAIN,
    RELU_AUX_BIAS,
    RELU_BIAS,
    CublasLt,
    Matrix,
    mask_ld,
)
from mpi_parallel.device.cuda_kernels import CudaKernels
from mpi_parallel.device.interface import Array


class CudaProducts(CudaKernels):
    """All kernels of a GPU. Without `lt` CuPy multiplies, which it cannot do while a graph is captured."""

    def __init__(self, cupy: ModuleType, lt: CublasLt | None) -> None:
        super().__init__(cupy)
        self.lt = lt
        self._masks: dict[int, bool] = {}  # by address, whether a mask of relu was written there
        self.name = f"CUDA kernels, products by {'CuPy' if lt is None else 'cublasLt'}"

    def mask_bytes(self, width: int) -> int:
        """What relu's mask takes a row; 0 where none is kept."""
        return 0 if self.lt is None else mask_ld(width) // 8

    def linear(
        self, x_BI: Array, W_IO: Array, b_O: Array | None, y_BO: Array, relu: bool, mask: Array | None = None
    ) -> None:
        if mask is not None:
            self._masks[_at(mask)] = False
        if not y_BO.size:
            return
        if b_O is None:
            self._multiply(W_IO, x_BI, y_BO)
            return
        wished = (RELU_BIAS if mask is None else RELU_AUX_BIAS) if relu else BIAS
        for epilogue in dict.fromkeys((wished, RELU_BIAS if relu else BIAS)):  # a mask is nice to have
            aux = _at(mask) if epilogue == RELU_AUX_BIAS else 0
            kind = -1 if y_BO.dtype == np.float32 else FLOAT32
            if self._fused(W_IO, x_BI, y_BO, epilogue=epilogue, bias=_at(b_O), aux=aux, bias_type=kind):
                if aux:
                    self._masks[aux] = True
                return
        self._multiply(W_IO, x_BI, y_BO)
        self.bias(y_BO, b_O, relu)

    def input_gradient(
        self, dy_BO: Array, W_IO: Array, dx_BI: Array, x_BI: Array | None = None, mask: Array | None = None
    ) -> None:
        """dx = dy W^T; where x, the output of a relu, is given, dx is that of its input. `mask` is that of `linear`."""
        if not dx_BI.size:
            return
        turned = (True, False)
        kept = x_BI is not None and mask is not None and self._masks.get(_at(mask), False)
        if kept and self._fused(W_IO, dy_BO, dx_BI, transposed=turned, epilogue=DRELU, aux=_at(mask)):
            return
        self._multiply(W_IO, dy_BO, dx_BI, transposed=turned)
        if x_BI is not None:
            self.relu_gradient(dx_BI, x_BI)

    def weight_gradient(self, x_BI: Array, dy_BO: Array, dW_IO: Array, db_O: Array | None, add: bool) -> None:
        if not len(x_BI):
            if not add:
                dW_IO.fill(0)
                if db_O is not None:
                    db_O.fill(0)
            return
        turned = (False, True)
        fits = db_O is not None and not add
        if fits and self._fused(dy_BO, x_BI, dW_IO, transposed=turned, epilogue=BGRADA, bias=_at(db_O)):
            return
        self._multiply(dy_BO, x_BI, dW_IO, transposed=turned, add=add)
        if db_O is not None:
            self.column_sums(dy_BO, db_O, add)

    def add_product(self, a_BI: Array, b_BO: Array, c_IO: Array) -> None:
        self.weight_gradient(a_BI, b_BO, c_IO, None, True)

    def _multiply(
        self, a: Array, b: Array, d: Array, transposed: tuple[bool, bool] = (False, False), add: bool = False
    ) -> None:
        """The product alone, in column-major order: d^T = op(b)^T op(a)^T of the arrays as they are."""
        if self._fused(a, b, d, transposed=transposed, epilogue=PLAIN, add=add):
            return
        left, right = (self._wide(b), self._wide(a))
        left, right = left.T if transposed[1] else left, right.T if transposed[0] else right
        if add:
            d += self.xp.matmul(left, right)
        elif d.dtype == np.float32:
            self.xp.matmul(left, right, out=d)
        else:
            self.narrow(self.xp.matmul(left, right), d, "")

    def _fused(self, a: Array, b: Array, d: Array, **how: Any) -> bool:
        """Whether cublasLt has done it."""
        return self.lt is not None and self.lt.product(_matrix(a), _matrix(b), _matrix(d), **how)

    def _wide(self, a: Array) -> Array:
        """float32 numbers, for a product by CuPy."""
        if a.dtype == np.float32:
            return a
        wide: Array = self.xp.empty(a.shape, np.float32)
        self.widen(a, wide)
        return wide


def _at(array: Array | None) -> int:
    """The address; 0 for no array."""
    address: int = 0 if array is None else array.data.ptr  # type: ignore[attr-defined]
    return address


def _matrix(a: Array) -> Matrix:
    """A row-major array whose rows are contiguous, however far apart."""
    rows, columns = a.shape
    assert a.strides[1] == a.itemsize or columns <= 1
    apart = a.strides[0] // a.itemsize if rows > 1 else columns
    return Matrix(_at(a), a.dtype.name, columns, rows, max(columns, apart))
