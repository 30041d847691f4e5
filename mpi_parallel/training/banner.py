"""What a run is, told at its start: to people by the banner, to programs by the start event."""

from __future__ import annotations

import os
import platform
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

import h5py
import mpi4py
import numpy as np
from mpi4py import MPI

import mpi_parallel
from mpi_parallel.data_parallel.dataset import SPLITS
from mpi_parallel.device import Device
from mpi_parallel.device.cuda_choice import gpu_map
from mpi_parallel.device.host import blas_complaint, fair_threads, set_threads, usable_cores
from mpi_parallel.mpi.communicator import Communicator
from mpi_parallel.mpi.process_grid import ProcessGrid
from mpi_parallel.nn.mlp import parameter_count
from mpi_parallel.options import to_tables
from mpi_parallel.result_merging.automatic import Choice
from mpi_parallel.training.log import logger

if TYPE_CHECKING:
    from mpi_parallel.training.planning import Layout
    from mpi_parallel.training.run import Run


def versions() -> dict[str, str]:
    """Of everything whose version can change a result."""
    return {
        "mpi_parallel": mpi_parallel.__version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "mpi4py": mpi4py.__version__,
        "mpi": library(),
        "h5py": h5py.__version__,
        "hdf5": h5py.version.hdf5_version,
    }


def library() -> str:
    """Name and version of the MPI library."""
    name, version = MPI.get_vendor()
    return f"{name} {'.'.join(map(str, version))}"


def settle_threads(asked: int | None, node: Communicator) -> int:
    """Give BLAS and OpenMP the threads that were asked for, or this rank's fair share of the node's cores; how many."""
    mine = usable_cores()
    on_node = node.gather_text(",".join(map(str, mine)))
    fair = fair_threads(mine, [frozenset(map(int, cores.split(","))) for cores in on_node])
    # Slurm may show each of a node's ranks a node of its own, with all of its cores.
    count = asked or min(fair, int(os.environ.get("SLURM_CPUS_PER_TASK") or fair))
    set_threads(count)
    return count


def precision_line(precision: str, device: Device) -> str:
    """What is multiplied in which numbers, for people."""
    if precision == "float32":
        return precision
    rounded = ", rounded to it on the CPU, which is slower than float32" if device.kind == "cpu" else ""
    return f"{precision} in matrix products{rounded}; weights and sums in float32"


def announce(run: Run, grid: ProcessGrid, threads: int, choice: Choice, plan: Layout) -> None:
    """Show the banner, write the configuration and the start event."""
    run.folder.keep(run.config)
    device, hosts = run.engine.store.device, run.comm.gather_text(platform.node())
    held = {name: len(split) for name in SPLITS if (split := getattr(run.data, name)) is not None}
    _start_event(run, grid, threads, choice, plan, hosts, held)
    for line in _lines(run, grid, threads, choice, plan, hosts, held):
        logger.info(line)
    if device.place:
        mapped, doubles = gpu_map(hosts, run.comm.gather_text(device.place))
        for line in mapped:
            logger.info(f"gpu         {line}")
        for double in doubles:
            logger.warning(double)
    if device.lacks:
        logger.warning(f"no GPU is used: {device.lacks}")
    complaints = run.comm.gather_text(blas_complaint() or "")
    if (mine := complaints[run.comm.rank]) and complaints.index(mine) == run.comm.rank:  # one rank tells it for all
        logger.warning(mine)


def _start_event(
    run: Run, grid: ProcessGrid, threads: int, choice: Choice, plan: Layout, hosts: list[str], held: dict[str, int]
) -> None:
    """Tell programs."""
    config, device = run.config, run.engine.store.device
    facts = {
        "device": device.kind,
        "precision": config.device.precision,
        "merge": choice.merger.name,
        "merge_seconds": choice.seconds,
        "holding": run.training.holding,
        "parameters": parameter_count(run.engine.model.widths),
        "groups": config.groups,  # with what follows, what the bits of a reproducible run depend on
        "arithmetic": device.describe(),
        "memory_forecast": plan.need.total,  # bytes of a rank beside the program, and the program's own
        "memory_program": plan.program,
    }
    sizes = {f"{name}_samples": count for name, count in held.items()}
    run.folder.event(
        "start", ranks=run.comm.size, grid=grid.shape, hosts=list(dict.fromkeys(hosts)), **facts, **sizes,
        threads=threads, config=to_tables(config), versions=versions(),
    )  # fmt: skip


def _lines(
    run: Run, grid: ProcessGrid, threads: int, choice: Choice, plan: Layout, hosts: list[str], held: dict[str, int]
) -> Iterator[str]:
    """Tell people."""
    data, training, device, widths = run.data, run.training, run.engine.store.device, run.engine.model.widths
    counts = Counter(hosts)
    where = ", ".join(f"{count} on {host}" for host, count in list(counts.items())[:8]) + ", …" * (len(counts) > 8)
    layout = " x ".join(f"{name} {size}" for name, size in grid.shape.items())
    yield f"mpi_parallel {mpi_parallel.__version__}, Python {platform.python_version()}, {library()}"
    yield f"ranks       {len(hosts)}: {where}; {threads} thread{'s' * (threads > 1)} a rank"
    yield f"device      {device.describe()}"
    sizes = ", ".join(f"{count:,} {name}" for name, count in held.items())
    yield f"data        {data.path}: {sizes}; {data.dtype} {' x '.join(map(str, data.shape))}"
    yield f"held        {training.holding}, {training.told()}"
    yield f"network     {' - '.join(map(str, widths))}: {parameter_count(widths):,} parameters"
    yield f"precision   {precision_line(run.config.device.precision, device)}"
    yield f"layout      {layout}" + (f": {plan.why}" if plan.why else "")
    yield f"memory      {plan.told}"
    yield f"merged by   {choice}"
