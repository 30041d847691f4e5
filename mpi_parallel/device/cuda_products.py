"""A layer's matrix products on a GPU: by cublasLt, with what follows them in the same call or in kernels of ours.

cublasLt takes bias, relu's gradient and the sums of a bias' gradient along where it has a kernel that does. Where it
has none for a GPU and a type it runs a slower product, or passes over the result in a kernel of its own; which it does
it does not tell. So each way is measured, and the faster one taken.

Operands are float32, float16, or bfloat16 as the uint16 of its bits; sums are made in float32. Row-major arrays are
column-major ones of the transposed shape to cublasLt, which is why its operands stand the other way round here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from types import ModuleType
from typing import Any

import numpy as np

from mpi_parallel.device.cublaslt import CublasLt, Matrix, mask_ld
from mpi_parallel.device.cublaslt_library import BGRADA, BIAS, DRELU, PLAIN, RELU_AUX_BIAS, RELU_BIAS
from mpi_parallel.device.cuda_kernels import CudaKernels, address
from mpi_parallel.device.interface import Array

Way = Callable[[], bool]  # does it, or does not exist
WORTH = 0.97  # the first way may take a little longer: that which keeps relu's mask helps on the way back


class CudaProducts(CudaKernels):
    """All kernels of a GPU. `capturable` until CuPy has multiplied: cuBLAS is refused while a graph is captured."""

    def __init__(self, cupy: ModuleType, lt: CublasLt | None) -> None:
        super().__init__(cupy)
        self.lt = lt
        self.capturable = lt is not None
        self._masks: dict[int, bool] = {}  # by address, whether a mask of relu was written there
        self._ways: dict[tuple[Any, ...], list[int]] = {}  # in which order to try them
        self.name = f"CUDA kernels, products by {'CuPy' if lt is None else 'cublasLt'}"

    def mask_bytes(self, width: int) -> int:
        """What relu's mask takes a row; 0 where none is kept."""
        return 0 if self.lt is None else mask_ld(width) // 8

    def linear(
        self, x_BI: Array, W_IO: Array, b_O: Array | None, y_BO: Array, relu: bool, mask: Array | None = None
    ) -> None:
        def fused(epilogue: int) -> bool:
            aux = address(mask) if epilogue == RELU_AUX_BIAS else 0
            done = self._fused(x_BI, W_IO, y_BO, epilogue=epilogue, bias=address(b_O), aux=aux)
            return kept(done and bool(aux)) or done

        def apart() -> bool:
            assert b_O is not None
            kept(False)
            multiplied = self._fused(x_BI, W_IO, y_BO)
            if multiplied:
                self.bias(y_BO, b_O, relu)
            return multiplied

        def kept(there: bool) -> bool:
            if mask is not None:
                self._masks[address(mask)] = there
            return there

        kept(False)
        if not y_BO.size:
            return
        epilogues = [BIAS] if not relu else [RELU_BIAS] if mask is None else [RELU_AUX_BIAS, RELU_BIAS]
        ways = [partial(fused, epilogue) for epilogue in epilogues] + [apart] if b_O is not None else []
        shape = ("linear", x_BI.shape, W_IO.shape, x_BI.dtype.name, y_BO.dtype.name, relu, mask is not None)
        if not self._by_one_of(shape, ways):
            super().linear(x_BI, W_IO, b_O, y_BO, relu)

    def input_gradient(
        self, dy_BO: Array, W_IO: Array, dx_BI: Array, x_BI: Array | None = None, mask: Array | None = None
    ) -> None:
        """dx = dy W^T; where x, the output of a relu, is given, dx is that of its input. `mask` is that of `linear`.

        Of a relu's input that was exactly 0 cublasLt may keep that it was positive, which does no harm.
        """

        def fused() -> bool:
            return self._fused(dy_BO, W_IO.T, dx_BI, epilogue=DRELU, aux=address(mask))

        def apart() -> bool:
            assert x_BI is not None
            multiplied = self._fused(dy_BO, W_IO.T, dx_BI)
            if multiplied:
                self.relu_gradient(dx_BI, x_BI)
            return multiplied

        if not dx_BI.size:
            return
        kept = x_BI is not None and mask is not None and self._masks.get(address(mask), False)
        shape = ("input gradient", dy_BO.shape, W_IO.shape, dy_BO.dtype.name, dx_BI.dtype.name)
        if not self._by_one_of(shape, [fused, apart] if kept else []):
            super().input_gradient(dy_BO, W_IO, dx_BI, x_BI)

    def weight_gradient(self, x_BI: Array, dy_BO: Array, dW_IO: Array, db_O: Array | None, add: bool) -> None:
        def fused() -> bool:
            return self._fused(x_BI.T, dy_BO, dW_IO, epilogue=BGRADA, bias=address(db_O))

        def apart() -> bool:
            assert db_O is not None
            multiplied = self._fused(x_BI.T, dy_BO, dW_IO)
            if multiplied:
                self.column_sums(dy_BO, db_O, False)
            return multiplied

        if not len(x_BI):
            if not add:
                dW_IO.fill(0)
                if db_O is not None:
                    db_O.fill(0)
            return
        shape = ("weight gradient", x_BI.shape, dy_BO.shape, x_BI.dtype.name)
        if not self._by_one_of(shape, [fused, apart] if db_O is not None and not add else []):
            super().weight_gradient(x_BI, dy_BO, dW_IO, db_O, add)

    def multiply(self, a: Array, b: Array, out: Array, add: bool = False) -> None:
        if self._fused(a, b, out, epilogue=PLAIN, add=add):
            return
        self.capturable = False
        a, b = self._wide(a), self._wide(b)
        if add or out.dtype == np.float32:
            super().multiply(a, b, out, add)
        else:
            self.narrow(self.xp.matmul(a, b), out, "")

    def _by_one_of(self, shape: tuple[Any, ...], ways: Sequence[Way]) -> bool:
        """Whether one of these does it: the fastest, as was measured when the first of this shape came, else the first.

        Each can be taken again and again, with the same result.
        """
        if self.lt is None or not ways:
            return False
        order = self._ways.get(shape)
        if order is None:
            order = self._ways[shape] = self._in_order(str((*shape, self.lt.tf32)), ways, self.lt)
        return any(ways[number]() for number in order)

    def _in_order(self, shape: str, ways: Sequence[Way], lt: CublasLt) -> list[int]:
        """The numbers of the ways, the fastest one in front."""
        best, known = 0, lt.tuning.of(shape)
        if known is not None and known in map(str, range(len(ways))):
            best = int(known)
        elif lt.time is not None and len(ways) > 1:
            times = {number: lt.time(way) for number, way in enumerate(ways) if way()}  # finds the algorithms first
            if 0 in times:
                times[0] *= WORTH
            best = min(times, key=lambda number: times[number], default=0)
            if times and 0 < times[best] < float("inf"):  # else nothing could be measured
                lt.tuning.keep(shape, str(best))
        return sorted(range(len(ways)), key=lambda number: number != best)

    def _fused(self, a: Array, b: Array, out: Array, **how: Any) -> bool:
        """Whether cublasLt has done it, and nothing else if no epilogue is named, as out^T = b^T a^T."""
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
