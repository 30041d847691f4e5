"""The kernels of kernels/cuda.cu, launched on CuPy arrays: nothing is allocated, nothing waits.

What each computes is written in expressions.py. A call may be captured into a graph once it has been made before, which
compiles the kernel and finds its scratch.
"""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from mpi_parallel.device.cuda_small import STATIC, TICKETS, SmallPasses
from mpi_parallel.device.expressions import Expressions, threshold
from mpi_parallel.device.interface import Array, Augmentation, Pace, Raw, Schedule, SmallNetwork
from mpi_parallel.device.rule_expressions import steady

INCLUDE = re.compile(r'^#include "(.+)"$', re.MULTILINE)
KERNELS = Path(__file__).parent / "kernels"
OPTIONS = ("--std=c++14", "--fmad=false")  # no contraction: the arithmetic of the CPU
FORMATS = {np.dtype(np.float32): "f32", np.dtype(np.float16): "f16", np.dtype(np.uint16): "bf16"}  # of operands
FILES = {np.dtype(t): n for t, n in (("u1", "u8"), ("u2", "u16"), ("i2", "i16"), ("f4", "f32"), ("f8", "f64"))}
THREADS = 256  # of a block, where rows do not say otherwise
MOST = 1024  # threads that a block may have
BLOCKS = 2048  # enough to fill a GPU: larger grids loop
FEW_CLASSES = 32  # up to here a thread takes a row of logits, beyond a block
PARTS = 256  # partial sums of squares
TILE = 32  # columns of a block of column_sums, and threads of a column
NULL = np.uint64(0)
LARGEST_GRID = 2**31 - 1
WITHOUT_ASKING = (48 << 10) - STATIC  # bytes of shared memory of a launch, less what kernels have by themselves

Numbers = tuple[Any, np.float32, np.float32, np.float32, np.float32]


def source() -> str:
    """The CUDA source with our files in place of their includes: NVRTC then needs none."""
    return _included("cuda.cu")


def _included(name: str) -> str:
    """Headers that are there twice see to that themselves."""
    return INCLUDE.sub(lambda found: _included(found[1]), (KERNELS / name).read_text())


