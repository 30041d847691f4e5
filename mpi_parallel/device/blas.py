"""The BLAS that NumPy multiplies with: what it is, and its matrix product for kernels that want it without NumPy.

Other packages bring a BLAS of their own into the process (SciPy does), so NumPy's is found through NumPy: the loader
looks a symbol up in a library and in those that it was linked with, and tells which one has it.
"""

from __future__ import annotations

import ctypes
import os
from importlib import import_module
from typing import Any

import numpy as np
import threadpoolctl

# The part of NumPy that multiplies; before NumPy 2 its folder has another name.
PRODUCTS = import_module(("numpy._core" if hasattr(np, "_core") else "numpy.core") + "._multiarray_umath")
# What libraries call cblas_sgemm, and whether its integers have 64 bits: that of NumPy's wheels first.
NAMES = {"scipy_cblas_sgemm64_": True, "cblas_sgemm64_": True, "cblas_sgemm": False}

# OpenBLAS' kernels for older CPUs, by the instructions that they leave unused; those of AVX2 are of no use to AVX-512.
OLD = frozenset({"Prescott", "Core2", "Penryn", "Nehalem", "Sandybridge", "Barcelona", "Bulldozer", "Generic"})
BELOW = {"avx512f": OLD | {"Haswell", "Zen"}, "avx2": OLD}


class _Place(ctypes.Structure):
    """What dladdr(3) tells of an address."""

    _fields_ = [
        ("file", ctypes.c_char_p), ("base", ctypes.c_void_p), ("name", ctypes.c_char_p), ("at", ctypes.c_void_p)
    ]  # fmt: skip


def find_sgemm() -> tuple[int, bool] | None:
    """The address of NumPy's cblas_sgemm, and whether its integers have 64 bits; None where none is known."""
    library = ctypes.CDLL(PRODUCTS.__file__)
    for name, wide in NAMES.items():
        if hasattr(library, name):
            return ctypes.cast(getattr(library, name), ctypes.c_void_p).value or 0, wide
    return None


def blas_pool() -> dict[str, Any] | None:
    """What threadpoolctl tells of NumPy's BLAS; of the first one where NumPy's cannot be told; None without any."""
    pools = [pool for pool in threadpoolctl.threadpool_info() if pool["user_api"] == "blas"]
    found, place = find_sgemm(), _Place()
    if found and ctypes.CDLL(None).dladdr(ctypes.c_void_p(found[0]), ctypes.byref(place)) and place.file:
        ours = os.path.realpath(os.fsdecode(place.file))
        pools.sort(key=lambda pool: os.path.realpath(pool.get("filepath", "")) != ours)
    return pools[0] if pools else None


def blas_architecture() -> str:
    """The CPUs for which OpenBLAS has the kernels that it runs, as it calls them; "" where that is not known."""
    pool = blas_pool()
    return "" if pool is None else str(pool.get("architecture") or "")
