"""A whole pass of a small network in three launches: kernels/small.cu, from Python.

With few rows of a narrow network a GPU mostly waits from one launch to the next. Between the gathering of rows and the
pace of the step there are a dozen for three layers, one by one, and here three. Whether that is faster for a batch is
measured where steps are captured (training/captured.py).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mpi_parallel.device.expressions import threshold
from mpi_parallel.device.interface import Array, SmallNetwork

# As in small.cu and small_tiles.cu.
DEEPEST, ABREAST, LOADS = 6, 256, 8
THREADS = {32: 512, 64: 256}  # of a block, by the side of its tile
MOST_CLASSES = 32  # a thread takes the loss of a row
MOST_ROWS = 4096  # of more it is the products that take time, and cublasLt that has the better ones
MANY_ROWS = 512  # of more the tiles are large, and more rows together in a block
FULL = {32: 128, 64: 256}  # blocks that are enough for a GPU: rows and terms are shared out among so many
TICKETS = 128  # tiles that several blocks may share, at most
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


class Plan(NamedTuple):
    """How a batch of so many rows goes through; of the shapes alone, and so is the order of all sums."""

    side: int  # of a tile
    together: int  # rows of a block in small_rows
    length: int  # terms of a slice of the first layer's sums
    slices: int
    tiles: int  # of the gradients
    share: int  # rows of which a block makes the sums of a tile
    shares: int


class SmallPasses:
    """The kernels, for networks that fit into the shared memory of a block."""

    def __init__(self, launch: Launch, shared_bytes: int, ticket: Array, tickets: Array) -> None:
        """`shared_bytes` is what a block may have; `ticket` (1,) and `tickets` (TICKETS,), uint32, stay zero."""
        self._launch, self._shared_bytes, self._ticket, self._tickets = launch, shared_bytes, ticket, tickets

    def numbers(self, network: SmallNetwork, rows: int) -> int:
        """float32 numbers that `run` computes in; 0 where it cannot take so many rows of this network."""
        widths = network.widths
        narrow = max(widths[1:]) <= ABREAST and widths[-1] <= MOST_CLASSES
        few = 0 < rows <= MOST_ROWS and 2 <= len(widths) - 1 <= DEEPEST
        if not (few and narrow and _shared(widths, 2) <= self._shared_bytes - STATIC):
            return 0
        sizes = _sizes(widths, rows, self._plan(widths, rows))
        places = max(*sizes, max(rows, 2 * ABREAST) * widths[0])  # all weights are fewer than the last of these
        return 0 if places > LARGEST or sum(sizes) > MOST_NUMBERS else sum(sizes)

    def run(
        self, network: SmallNetwork, x_BF: Array, keys_B: Array, t_B: Array, weights: Array, merged: Array, room: Array
    ) -> None:
        """See Expressions.small_pass; `room` has `numbers`."""
        widths, layers, rows = network.widths, _layers(network), np.int32(len(x_BF))
        count, tail = len(x_BF), merged[weights.size :]
        plan = self._plan(widths, count)
        cuts = list(accumulate(_sizes(widths, count, plan), initial=0))
        part, keep, shares, loss, hits = (room[start:stop] for start, stop in pairwise(cuts))
        first = _tiles(count, plan.side) * _tiles(widths[1], plan.side) * plan.slices
        self._launch(
            f"small_first_{plan.side}", first, (THREADS[plan.side],), x_BF, weights, rows, layers,
            np.int32(plan.length), part,
        )  # fmt: skip
        drop = np.uint32(threshold(network.dropout)), np.float32(1 / (1 - network.dropout))
        self._launch(
            f"small_rows_{plan.together}", min(MOST_BLOCKS, -(-count // plan.together)), (ABREAST,), part, weights,
            keys_B, t_B, rows, layers, np.int32(plan.slices), *drop, keep, loss, hits, tail, self._ticket,
            shared=_shared(widths, plan.together),
        )  # fmt: skip
        self._launch(
            f"small_weights_{plan.side}", plan.tiles * plan.shares, (THREADS[plan.side],), x_BF, keep, rows, layers,
            np.int32(plan.share), shares, merged, tail[-1:], self._tickets,
        )  # fmt: skip

    def _plan(self, widths: tuple[int, ...], rows: int) -> Plan:
        side = 64 if rows > MANY_ROWS else 32
        length = deep = THREADS[side] * LOADS // side
        if side == 64:  # else a slice is as long as what is at hand
            length = _part(widths[0], FULL[side] // (_tiles(rows, side) * _tiles(widths[1], side)), deep)
        tiles = sum(_tiles(ins, side) * _tiles(outs, side) for ins, outs in pairwise(widths))
        share = _part(rows, FULL[side] // tiles, deep)
        together = 4 if side == 64 and _shared(widths, 4) <= self._shared_bytes - STATIC else 2
        return Plan(side, together, length, -(-widths[0] // length), tiles, share, -(-rows // share))


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


def _shared(widths: tuple[int, ...], together: int) -> int:
    """Bytes of `room` in small_rows."""
    weights = sum((ins + 1) * (outs | 1) for ins, outs in pairwise(widths[1:]))
    return FLOAT * (-(-weights // 4) * 4 + together * (sum(widths[1:-1]) + 3 * ABREAST))


def _sizes(widths: tuple[int, ...], rows: int, plan: Plan) -> tuple[int, ...]:
    """Numbers of the parts of the first layer's sums, of what rows keep, of shares of gradients, losses and hits."""
    of_tile = plan.side * (plan.side + 1)
    shares = plan.tiles * plan.shares * of_tile if plan.shares > 1 else 0
    return plan.slices * rows * widths[1], rows * (sum(widths[1:-1]) + sum(widths[1:])), shares, rows, rows


def _part(whole: int, parts: int, unit: int) -> int:
    """What each of so many at most takes of it, a multiple of the unit."""
    return -(-whole // (max(1, parts) * unit)) * unit


def _tiles(length: int, side: int) -> int:
    return -(-length // side)