class CudaKernels(Expressions):
    """The kernels of `device.Kernels` on a GPU, but for matrix products."""

    rules_narrow = True

    def __init__(self, cupy: ModuleType) -> None:
        """On the current device of `cupy`; each kernel is compiled for it when it is first used."""
        super().__init__(cupy)
        self.name = "CUDA kernels"
        self.file_types = FILES
        self._module = cupy.RawModule(code=source(), options=OPTIONS)
        self._functions: dict[str, Any] = {}
        self._shared: dict[str, int] = {}  # bytes that blocks of a kernel may have been given beyond the usual
        self._ticket = cupy.zeros(1, np.uint32)  # how many blocks are done; every launch leaves it at 0
        self._parts = cupy.zeros(PARTS, np.float64)
        # Loss and hit (int32) of each row; graphs go on to use what is too small for others.
        self._scores = [cupy.zeros((2, 0), np.float32)]
        runtime = cupy.cuda.runtime
        shared = runtime.deviceGetAttribute(runtime.cudaDevAttrMaxSharedMemoryPerBlockOptin, runtime.getDevice())
        self._small = SmallPasses(self._launch, shared, self._ticket, cupy.zeros(TICKETS, np.uint32))

    def gather(self, raw: Raw, index_B: Array, x_BF: Array, t_B: Array) -> None:
        rows, features = x_BF.shape
        self._rows(
            f"gather_{FILES[raw.images.dtype]}_{FORMATS[x_BF.dtype]}", rows, features,
            raw.images, raw.labels, index_B, np.int64(rows), np.int64(features), raw.mean, raw.inverse_std,
            np.int32(raw.mean.size == 1), x_BF, t_B,
        )  # fmt: skip

    def gather_augmented(
        self, raw: Raw, index_B: Array, keys_B: Array, how: Augmentation, x_BF: Array, t_B: Array
    ) -> None:
        *numbers, erase = how
        rows, features = x_BF.shape
        self._rows(
            f"augmented_{FILES[raw.images.dtype]}_{FORMATS[x_BF.dtype]}", rows, features,
            raw.images, raw.labels, index_B, keys_B, np.int64(rows), *map(np.int32, numbers), np.float64(erase),
            raw.mean, raw.inverse_std, np.int32(raw.mean.size == 1), x_BF, t_B,
        )  # fmt: skip

    def pick(self, labels_N: Array, index_B: Array, t_B: Array) -> None:
        self._each("pick", len(index_B), labels_N, index_B, np.int64(len(index_B)), t_B)

    def bias(self, y_BO: Array, b_O: Array, relu: bool) -> None:
        rows, width = y_BO.shape
        name = f"bias_{FORMATS[y_BO.dtype]}"
        self._rows(name, rows, width, y_BO, b_O, np.int64(rows), np.int64(width), np.int32(relu))

    def relu_gradient(self, dy: Array, y: Array) -> None:
        self._each(f"relu_gradient_{FORMATS[dy.dtype]}", dy.size, dy, y, np.int64(dy.size))

    def column_sums(self, a_BO: Array, sums_O: Array, add: bool) -> None:
        rows, width = a_BO.shape
        name, grid = f"column_sums_{FORMATS[a_BO.dtype]}", -(-width // TILE)
        self._launch(name, grid, (TILE, TILE), a_BO, sums_O, np.int64(rows), np.int64(width), np.int32(add))

    def dropout(self, x_BU: Array, keys_B: Array, layer: int, rate: float, y_BU: Array, first: int = 0) -> None:
        rows, width = x_BU.shape
        self._rows(
            f"dropout_{FORMATS[x_BU.dtype]}", rows, width, x_BU, keys_B, y_BU, np.int64(rows), np.int64(width),
            np.uint32(layer), np.uint32(threshold(rate)), np.float32(1 / (1 - rate)), np.uint32(first),
        )  # fmt: skip

    def cross_entropy(self, z_BK: Array, t_B: Array, sums: Array) -> None:
        rows, classes = z_BK.shape
        if self._scores[-1].shape[1] < rows:
            self._scores.append(self.xp.zeros((2, rows), np.float32))
        losses, hits = self._scores[-1][0], self._scores[-1][1]
        few = classes <= FEW_CLASSES
        of_many = 128 if classes <= 256 else 256 if classes <= 4096 else 512
        grid, block = (-(-rows // 64), 64) if few else (rows, of_many)
        self._launch(
            f"cross_entropy_of_{'few' if few else 'many'}", min(grid, BLOCKS), (block,), z_BK, t_B,
            losses, hits, np.int64(rows), np.int32(classes), sums, self._ticket,
        )  # fmt: skip

    def narrow(self, a: Array, out: Array, precision: str) -> None:
        if out is not a:  # of float32 a tensor core itself takes what TF32 has
            self._each(f"narrow_{FORMATS[out.dtype]}", a.size, a, out, np.int64(a.size))

    def widen(self, a: Array, out: Array) -> None:
        """out (float32) = a, which is of a 16-bit format."""
        self._each(f"widen_{FORMATS[a.dtype]}", a.size, a, out, np.int64(a.size))

    def small_numbers(self, network: SmallNetwork, rows: int) -> int:
        return self._small.numbers(network, rows)

    def small_pass(
        self, network: SmallNetwork, x_BF: Array, keys_B: Array, t_B: Array, weights: Array, merged: Array, room: Array
    ) -> None:
        self._small.run(network, x_BF, keys_B, t_B, weights, merged, room)

    def squares(self, a: Array, out: Array) -> None:
        grid = min(PARTS, -(-a.size // THREADS))
        self._launch("squares", grid, (THREADS,), a, np.int64(a.size), self._parts, out, self._ticket)

    def check(self, a: Array, bad: Array) -> None:
        self._each("check", a.size, a, np.int64(a.size), bad, NULL, np.float32(0))

    def finish(self, gradients: Array, bad: Array, count: Array, rows: int) -> None:
        n = gradients.size
        self._each("check", n, gradients, np.int64(n), bad, count, np.float32(rows))

    def deal(self, index_N: Array, keys_N: Array, cursor: Array, index_B: Array, keys_B: Array, tail: Array) -> None:
        rows = len(index_B)
        block = (min(MOST, -(-max(1, rows) // 32) * 32),)  # one block: all that it may have
        self._launch(
            "deal", 1, block, index_N, keys_N, cursor, np.int64(rows), index_B, keys_B, tail, np.int32(tail.size)
        )

    def advance(self, pace: Array, tail: Array, squares: Array | None, schedule: Schedule, told: Array) -> None:
        base, cosine, *rest = schedule
        rows, width = map(np.int32, told.shape)
        terms = np.int32(0 if squares is None else squares.size)
        self._launch(
            "advance", 1, (32,), pace, tail, np.int32(len(tail) - 1), NULL if squares is None else squares, terms,
            np.float64(base), np.int32(cosine), *map(np.float64, rest), np.uint64(told.ctypes.data), rows, width,
        )  # fmt: skip

    def sum_slots(self, out: Array, slots_SN: Array) -> None:
        self._each("sum_slots", out.size, out, *_slots(slots_SN), np.int64(out.size))

    def sgd(self, w: Array, g_SN: Array, pace: Pace | Array, l2: float, factors: Array | None = None) -> None:
        self._rule("sgd", (w,), g_SN, _pace(pace), l2, more=_factors(factors))

    def momentum(
        self, w: Array, v: Array, g_SN: Array, pace: Pace | Array, mu: float, l2: float, factors: Array | None = None
    ) -> None:
        self._rule("momentum", (w, v), g_SN, _pace(pace), mu, l2, more=_factors(factors))

    def adam(
        self,
        w: Array,
        m: Array,
        v: Array,
        g_SN: Array,
        pace: Pace | Array,
        beta1: float,
        beta2: float,
        epsilon: float,
        l2: float,
        decay: float,
        factors: Array | None = None,
    ) -> None:
        constants = beta1, beta2, epsilon, l2, decay
        self._rule("adam", (w, m, v), g_SN, _pace(pace, beta1, beta2), *constants, more=_factors(factors))

    def lamb(
        self,
        r: Array,
        w: Array,
        m: Array,
        v: Array,
        g_SN: Array,
        pace: Pace | Array,
        beta1: float,
        beta2: float,
        epsilon: float,
        decay: float,
    ) -> None:
        self._rule("lamb", (r, w, m, v), g_SN, _pace(pace, beta1, beta2), beta1, beta2, epsilon, decay)

    def trust(self, w: Array, r: Array, squares_2: Array, pace: Pace | Array) -> None:
        at, scale, alpha, _, _ = _pace(pace)
        self._each("trust", w.size, w, r, np.int64(w.size), squares_2, at, scale, alpha)

    def _rule(
        self, name: str, arrays: tuple[Array, ...], g_SN: Array, pace: Numbers, *constants: float,
        more: tuple[Any, ...] = (),
    ) -> None:  # fmt: skip
        n = arrays[0].size
        self._each(name, n, *arrays, *_slots(g_SN), np.int64(n), *pace, *map(np.float32, constants), *more)

    def _each(self, name: str, n: int, *arguments: Any) -> None:
        """A thread an element, or several elements where there are many."""
        self._launch(name, min(-(-n // THREADS), BLOCKS), (THREADS,), *arguments)

    def _rows(self, name: str, rows: int, width: int, *arguments: Any) -> None:
        """A block a row."""
        self._launch(name, min(rows, LARGEST_GRID), (min(THREADS, -(-max(1, width) // 32) * 32),), *arguments)

    def _launch(self, name: str, grid: int, block: tuple[int, ...], *arguments: Any, shared: int = 0) -> None:
        function = self._functions.get(name)
        if function is None:
            function = self._functions[name] = self._module.get_function(name)
        if shared > self._shared.get(name, WITHOUT_ASKING):
            function.max_dynamic_shared_size_bytes = self._shared[name] = shared
        function((max(1, grid),), block, arguments, shared_mem=shared)


def _slots(slots_SN: Array) -> tuple[Any, np.int64, np.int32]:
    """The first slot, the distance to the next in elements, and how many there are."""
    return slots_SN, np.int64(slots_SN.strides[0] // slots_SN.itemsize), np.int32(len(slots_SN))


def _factors(factors: Array | None) -> tuple[Any, np.int32]:
    """Where they are, and whether they are float16."""
    return (NULL, np.int32(0)) if factors is None else (factors, np.int32(factors.dtype == np.float16))


def _pace(pace: Pace | Array, beta1: float = 0.0, beta2: float = 0.0) -> Numbers:
    """A pace array, or the numbers themselves."""
    if isinstance(pace, Pace):
        scale, alpha, correction, root = map(np.float32, steady(pace, beta1, beta2))
        return NULL, scale, alpha, correction, root
    nothing = np.float32(0)
    return pace, nothing, nothing, nothing, nothing


def address(array: Any) -> int:
    """Where a GPU's array begins; 0 for no array."""
    pointer: int = 0 if array is None else array.data.ptr
    return pointer
