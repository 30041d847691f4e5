"""Which grid a run takes, and whether its ranks' memory will do: settled before anything large is allocated.

`--layout auto` looks at every grid of the ranks. Those whose forecast (forecast.py) is beyond a rank's memory are out;
of the others it takes the one whose step it estimates to be the shortest, from speeds that it measures in some
milliseconds. Grids with more data ranks come first, and another one has to be faster by more than a guess' error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import ceil
from statistics import median
from time import perf_counter

import numpy as np

from mpi_parallel.config import TrainConfig
from mpi_parallel.data_parallel.dataset import ImageSet
from mpi_parallel.data_parallel.memory import resident
from mpi_parallel.device import Device
from mpi_parallel.model_parallel.micro_batch import PER_STAGE
from mpi_parallel.model_parallel.placement import cuts_of, place, stage_costs
from mpi_parallel.mpi.communicator import Communicator
from mpi_parallel.mpi.process_grid import divided
from mpi_parallel.nn.mlp import parameter_count
from mpi_parallel.options import InputError
from mpi_parallel.options.values import bytes_of
from mpi_parallel.training.checkpoints.saver import NEVER
from mpi_parallel.training.forecast import Forecast, Grid, Sizes, forecast, limit_of

FASTER = 0.8  # of the time of a simpler grid, or the simpler one is taken
HALF_RATE = 24  # rows with which BLAS reaches half of its rate
SHARED = 0.25  # of the time of a sum by messages: one in memory that a node's ranks share
MOVED = 28  # bytes that the update of a weight reads and writes
MEMORY = 1e10  # bytes a second
SIDE, ROWS, SENT = 1024, 256, 1 << 18  # of the product and the message that are timed


@dataclass(frozen=True)
class Layout:
    """The grid of a run, what a rank needs on it, and why it was taken, for people; empty where it was asked for."""

    grid: Grid
    need: Forecast
    limit: int  # bytes a rank may still take
    whose: str  # who says so
    program: int  # bytes that this process had in memory before
    why: str = ""

    @property
    def told(self) -> str:
        """The account, for people."""
        return f"{self.need} beside the program, of {self.limit / 2**20:,.0f} MiB ({self.whose})"


@dataclass(frozen=True)
class Speeds:
    """What was measured here: multiplications and bytes a second of a rank, seconds of the smallest message."""

    products: float
    bytes: float
    latency: float

    def __str__(self) -> str:
        return (
            f"products of {2e-9 * self.products:,.0f} GF/s, sums of {1e-9 * self.bytes:,.1f} GB/s "
            f"that take at least {1e6 * self.latency:,.0f} us"
        )


def settle_layout(config: TrainConfig, data: ImageSet, world: Communicator, node: Communicator) -> Layout:
    """The grid that was asked for, or the best one. Raises InputError where a rank has too little memory for it."""
    options = config.parallel
    fewest = -world.maximum(-node.size)  # what ranks share on a node they share least there
    sizes = sizes_of(config, data, classes_of(data, world), fewest)
    asked = None if options.rank_memory is None else bytes_of(options.rank_memory)
    mine, whose = limit_of(asked, node.size)
    limit = -world.maximum(-mine)  # the same on all ranks
    fitting = [(grid, need) for grid, need in possible(sizes, world.size) if need.total <= limit]
    if options.layout == "auto":
        return _proposed(sizes, fitting, limit, whose, world)
    grid = divided(world.size, options.pipe, options.tensor), options.pipe, options.tensor
    need = forecast(sizes, grid)
    if need.total > limit:
        raise InputError(
            f"a rank needs {need} beside the program, and {whose} leaves {max(0, limit) / 2**20:,.0f} MiB for it: "
            + (f"{_words(fitting[0][0])} would fit (--layout auto), or " if fitting else "")
            + "use more ranks, a smaller --batch-size or --micro-batch, or narrower layers"
        )
    return Layout(grid, need, limit, whose, resident())


def sizes_of(config: TrainConfig, data: ImageSet, classes: int, ranks_of_node: int) -> Sizes:
    """What the memory of this run depends on."""
    held_out = sum(len(split) for split in (data.validation, data.test) if split is not None)
    return Sizes(
        (data.features, *config.model.hidden, classes),
        config.batch.batch_size,
        config.batch.micro_batch,
        config.optimizer.optimizer,
        config.parallel.merge,
        config.parallel.pipe_schedule,
        config.model.dropout > 0,
        config.device.precision != "float32",
        config.groups,
        len(data.train),
        held_out,
        data.features * data.dtype.itemsize,
        0 if config.run.checkpoint_every == NEVER else 1 + (data.validation is not None),
        ranks_of_node,
    )


def classes_of(data: ImageSet, world: Communicator) -> int:
    """How many classes there are, by the names in the file or by the labels of the training split."""
    if data.classes is not None:
        return len(data.classes)
    mine = data.train.largest_label(range(len(data.train))) if world.rank == 0 else -1
    return 1 + world.maximum(mine)


def possible(sizes: Sizes, ranks: int) -> list[tuple[Grid, Forecast]]:
    """The grids of so many ranks on which the network can be cut, most data ranks first, then most slices."""
    divisors = [n for n in range(1, ranks + 1) if ranks % n == 0]
    grids = [(ranks // (p * t), p, t) for t in divisors for p in divisors if ranks % (p * t) == 0]
    found = []
    for grid in sorted(grids, key=lambda grid: (-grid[0], grid[1])):
        try:
            found.append((grid, forecast(sizes, grid)))
        except InputError:  # more stages than layers, or slices of nothing
            continue
    return found


def account(sizes: Sizes, ranks: int) -> Iterator[str]:
    """What a rank will need on each grid of so many ranks, for people."""
    yield (
        f"{'memory':<11} of a rank, beside some 60 MiB of the program itself, for {' - '.join(map(str, sizes.widths))} "
        f"with {sizes.optimizer} in batches of {sizes.batch_size:,}:"
    )
    yield from (f"            {_words(grid)}: {need}" for grid, need in possible(sizes, ranks))


def measure(world: Communicator, device: Device) -> Speeds:
    """The slowest rank's speeds, alike on all."""
    xp = device.xp
    a, b, c = (xp.zeros(shape, np.float32) for shape in ((ROWS, SIDE), (SIDE, SIDE), (ROWS, SIDE)))
    message, word = xp.zeros(SENT, np.float32), xp.zeros(1, np.float32)

    def product() -> None:
        xp.matmul(a, b, out=c)
        device.synchronize()

    seconds = [_timed(call, world) for call in (product, lambda: world.sum(message), lambda: world.sum(word))]
    once, moved, latency = (world.maximum(round(1e9 * one)) / 1e9 for one in seconds)
    return Speeds(ROWS * SIDE * SIDE / once, 4 * SENT / max(1e-9, moved - latency), latency)


