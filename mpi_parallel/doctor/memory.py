"""What memory a rank will need, on each grid of these ranks, and which grid `--layout auto` would take."""

from __future__ import annotations

from dataclasses import asdict

from mpi_parallel.config import TrainConfig
from mpi_parallel.data_parallel.dataset import ImageSet
from mpi_parallel.doctor.report import Section
from mpi_parallel.mpi.communicator import Communicator
from mpi_parallel.options import InputError
from mpi_parallel.training.forecast import Grid, Sizes, limit_of
from mpi_parallel.training.planning import possible, settle_layout, sizes_of

AXES = "data", "pipe", "tensor"
SHOWN = 8  # grids in the table


def check(
    config: TrainConfig, data: ImageSet | None, widths: tuple[int, ...], world: Communicator, node: Communicator
) -> Section:
    """The forecast for a network of these widths on these data; without data for their weights and one batch."""
    section = Section("memory")
    sizes = Sizes(widths, config.batch.batch_size, config.batch.micro_batch, config.optimizer.optimizer)
    if data is not None:
        sizes = sizes_of(config, data, widths[-1], -world.maximum(-node.size))
    mine, whose = limit_of(None, node.size)
    limit = -world.maximum(-mine)
    section.tell("limit", f"{limit / 2**20:,.0f} MiB for a rank: {whose}", limit_bytes=limit, limit_of=whose)
    found = possible(sizes, world.size)
    section.facts["forecasts"] = [
        {"grid": dict(zip(AXES, grid, strict=True)), "bytes": need.total, **asdict(need)} for grid, need in found
    ]
    section.rows.append(("grids", "data x pipe x tensor ranks: what a rank needs beside the program"))
    section.rows += [(_words(grid), str(need)) for grid, need in found[:SHOWN]]
    fitting = [grid for grid, need in found if need.total <= limit]
    if not fitting:
        section.problems.append(f"no grid of {world.size} ranks has the memory for {' - '.join(map(str, widths))}")
    elif fitting[0] != found[0][0]:
        section.warnings.append(
            f"the ranks have too little memory for {_words(found[0][0])}; {_words(fitting[0])} fits (--layout auto)"
        )
    if data is not None and fitting:
        try:
            layout = settle_layout(config, data, world, node)
            section.tell(
                "layout auto", f"{_words(layout.grid)}; {layout.why or 'one rank has no choice'}",
                layout=dict(zip(AXES, layout.grid, strict=True)), layout_why=layout.why,
            )  # fmt: skip
        except InputError as error:
            section.problems.append(str(error))
    return section


def _words(grid: Grid) -> str:
    """2 x 1 x 1: data, pipe and tensor ranks."""
    return " x ".join(map(str, grid))
