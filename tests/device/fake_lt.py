# ruff: noqa: N802, the names are the library's
"""cublasLt as device/cublaslt.py calls it: checks every argument as the library would, and computes with NumPy."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np

from mpi_parallel.device import cublaslt_library as lt
from tests.device.operands import to_bits, to_numbers

SIZES = {
    lt.TRANSA: 4,
    lt.TRANSB: 4,
    lt.EPILOGUE: 4,
    lt.BIAS_POINTER: 8,
    lt.AUX_POINTER: 8,
    lt.AUX_LD: 8,
}
WISHES = {lt.MAX_WORKSPACE: 8, lt.REDUCTIONS: 4, **dict.fromkeys(lt.ALIGNMENTS, 4)}
WITH_BIAS = (lt.BIAS, lt.RELU_BIAS, lt.RELU_AUX_BIAS, lt.BGRADA)
KINDS = {0: ("f32", np.float32), 2: ("f16", np.float16), 14: ("bf16", np.uint16)}


class FakeLt:
    """The library. `refused` epilogues have no algorithm; `do(event, work)` computes, now or in a replay.

    A `moody` one proposes by the alignment what rounds in another way.
    """

    def __init__(
        self, do: Callable[[Any, Callable[[], None]], None], refused: tuple[int, ...] = (), moody: bool = False
    ) -> None:
        self.do, self.refused, self.moody = do, refused, moody
        self.descriptions: dict[int, dict[int, Any]] = {}
        self.layouts: dict[int, tuple[int, int, int, int]] = {}
        self.preferences: dict[int, dict[int, Any]] = {}
        self.asked: list[dict[str, Any]] = []  # what heuristics were asked for
        self.run: list[int] = []  # the algorithms that were run
        self.epilogues: list[int] = []  # of what was run
        self._number = 100

    def _new(self, reference: Any) -> int:
        self._number += 1
        reference._obj.value = self._number
        return self._number

    def cublasLtCreate(self, handle: Any) -> int:
        self._new(handle)
        return 0

    def cublasLtGetVersion(self) -> int:
        return 120900

    def cublasLtMatmulDescCreate(self, description: Any, compute: int, scale: int) -> int:
        assert (compute in (lt.COMPUTE_32F, lt.COMPUTE_TF32), scale) == (True, lt.FLOAT32)
        self.descriptions[self._new(description)] = {"compute": compute}
        return 0

    def cublasLtMatmulDescSetAttribute(self, description: Any, attribute: int, value: Any, size: int) -> int:
        assert size == SIZES[attribute] == ctypes.sizeof(value._obj)
        self.descriptions[description.value][attribute] = value._obj.value
        return 0

    def cublasLtMatrixLayoutCreate(self, layout: Any, kind: int, rows: int, columns: int, ld: int) -> int:
        assert ld >= rows
        self.layouts[self._new(layout)] = kind, rows, columns, ld
        return 0

    def cublasLtMatmulPreferenceCreate(self, preference: Any) -> int:
        self.preferences[self._new(preference)] = {}
        return 0

    def cublasLtMatmulPreferenceSetAttribute(self, preference: Any, attribute: int, value: Any, size: int) -> int:
        assert size == WISHES[attribute] == ctypes.sizeof(value._obj)
        self.preferences[preference.value][attribute] = value._obj.value
        return 0

    def cublasLtMatmulPreferenceDestroy(self, preference: Any) -> int:
        self.wishes = self.preferences.pop(preference.value)
        return 0

    def cublasLtMatmulAlgoGetHeuristic(self, handle, description, a, b, c, d, preference, most, found, count) -> int:
        assert c.value == d.value
        assert most == len(found) == lt.CANDIDATES
        about = self.descriptions[description.value]
        self.asked.append({"about": dict(about), **self.preferences[preference.value]})
        epilogue = about[lt.EPILOGUE]
        assert (lt.BIAS_POINTER in about) == (epilogue in WITH_BIAS)
        assert (lt.AUX_POINTER in about) == (epilogue in (lt.RELU_AUX_BIAS, lt.DRELU))
        if epilogue in self.refused or (epilogue == lt.BGRADA and about[lt.TRANSA]):
            return 15
        for number in range(2):
            found[number].algorithm.data[0] = number + 1
            if self.moody:
                found[number].algorithm.data[0] += sum(
                    self.preferences[preference.value][wish] for wish in lt.ALIGNMENTS
                )
        count._obj.value = 2
        return 0

    def cublasLtMatmul(
        self, handle, description, alpha, a, of_a, b, of_b, beta, c, of_c, d, of_d, algorithm, workspace, size, stream
    ) -> int:
        assert (c, of_c.value) == (d, of_d.value)
        assert workspace
        assert (size, alpha.value) == (lt.WORKSPACE, 1.0)
        about, add, layouts = dict(self.descriptions[description.value]), beta.value, self.layouts
        shapes = [layouts[layout.value] for layout in (of_a, of_b, of_d)]
        self.run.append(algorithm.data[0])
        self.epilogues.append(about[lt.EPILOGUE])
        factor = 1 + algorithm.data[0] * 2**-20 if self.moody else 1
        self.do(("launch", "cublasLtMatmul"), lambda: compute(about, add, (a, b, d), shapes, factor))
        return 0


def matrix(address: int, layout: tuple[int, int, int, int]) -> np.ndarray:
    """(rows, columns), column by column in memory; all of it is looked at, so a sanitizer or a crash would tell."""
    kind, rows, columns, ld = layout
    dtype = np.dtype(KINDS[kind][1])
    count = ld * (columns - 1) + rows if columns else 0
    flat = np.ctypeslib.as_array((ctypes.c_uint8 * (count * dtype.itemsize)).from_address(address)).view(dtype)
    return np.lib.stride_tricks.as_strided(flat, (rows, columns), (dtype.itemsize, ld * dtype.itemsize))


def compute(about: dict[Any, Any], add: float, pointers: Any, shapes: Any, factor: float) -> None:
    """The product and its epilogue, as cublasLt.h describes them."""
    a, b, d = (matrix(pointer, shape) for pointer, shape in zip(pointers, shapes, strict=True))
    kinds = [KINDS[shape[0]][0] for shape in shapes]
    wide_a, wide_b = to_numbers(a, kinds[0]), to_numbers(b, kinds[1])
    left = wide_a.T if about[lt.TRANSA] else wide_a
    right = wide_b.T if about[lt.TRANSB] else wide_b
    assert left.shape[1] == right.shape[0]
    assert (left.shape[0], right.shape[1]) == d.shape
    result = left @ right * factor + (add * d if add else 0)
    epilogue = about[lt.EPILOGUE]
    if epilogue == lt.RELU_AUX_BIAS:  # as some GPUs have it
        result = to_numbers(to_bits(np.ascontiguousarray(result, np.float32), kinds[2]), kinds[2])
    if epilogue in (lt.BIAS, lt.RELU_BIAS, lt.RELU_AUX_BIAS):
        result += bias_of(about[lt.BIAS_POINTER], len(d), shapes[2][0])[:, None]
    if epilogue in (lt.RELU_AUX_BIAS, lt.DRELU):
        assert about[lt.AUX_LD] % 128 == 0
        mask = matrix_of_bits(about[lt.AUX_POINTER], about[lt.AUX_LD], d.shape[1])
        if epilogue == lt.DRELU:
            result *= np.unpackbits(mask, axis=1, bitorder="little")[:, : len(d)].T
        else:
            bits = np.zeros((d.shape[1], about[lt.AUX_LD]), np.uint8)
            bits[:, : len(d)] = (result >= 0).T  # NVIDIA does not say what is kept of 0 itself; nobody may rely on it
            mask[:] = np.packbits(bits, axis=1, bitorder="little")
    if epilogue in (lt.RELU_BIAS, lt.RELU_AUX_BIAS):
        result = np.maximum(result, 0)
    if epilogue == lt.BGRADA:
        vector(about[lt.BIAS_POINTER], len(d))[:] = left.sum(axis=1)
    d[:] = to_bits(np.ascontiguousarray(result, np.float32), kinds[2])


def bias_of(address: int, count: int, kind: int) -> np.ndarray:
    """It is of the type of the result."""
    assert address % lt.BIAS_ALIGNMENT == 0
    return to_numbers(matrix(address, (kind, count, 1, count))[:, 0], KINDS[kind][0])


def vector(address: int, count: int) -> np.ndarray:
    return np.ctypeslib.as_array((ctypes.c_float * count).from_address(address))


def matrix_of_bits(address: int, ld: int, columns: int) -> np.ndarray:
    return np.ctypeslib.as_array((ctypes.c_uint8 * (ld // 8 * columns)).from_address(address)).reshape(columns, ld // 8)
