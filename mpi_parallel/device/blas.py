"""The matrix product of the BLAS that NumPy brings, for kernels that want it without NumPy in between."""

from __future__ import annotations

import ctypes

import threadpoolctl

# What libraries call cblas_sgemm, and whether its integers have 64 bits: that of NumPy's wheels first.
NAMES = {"scipy_cblas_sgemm64_": True, "cblas_sgemm64_": True, "cblas_sgemm": False}


def find_sgemm() -> tuple[int, bool] | None:
    """The address of cblas_sgemm, and whether its integers have 64 bits; None where no known BLAS is loaded."""
    for pool in threadpoolctl.threadpool_info():
        if pool["user_api"] == "blas":
            library = ctypes.CDLL(pool["filepath"])
            for name, wide in NAMES.items():
                if hasattr(library, name):
                    return ctypes.cast(getattr(library, name), ctypes.c_void_p).value or 0, wide
    return None
