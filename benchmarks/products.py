"""The products of layers by kernels/products.c and by NumPy's BLAS, in turn: `python benchmarks/products.py`.

GFLOP/s of one thread, by the CPU time that it takes, so that what else runs on the machine disturbs little: the median
of the rounds.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from statistics import median
from time import thread_time

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"  # before NumPy loads its BLAS

import numpy as np

from mpi_parallel.device.expressions import Expressions
from mpi_parallel.device.openmp import OpenMP

SIZES = ("128x784x128", "128x128x64", "128x64x10", "256x1024x1024", "64x784x4096", "64x4096x4096", "256x4096x4096")
WORK = 2e8  # floating-point operations of a turn, at the least


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=SIZES, help="rows x inputs x outputs of a layer")
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    ours, blas = OpenMP(), Expressions(np)
    print(f"{ours.name} and the BLAS, GFLOP/s\nlayer               y = x W      dx = dz W^T      dW = x^T dz")
    for size in options.sizes:
        rows, inputs, outputs = map(int, size.split("x"))
        cells = []
        for calls in zip(products(ours, rows, inputs, outputs), products(blas, rows, inputs, outputs), strict=True):
            work = 2.0 * rows * inputs * outputs
            cells.append("".join(f"{1e-9 * work / seconds:7.0f}" for seconds in in_turn(calls, work, options.rounds)))
        print(f"{size:15}{'   '.join(cells)}", flush=True)
    return 0


def products(kernels: Expressions, rows: int, inputs: int, outputs: int) -> list[Callable[[], None]]:
    """Forward, the gradient of the input and that of the weights."""
    random = np.random.default_rng(0)
    shapes = (rows, inputs), (inputs, outputs), (rows, outputs)
    x, W, dz = (random.standard_normal(shape, np.float32) for shape in shapes)
    y, dx, dW = np.empty_like(dz), np.empty_like(x), np.empty_like(W)
    return [
        lambda: kernels.linear(x, W, None, y, False),
        lambda: kernels.input_gradient(dz, W, dx),
        lambda: kernels.weight_gradient(x, dz, dW, None, False),
    ]


def in_turn(calls: tuple[Callable[[], None], ...], work: float, rounds: int) -> list[float]:
    """Seconds of CPU time of each call, the median over the rounds."""
    taken: list[list[float]] = [[] for _ in calls]
    repeats = max(1, int(WORK / work))
    for _ in range(rounds):
        for call, seconds in zip(calls, taken, strict=True):
            began = thread_time()
            for _ in range(repeats):
                call()
            seconds.append((thread_time() - began) / repeats)
    return [median(seconds) for seconds in taken]


if __name__ == "__main__":
    raise SystemExit(main())
