"""A whole pass of a small network in three launches: kernels/small.cu, from Python.

With few rows of a narrow network a GPU mostly waits from one launch to the next. Between the gathering of rows and the
pace of the step there are a dozen for three layers, one by one, and here three. Whether that is faster for a batch is
measured where steps are captured (training/captured.py).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpi_parallel.device.expressions import threshold
from mpi_parallel.device.interface import Array, SmallNetwork

# As in small.cu and small_tiles.cu.
DEEPEST, DEEP, SIDE, THREADS, TOGETHER, ABREAST = 6, 128, 32, 512, 2, 256
MOST_CLASSES = 32  # a thread takes the loss of a row
MOST_ROWS = 4096  # of more it is the products that take time, and cublasLt that has the better ones
MOST_BLOCKS = 512  # of those that take rows through the layers: more would only read the weights again
LARGEST = 2**31 - 1  # places are counted in int
MOST_NUMBERS = 1 << 26  # to compute in, 256 MiB: with more, products are what takes time
FLOAT = 4
STATIC = 3072  # bytes of shared memory, at most, beside what a launch asks for
LAYERS = np.dtype(
    [("depth", "i4"), ("hidden", "i4"), ("kept", "i4"), ("of", "i4", DEEPEST + 1)]
    + [(name, "i4", DEEPEST) for name in ("weights", "biases", "output", "gradient")]
)

Launch = Callable[..., None]  # CudaKernels._launch


class SmallPasses:
    """The kernels, for networks that fit into the shared memory of a block."""

    def __init__(self, launch: Launch, shared_bytes: int, ticket: Array) -> None:
        """`shared_bytes` is what a block may have, and `ticket` (1,) uint32 zero between launches."""
        self._launch, self._shared_bytes, self._ticket = launch, shared_bytes, ticket

    def numbers(self, network: SmallNetwork, rows: int) -> int:
        """float32 numbers that `run` computes in; 0 where it cannot take so many rows of this network."""
        widths = network.widths
        narrow = max(widths[1:]) <= ABREAST and widths[-1] <= MOST_CLASSES
        few = 0 < rows <= MOST_ROWS and 2 <= len(widths) - 1 <= DEEPEST
        if not (few and narrow and _shared(widths) <= self._shared_bytes - STATIC):
            return 0
        parts, kept = _sizes(widths, rows)
        places = max(parts, kept, max(rows, 2 * ABREAST) * widths[0])  # all weights are fewer than the last of these
        numbers = parts + kept + 2 * rows
        return 0 if places > LARGEST or numbers > MOST_NUMBERS else numbers

    def run(
        self, network: SmallNetwork, x_BF: Array, keys_B: Array, t_B: Array, weights: Array, merged: Array, room: Array
    ) -> None:
        """See Expressions.small_pass; `room` has `numbers`."""
        widths, layers, rows = network.widths, _layers(network), np.int32(len(x_BF))
        count, tail = len(x_BF), merged[weights.size :]
        parts, kept = _sizes(widths, count)
        cuts = list(accumulate((parts, kept, count, count), initial=0))
        part, keep, loss, hits = (room[start:stop] for start, stop in pairwise(cuts))
        first = _tiles(count) * _tiles(widths[1]) * _slices(widths)
        self._launch("small_first", first, (THREADS,), x_BF, weights, rows, layers, part)
        drop = np.uint32(threshold(network.dropout)), np.float32(1 / (1 - network.dropout))
        self._launch(
            "small_rows", min(MOST_BLOCKS, -(-count // TOGETHER)), (ABREAST,), part, weights, keys_B, t_B, rows, layers,
            *drop, keep, loss, hits, tail, self._ticket, shared=_shared(widths),
        )  # fmt: skip
        tiles = sum(_tiles(ins) * _tiles(outs) for ins, outs in pairwise(widths))
        self._launch("small_weights", tiles, (THREADS,), x_BF, keep, rows, layers, merged, tail[-1:])


@lru_cache(maxsize=16)
def _layers(network: SmallNetwork) -> NDArray[Any]:
    """struct Layers, which is passed by value."""
    widths, depth = network.widths, len(network.widths) - 1
    ends = list(accumulate(widths[1:], initial=0))  # behind the outputs of each layer, and so behind its dz
    hidden = ends[-2]
    layers = np.zeros((), LAYERS)
    layers["depth"], layers["hidden"], layers["kept"] = depth, hidden, hidden + ends[-1]
    layers["of"][: depth + 1] = widths
    layers["weights"][:depth], layers["biases"][:depth] = zip(*network.starts, strict=True)
    layers["output"][:depth], layers["gradient"][:depth] = ends[:-1], [hidden + end for end in ends[:-1]]
    return layers


def _shared(widths: tuple[int, ...]) -> int:
    """Bytes of `room` in small_rows."""
    weights = sum((ins + 1) * (outs | 1) for ins, outs in pairwise(widths[1:]))
    return FLOAT * (weights + TOGETHER * sum(widths[1:-1]) + 3 * TOGETHER * ABREAST)


def _sizes(widths: tuple[int, ...], rows: int) -> tuple[int, int]:
    """Numbers of the parts of the first layer's sums, and of what rows keep."""
    return _slices(widths) * rows * widths[1], rows * (sum(widths[1:-1]) + sum(widths[1:]))


def _slices(widths: tuple[int, ...]) -> int:
    return -(-widths[0] // DEEP)


def _tiles(length: int) -> int:
    return -(-length // SIDE)
