"""What a grid wants: model, engine and merger of whole replicas, or of parts of the model."""

from __future__ import annotations

from collections.abc import Sequence

from mpi_parallel.data_parallel.evaluation import EVALUATION_ROWS
from mpi_parallel.data_parallel.replica import Replica
from mpi_parallel.data_parallel.rows import Rows
from mpi_parallel.device import Device
from mpi_parallel.device.clock import Clock
from mpi_parallel.model_parallel.part import ModelPart
from mpi_parallel.model_parallel.pipeline import PipelineStage
from mpi_parallel.model_parallel.schedules import SCHEDULES
from mpi_parallel.mpi.process_grid import ProcessGrid
from mpi_parallel.nn.mlp import MLP
from mpi_parallel.result_merging.across import Across
from mpi_parallel.result_merging.merger import Merger
from mpi_parallel.training.step import Engine


def open_model(
    device: Device,
    widths: Sequence[int],
    grid: ProcessGrid,
    dropout: float,
    seed: int | None,
    precision: str = "float32",
    whole_layers: bool = False,
) -> MLP | ModelPart:
    """The network of these widths, or this rank's part of it. Raises InputError where it cannot be split like that."""
    if grid.model.size == 1:
        return MLP(device, widths, dropout, seed, precision)
    return ModelPart(device, widths, grid, dropout, seed, precision, whole_layers)


def open_engine(
    model: MLP | ModelPart, rows: Rows, micro_batch: int | None, schedule: str = "1f1b", grouped: bool = False,
    clock: Clock | None = None,
) -> Engine:  # fmt: skip
    """Who runs batches of these rows through the model; `grouped` when the rows of a batch are summed in groups."""
    clock = clock or Clock()
    if isinstance(model, MLP) or model.grid.pipe.size == 1:
        return Replica(model, rows, clock, micro_batch)
    return PipelineStage(model, rows, clock, SCHEDULES[schedule], micro_batch, grouped, EVALUATION_ROWS)


def over_grid(merger: Merger, grid: ProcessGrid) -> Merger:
    """This merger of the data axis, for the whole grid."""
    return merger if grid.model.size == 1 else Across(merger, grid)
