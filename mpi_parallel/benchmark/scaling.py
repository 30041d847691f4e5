"""`mpirun -n 2 python -m mpi_parallel.benchmark scaling`: the same step on different layouts of the same ranks.

The layouts take turns, a round each, so that what else goes on in the machine meets them all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np

from mpi_parallel.benchmark.timing import keep, settle
from mpi_parallel.config.running import DeviceOptions
from mpi_parallel.data_parallel.loader import Batch
from mpi_parallel.data_parallel.rows import Rows
from mpi_parallel.data_parallel.scaling import Scaler
from mpi_parallel.device import Device
from mpi_parallel.device.clock import PHASES
from mpi_parallel.model_parallel.placement import layer_costs
from mpi_parallel.mpi.communicator import Communicator
from mpi_parallel.mpi.partition import block
from mpi_parallel.mpi.process_grid import ProcessGrid
from mpi_parallel.nn.optimizers import RULES
from mpi_parallel.options import option
from mpi_parallel.options.command_line import parse
from mpi_parallel.options.values import at_least
from mpi_parallel.result_merging.automatic import open_merger
from mpi_parallel.training.banner import library
from mpi_parallel.training.layout import open_engine, open_model, over_grid
from mpi_parallel.training.step import Engine, train_step

SENTENCE = (
    "Compare the ways to divide a training step among the ranks: by data, by slices of layers, by stages of layers."
)
ROWS = 2048  # images a rank holds


@dataclass(frozen=True, kw_only=True)
class ScalingOptions:
    """what is measured"""

    features: int = option(784, "numbers in an image", check=at_least(1))
    hidden: tuple[int, ...] = option((4096, 4096), "widths of the hidden layers", check=at_least(1))
    classes: int = option(10, "number of classes", check=at_least(2))
    batch_size: int = option(512, "rows of a step over all ranks together", check=at_least(1))
    micro_batches: int = option(8, "parts of a batch in the pipeline", check=at_least(1))
    optimizer: str = option("adam", "update rule", choices=tuple(RULES))
    rounds: int = option(5, "turns of each layout, of which the median is told", check=at_least(1))
    steps: int = option(3, "steps of a turn", check=at_least(1))
    to: str | None = option(None, "also write the figures as JSON", name="FILE.json")


@dataclass(frozen=True, kw_only=True)
class ScalingConfig:
    """All options of `benchmark scaling`."""

    scaling: ScalingOptions
    device: DeviceOptions


@dataclass
class Layout:
    """A way to divide the step, and the seconds of its steps in each round."""

    name: str
    engine: Engine
    step: Callable[[], Any]
    seconds: list[float] = field(default_factory=list)
    phases: list[list[float]] = field(default_factory=list)  # this rank's, by round


def main(world: Communicator, arguments: list[str]) -> int:
    """Measure, show and keep; the exit status."""
    config = parse(ScalingConfig, arguments, "mpi_parallel.benchmark scaling", SENTENCE, speaks=world.rank == 0)
    device, threads = settle(config.device, world)
    options = config.scaling
    kinds = {"data": (1, 1, "1f1b"), "tensor": (1, world.size, "1f1b")}
    if world.size <= len(options.hidden) + 1:
        kinds |= {"pipe gpipe": (world.size, 1, "gpipe"), "pipe 1f1b": (world.size, 1, "1f1b")}
    layouts = [_layout(name, *kind, options, device, world.on(device)) for name, kind in kinds.items()]
    for number in range(options.rounds + 1):
        for layout in layouts:
            _turn(layout, options.steps, world)
            if number == 0:  # the first turn warms up
                layout.seconds.clear()
                layout.phases.clear()
    figures = _figures(layouts, options, world) | {"device": device.describe(), "threads": threads}
    if world.rank == 0:
        _show(figures)
    keep(figures, config, options.to, world)
    return 0


def _layout(
    name: str, pipe: int, tensor: int, schedule: str, options: ScalingOptions, device: Device, world: Communicator
) -> Layout:
    grid = ProcessGrid(world, pipe, tensor)
    model = open_model(device, (options.features, *options.hidden, options.classes), grid, 0.0, 0)
    random = np.random.default_rng(grid.data.rank)
    images = random.integers(0, 256, (ROWS, options.features), np.uint8)
    labels = random.integers(0, options.classes, ROWS).astype(np.int32)
    rows = Rows(images, labels, Scaler.of(72.9, 90.0), device)
    mine = len(block(options.batch_size, grid.data.size, grid.data.rank))
    batch = Batch(device.to_device(random.integers(0, ROWS, mine)), device.to_device(np.zeros(mine, np.uint32)))
    engine = open_engine(model, rows, -(-mine // options.micro_batches) if pipe > 1 else None, schedule)
    rule = RULES[options.optimizer]
    merger = over_grid(open_merger("auto", model.store, grid.data, rule).merger, grid)
    step = partial(train_step, engine, batch, merger, rule(model.store), 1e-3)
    return Layout(f"{name}, merged by {merger.name}" if name == "data" else name, engine, step)


def _turn(layout: Layout, steps: int, world: Communicator) -> None:
    """Take some steps, and note the seconds of one."""
    world.meet()
    layout.engine.clock.reset()
    began = perf_counter()
    for _ in range(steps):
        layout.step()
    world.meet()
    layout.seconds.append((perf_counter() - began) / steps)
    layout.phases.append([layout.engine.clock.seconds[phase] / steps for phase in PHASES])


def _figures(layouts: list[Layout], options: ScalingOptions, world: Communicator) -> dict[str, Any]:
    first, table = layouts[0], {}
    for layout in layouts:
        phases = world.gather(np.median(np.array(layout.phases), axis=0))
        ratios = [one / other for one, other in zip(first.seconds, layout.seconds, strict=True)]
        table[layout.name] = {
            "samples_per_second": options.batch_size / median(layout.seconds),
            "of_data": median(ratios),
            "compute_seconds_by_rank": phases[:, PHASES.index("compute")].tolist(),
            "merge_seconds_by_rank": phases[:, PHASES.index("merge")].tolist(),
            "update_seconds_by_rank": phases[:, PHASES.index("update")].tolist(),
        }
    costs = layer_costs((options.features, *options.hidden, options.classes))
    return {"ranks": world.size, "layouts": table, "largest_layer": max(costs) / sum(costs)}


def _show(figures: dict[str, Any]) -> None:
    print(f"{figures['ranks']} ranks, {library()}, {figures['device']}")
    print("layout                       samples/s  of data   ms by rank in compute / merge / update")
    for name, row in figures["layouts"].items():
        phases = (row[f"{phase}_seconds_by_rank"] for phase in ("compute", "merge", "update"))
        times = " / ".join(" ".join(f"{1e3 * seconds:.0f}" for seconds in ranks) for ranks in phases)
        print(f"{name:27} {row['samples_per_second']:10,.0f}  {row['of_data']:7.0%}   {times}")
    print(f"The largest layer is {figures['largest_layer']:.0%} of the products: no stage of a pipeline takes less.")
