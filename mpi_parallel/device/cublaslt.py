"""Matrix products by cublasLt through ctypes, with what follows a product done in the same kernel.

Other than cuBLAS, cublasLt has no state, so its calls may be captured into graphs. It thinks in columns: a row-major
(B, O) array is to it an (O, B) one, so y = x W is asked for as y^T = W^T x^T, and nothing is moved or copied.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from ctypes import byref, c_float, c_int, c_int32, c_int64, c_uint32, c_uint64, c_void_p
from typing import Any, NamedTuple

from mpi_parallel.device.cublaslt_library import (
    ALIGNMENTS,
    AUX_LD,
    AUX_POINTER,
    BIAS_ALIGNMENT,
    BIAS_POINTER,
    CANDIDATES,
    COMPUTE_32F,
    COMPUTE_TF32,
    DRELU,
    EPILOGUE,
    FLOAT32,
    IN_FLOAT32,
    MAX_WORKSPACE,
    PLAIN,
    REDUCTIONS,
    RELU_AUX_BIAS,
    SUPPORTED,
    TRANSA,
    TRANSB,
    TYPES,
    WORKSPACE,
    Algorithm,
    Heuristic,
    LtError,
)
from mpi_parallel.device.host import ALIGNMENT
from mpi_parallel.device.tuning import Tuning

ROUNDS = 2  # of measuring all algorithms of a product


class Matrix(NamedTuple):
    """As cublasLt sees it: column by column, `ld` elements from one to the next."""

    pointer: int
    dtype: str
    rows: int
    columns: int
    ld: int

    @property
    def alignment(self) -> int:
        """Bytes that its address, and so far as we ask its columns, are a multiple of.

        No more than every array of a workspace has: where it happens to lie must not decide on the algorithm.
        """
        step = self.ld * (4 if self.dtype == "float32" else 2)
        bits = self.pointer | step | ALIGNMENT
        return bits & -bits


class Problem(NamedTuple):
    """What makes two products alike: everything but where the numbers are."""

    a: tuple[str, int, int, int, int]  # dtype, rows, columns, ld, alignment
    b: tuple[str, int, int, int, int]
    d: tuple[str, int, int, int, int]
    transposed: tuple[bool, bool]
    epilogue: int
    add: bool
    tf32: bool


class Plan(NamedTuple):
    """A product that is ready to be run again and again."""

    description: c_void_p
    layouts: tuple[c_void_p, c_void_p, c_void_p]
    algorithm: Algorithm
    beta: c_float
    scratch: int  # bytes


class CublasLt:
    """Products on one device and one stream; without `time`, which measures launches, by the library's first choice."""

    def __init__(
        self, library: Any, workspace: int, stream: int, time: Callable[..., float] | None = None,
        tuning: Tuning | None = None,
    ) -> None:  # fmt: skip
        """`workspace` is the address of WORKSPACE bytes on the device; `tuning` has what was measured before.

        Raises LtError.
        """
        self.library, self.workspace, self.stream, self.time = library, workspace, stream, time
        self.tuning = tuning or Tuning(None)
        self.tf32 = False
        self.handle = c_void_p()
        self._check("cublasLtCreate", byref(self.handle))
        self._one, self._zero = c_float(1), c_float(0)
        self._plans: dict[Problem, list[Plan]] = {}  # to be tried in this order

    def product(
        self,
        a: Matrix,
        b: Matrix,
        d: Matrix,
        transposed: tuple[bool, bool] = (False, False),
        epilogue: int = PLAIN,
        bias: int = 0,
        aux: int = 0,
        add: bool = False,
    ) -> bool:
        """d = op(a) op(b), or added to d, and the epilogue; False where cublasLt has no such product.

        `bias` and `aux` are addresses: what is added or summed up, and relu's mask, a bit an element, columns of
        `mask_ld(rows)` bits.
        """
        keys = [(*matrix[1:], matrix.alignment) for matrix in (a, b, d)]
        problem = Problem(keys[0], keys[1], keys[2], transposed, epilogue, add, self.tf32)
        if bias % BIAS_ALIGNMENT:
            return False
        if problem not in self._plans:
            self._plans[problem] = self._choose(problem, (a, b, d), bias, aux)
        plans = self._plans[problem]
        while plans:
            self._point(plans[0].description, bias, aux)
            try:
                self._run(plans[0], a, b, d)
            except LtError:  # proposed, and refused
                del plans[0]
            else:
                return True
        return False

    def _run(self, plan: Plan, a: Matrix, b: Matrix, d: Matrix) -> None:
        of_a, of_b, of_d = plan.layouts
        self._check(
            "cublasLtMatmul", self.handle, plan.description, self._one, a.pointer, of_a, b.pointer, of_b, plan.beta,
            d.pointer, of_d, d.pointer, of_d, plan.algorithm, self.workspace, WORKSPACE, self.stream,
        )  # fmt: skip

    def _choose(self, problem: Problem, matrices: tuple[Matrix, Matrix, Matrix], bias: int, aux: int) -> list[Plan]:
        """The algorithms that the library proposes, the fastest one first."""
        description = self._describe(problem, matrices[2].rows)
        self._point(description, bias, aux)
        layouts = tuple(self._layout(matrix) for matrix in matrices)
        assert len(layouts) == 3
        beta = self._one if problem.add else self._zero
        plans = [
            Plan(description, layouts, found.algorithm, beta, found.workspace)
            for found in self._propose(problem, description, layouts)
        ]
        if self.time is None or problem.add or len(plans) < 2:  # to add again and again would change the result
            return plans
        best = self._fastest(str(tuple(problem)), plans, matrices)
        return [best, *(plan for plan in plans if plan is not best)]

    def _fastest(self, product: str, plans: list[Plan], matrices: tuple[Matrix, Matrix, Matrix]) -> Plan:
        """What was the fastest in an earlier process if it is among those proposed, else what is now."""
        names = [bytes(plan.algorithm).hex() for plan in plans]
        known = self.tuning.of(product)
        if known in names:
            return plans[names.index(known)]
        # In turn, as a clock that goes up or down meanwhile is of no plan's making.
        rounds = [[self._measured(plan, matrices) for plan in plans] for _ in range(ROUNDS)]
        times = [min(of_a_plan) for of_a_plan in zip(*rounds, strict=True)]
        best = times.index(min(times))
        if 0 < times[best] < float("inf"):  # 0: nothing could be measured
            self.tuning.keep(product, names[best])
        return plans[best]

    def _measured(self, plan: Plan, matrices: tuple[Matrix, Matrix, Matrix]) -> float:
        assert self.time is not None
        try:
            return self.time(lambda: self._run(plan, *matrices))
        except LtError:  # proposed, and refused
            return float("inf")

    def _describe(self, problem: Problem, rows: int) -> c_void_p:
        description = c_void_p()
        compute = COMPUTE_TF32 if problem.tf32 and problem.a[0] == "float32" else COMPUTE_32F
        self._check("cublasLtMatmulDescCreate", byref(description), compute, FLOAT32)
        attributes: list[tuple[int, Any]] = [
            (TRANSA, c_int32(problem.transposed[0])),  # CUBLAS_OP_N is 0, CUBLAS_OP_T 1
            (TRANSB, c_int32(problem.transposed[1])),
            (EPILOGUE, c_uint32(problem.epilogue)),
        ]
        if problem.epilogue in (RELU_AUX_BIAS, DRELU):
            attributes.append((AUX_LD, c_int64(mask_ld(rows))))
        for attribute, value in attributes:
            self._set(description, attribute, value)
        return description

    def _point(self, description: c_void_p, bias: int, aux: int) -> None:
        """Addresses may change from call to call."""
        for attribute, address in ((BIAS_POINTER, bias), (AUX_POINTER, aux)):
            if address:
                self._set(description, attribute, c_void_p(address))

    def _set(self, description: c_void_p, attribute: int, value: Any) -> None:
        self._check("cublasLtMatmulDescSetAttribute", description, attribute, byref(value), ctypes.sizeof(value))

    def _layout(self, matrix: Matrix) -> c_void_p:
        layout = c_void_p()
        shape = matrix.rows, matrix.columns, matrix.ld
        self._check("cublasLtMatrixLayoutCreate", byref(layout), TYPES[matrix.dtype], *shape)
        return layout

    def _propose(self, problem: Problem, description: c_void_p, layouts: Any) -> Iterator[Heuristic]:
        preference, found, count = c_void_p(), (Heuristic * CANDIDATES)(), c_int()
        self._check("cublasLtMatmulPreferenceCreate", byref(preference))
        alignments = (problem.a[4], problem.b[4], problem.d[4], problem.d[4])
        wishes: list[tuple[int, Any]] = [
            (MAX_WORKSPACE, c_uint64(WORKSPACE)),
            (REDUCTIONS, c_uint32(IN_FLOAT32)),
            *zip(ALIGNMENTS, map(c_uint32, alignments), strict=True),
        ]
        for attribute, value in wishes:
            self._check(
                "cublasLtMatmulPreferenceSetAttribute", preference, attribute, byref(value), ctypes.sizeof(value)
            )
        of_a, of_b, of_d = layouts
        status = self.library.cublasLtMatmulAlgoGetHeuristic(
            self.handle, description, of_a, of_b, of_d, of_d, preference, CANDIDATES, found, byref(count)
        )
        self._check("cublasLtMatmulPreferenceDestroy", preference)
        if status == SUPPORTED:
            yield from (result for result in found[: count.value] if result.state == SUPPORTED)

    def _check(self, name: str, *arguments: Any) -> None:
        status = getattr(self.library, name)(*arguments)
        if status != 0:
            raise LtError(f"{name} answers with status {status}")


def mask_ld(rows: int) -> int:
    """Bits of a column of relu's mask: a multiple of 128."""
    return -(-rows // 128) * 128
