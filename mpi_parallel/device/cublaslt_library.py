"""The library cublasLt through ctypes: the numbers of its enumerations, its structures, and who finds it.

All of it is as in cublasLt.h, the same in CUDA 12 and 13.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from contextlib import suppress
from ctypes import POINTER, c_float, c_int, c_int64, c_size_t, c_uint64, c_void_p
from typing import Any

TYPES = {"float32": 0, "float16": 2, "uint16": 14}  # cudaDataType of the dtypes of operands; uint16 is bfloat16's bits
FLOAT32 = TYPES["float32"]
COMPUTE_32F, COMPUTE_TF32 = 68, 77  # cublasComputeType_t
# cublasLtMatmulDescAttributes_t and cublasLtMatmulPreferenceAttributes_t
TRANSA, TRANSB, EPILOGUE, BIAS_POINTER, AUX_POINTER, AUX_LD = 3, 4, 7, 8, 11, 12
MAX_WORKSPACE, REDUCTIONS, ALIGNMENTS = 1, 3, (5, 6, 7, 8)  # of A, B, C and D
# cublasLtReductionScheme_t: parts of a sum over k come together in float32, beside the result, in a fixed order. Other
# schemes add them up as 16-bit numbers where the result is of such, or in the result itself.
IN_FLOAT32 = 2
# cublasLtEpilogue_t: + bias; + relu; + the mask of relu kept; times a kept mask; with the sums of A over k
PLAIN, BIAS, RELU_BIAS, RELU_AUX_BIAS, DRELU, BGRADA = 1, 4, 6, 134, 136, 256
SUPPORTED = 0  # cublasStatus_t; whatever else is said of a product means that there is none
BIAS_ALIGNMENT = 16  # bytes: kernels that load as many read a bias that lies otherwise all the same, and fail
WORKSPACE = 32 << 20  # bytes, what NVIDIA recommends for Hopper
CANDIDATES = 8  # algorithms to measure


class Algorithm(ctypes.Structure):
    """cublasLtMatmulAlgo_t"""

    _fields_ = [("data", c_uint64 * 8)]


class Heuristic(ctypes.Structure):
    """cublasLtMatmulHeuristicResult_t"""

    _fields_ = [
        ("algorithm", Algorithm),
        ("workspace", c_size_t),
        ("state", c_int),
        ("waves", c_float),
        ("reserved", c_int * 4),
    ]


SIGNATURES: dict[str, list[Any]] = {
    "cublasLtCreate": [POINTER(c_void_p)],
    "cublasLtGetVersion": [],
    "cublasLtMatmulDescCreate": [POINTER(c_void_p), c_int, c_int],
    "cublasLtMatmulDescSetAttribute": [c_void_p, c_int, c_void_p, c_size_t],
    "cublasLtMatrixLayoutCreate": [POINTER(c_void_p), c_int, c_uint64, c_uint64, c_int64],
    "cublasLtMatmulPreferenceCreate": [POINTER(c_void_p)],
    "cublasLtMatmulPreferenceSetAttribute": [c_void_p, c_int, c_void_p, c_size_t],
    "cublasLtMatmulPreferenceDestroy": [c_void_p],
    "cublasLtMatmulAlgoGetHeuristic": [
        *[c_void_p] * 7, c_int, POINTER(Heuristic), POINTER(c_int)
    ],
    "cublasLtMatmul": [
        c_void_p, c_void_p, POINTER(c_float), c_void_p, c_void_p, c_void_p, c_void_p, POINTER(c_float),
        c_void_p, c_void_p, c_void_p, c_void_p, POINTER(Algorithm), c_void_p, c_size_t, c_void_p,
    ],
}  # fmt: skip


class LtError(RuntimeError):
    """cublasLt refused: what, and with which status."""


def load(find: Callable[[], str] | None, cuda: int) -> Any:
    """The library for this major version of CUDA. Raises OSError where there is none.

    `find` may know where the wheel has put it; else it is left to the system.
    """
    names = [f"libcublasLt.so.{cuda}", "libcublasLt.so"]
    if find is not None:
        with suppress(Exception):  # whatever it has against this machine, the system's own may do
            names.insert(0, find())
    for name in names:
        with suppress(OSError):
            library = ctypes.CDLL(name)
            for function, types in SIGNATURES.items():
                getattr(library, function).argtypes = types
            return library
    raise OSError(f"none of {', '.join(names)} can be loaded")