def estimated(sizes: Sizes, grid: Grid, speeds: Speeds) -> float:
    """Seconds of a step: its products, its messages and the update of the weights; to compare grids with."""
    data, pipe, tensor = grid
    widths, rows = sizes.widths, ceil(sizes.batch_size / data)
    whole = sizes.groups is not None
    together = sizes.micro_batch or (ceil(rows / (PER_STAGE * pipe)) if pipe > 1 else rows)
    count = ceil(rows / together)
    busiest = max(stage_costs(widths, place(widths, pipe, tensor, whole))) / tensor
    slowed = (together + HALF_RATE) / together * (count + pipe - 1) / count
    seconds = rows * busiest * slowed / speeds.products
    weights = parameter_count(widths) / (pipe * tensor)
    if data > 1:
        near = sizes.ranks_of_node == data * pipe * tensor and sizes.merge in ("auto", "window")
        seconds += (SHARED if near else 1) * 4 * weights * 2 * (data - 1) / data / speeds.bytes + speeds.latency
    if tensor > 1:
        sums = [cut.whole[cut.kind == "rows"] for cut in cuts_of(widths, tensor, 0) if cut.number or cut.kind == "rows"]
        seconds += 4 * rows * sum(sums) * 2 * (tensor - 1) / tensor / speeds.bytes + len(sums) * count * speeds.latency
    if pipe > 1:
        seconds += 8 * rows * max(widths[1:-1], default=0) / speeds.bytes + 2 * count * speeds.latency
    return seconds + MOVED * weights / data / MEMORY


def _proposed(
    sizes: Sizes, fitting: Sequence[tuple[Grid, Forecast]], limit: int, whose: str, world: Communicator
) -> Layout:
    """The best of the grids that fit. Raises InputError where none does."""
    grids = possible(sizes, world.size)
    if not fitting:
        grid, need = min(grids, key=lambda one: one[1].total)
        raise InputError(
            f"--layout auto: no grid of {world.size} ranks fits. {_words(grid)} takes least, {need} beside the program "
            f"a rank, and {whose} leaves {max(0, limit) / 2**20:,.0f} MiB: use more ranks, a smaller --batch-size or "
            "--micro-batch, or narrower layers"
        )
    speeds = measure(world, world.device)
    times = {grid: estimated(sizes, grid, speeds) for grid, _ in fitting}
    best = next(grid for grid, one in times.items() if FASTER * one <= min(times.values()))
    others = ", ".join(f"{_words(grid)} {1e3 * one:,.1f} ms" for grid, one in times.items() if grid != best)
    first, need_of_first = grids[0]
    too_much = "" if first in times else f"{_words(first)} would take {need_of_first.total / 2**20:,.0f} MiB a rank; "
    why = (
        f"{too_much}{len(fitting)} of {len(grids)} grids fit in {limit / 2**20:,.0f} MiB; estimated "
        f"{1e3 * times[best]:,.1f} ms a step" + (f" (others: {others})" if others else "") + f", from {speeds}"
    )
    return Layout(best, dict(fitting)[best], limit, whose, resident(), why)


def _words(grid: Grid) -> str:
    """data 1 x pipe 2 x tensor 1."""
    return " x ".join(f"{name} {size}" for name, size in zip(("data", "pipe", "tensor"), grid, strict=True))


def _timed(call: Callable[[], None], world: Communicator) -> float:
    """Median seconds of a call after a first one."""
    seconds = []
    for _ in range(6):
        world.meet()
        began = perf_counter()
        call()
        seconds.append(perf_counter() - began)
    return median(seconds[1:])
