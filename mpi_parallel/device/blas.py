"""C += A^T B by the BLAS that NumPy brings, which NumPy cannot ask for: no array for the product, no second pass."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np
import threadpoolctl
from numpy.typing import NDArray

ROW_MAJOR, AS_IS, TRANSPOSED = 101, 111, 112  # of cblas.h
# What libraries call cblas_sgemm, and the type of its integers: that of NumPy's wheels first.
NAMES = {"scipy_cblas_sgemm64_": ctypes.c_int64, "cblas_sgemm64_": ctypes.c_int64, "cblas_sgemm": ctypes.c_int}

AddProduct = Callable[[NDArray[Any], NDArray[Any], NDArray[Any]], None]


def find_add_product() -> AddProduct | None:
    """`f(a_BI, b_BO, c_IO)` for float32 arrays with contiguous rows; None where no known BLAS is loaded."""
    for pool in threadpoolctl.threadpool_info():
        if pool["user_api"] == "blas":
            library = ctypes.CDLL(pool["filepath"])
            for name, integer in NAMES.items():
                if hasattr(library, name):
                    return _add_product(getattr(library, name), integer)
    return None


def _add_product(sgemm: Any, integer: Any) -> AddProduct:
    enum, one, pointer = ctypes.c_int, ctypes.c_float, ctypes.c_void_p
    matrix = [pointer, integer]
    sgemm.argtypes = [enum, enum, enum, integer, integer, integer, one, *matrix, *matrix, one, *matrix]
    sgemm.restype = None

    def add_product(a_BI: NDArray[Any], b_BO: NDArray[Any], c_IO: NDArray[Any]) -> None:
        if a_BI.size and b_BO.size:
            (rows, inputs), outputs = a_BI.shape, b_BO.shape[1]
            factors = *_matrix(a_BI), *_matrix(b_BO)
            sgemm(ROW_MAJOR, TRANSPOSED, AS_IS, inputs, outputs, rows, 1.0, *factors, 1.0, *_matrix(c_IO))

    return add_product


def _matrix(a: NDArray[np.float32]) -> tuple[int, int]:
    """Where it is, and the distance of its rows in elements."""
    assert a.dtype == np.float32
    assert a.strides[1] == 4 or a.shape[1] == 1
    return a.ctypes.data, max(a.shape[1], a.strides[0] // 4)
