"""Numbers in the storage of a format, as the products of a GPU take them, and back."""

from typing import Any

import numpy as np

from mpi_parallel.device.expressions import Expressions
from tests.device.strict import StrictArray
from tests.device.where import on, values

TYPES = {"f32": np.float32, "f16": np.float16, "bf16": np.uint16}
PLAIN_KERNELS = Expressions(np)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).normal(size=shape).astype(np.float32)


def to_bits(a: np.ndarray, kind: str) -> np.ndarray:
    """float32 numbers in the storage of a format, by NumPy's own rounding or the expressions'."""
    if kind == "f32":
        return a.copy()
    if kind == "f16":
        with np.errstate(over="ignore"):
            return a.astype(np.float16)
    rounded = np.empty_like(a)
    PLAIN_KERNELS.narrow(a, rounded, "bfloat16")
    return (rounded.view(np.uint32) >> 16).astype(np.uint16)


def to_numbers(a: np.ndarray, kind: str) -> np.ndarray:
    return (a.astype(np.uint32) << 16).view(np.float32) if kind == "bf16" else a.astype(np.float32)


def empty(shape: tuple[int, ...], kind: str) -> Any:
    return on(np.full(shape, 77, TYPES[kind]))


def read(array: StrictArray, kind: str = "f32") -> np.ndarray:
    return to_numbers(values(array), kind)
