"""A run put together from its parts, as train.py does it, on any communicator: a serial twin for every parallel run."""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from mpi4py import MPI
from numpy.typing import NDArray

from mpi_parallel.config.learning import DataOptions
from mpi_parallel.data_parallel.dataset import open_image_set
from mpi_parallel.data_parallel.evaluation import evaluation_rows
from mpi_parallel.data_parallel.loader import TrainingRows, class_count
from mpi_parallel.data_parallel.memory import Budget
from mpi_parallel.data_parallel.rows import Rows
from mpi_parallel.device import Device, Host
from mpi_parallel.model_parallel.part import ModelPart
from mpi_parallel.mpi.communicator import Communicator
from mpi_parallel.mpi.process_grid import ProcessGrid
from mpi_parallel.nn.mlp import MLP
from mpi_parallel.nn.optimizers import RULES, Optimizer
from mpi_parallel.result_merging.automatic import open_merger
from mpi_parallel.result_merging.merger import Merger
from mpi_parallel.result_merging.metrics import Score, Totals, merge_scores
from mpi_parallel.training.ahead import Steps
from mpi_parallel.training.layout import open_engine, open_model, over_grid
from mpi_parallel.training.step import Engine, train_step

ALONE = Communicator(MPI.COMM_SELF)


def world() -> Communicator:
    """All ranks."""
    return Communicator(MPI.COMM_WORLD)


@dataclass
class Assembly:
    """The parts of a run on the ranks of `comm`."""

    comm: Communicator
    training: TrainingRows
    validation: Rows | None
    test: Rows | None
    model: MLP | ModelPart
    engine: Engine
    merger: Merger
    optimizer: Optimizer
    batch_size: int
    grid: ProcessGrid
    steps: Steps | None = None  # who takes them, where it is not `train`

    def train(self, steps: int, rate: float = 0.01, clip_norm: float = 0.0) -> list[Totals]:
        """Take that many steps from the start of the first epoch."""
        totals: list[Totals] = []
        for epoch in range(steps):  # more than enough
            for batch in self.training.epoch(epoch, self.batch_size):
                if len(totals) == steps:
                    return totals
                totals.append(train_step(self.engine, batch, self.merger, self.optimizer, rate, clip_norm))
        return totals

    def close(self) -> None:
        """Give back what steps are replayed from, and then the merger."""
        if self.steps is not None:
            self.steps.close()
        self.merger.close()

    def weights(self) -> NDArray[np.float32]:
        """All weights that this rank has, flat."""
        return self.model.store.device.to_host(self.model.store.weights).copy()

    def whole(self) -> NDArray[np.float32]:
        """All weights of the whole network, flat, in an order that does not depend on the layout."""
        return np.concatenate([array.ravel() for array in self.model.weights()])

    def score(self, rows: Rows) -> Score:
        """The exact score of all ranks' rows."""
        mine = self.engine.score(rows)
        return merge_scores(self.comm, *(mine if self.grid.speaks else (0.0, 0, 0)))


@cache
def grid_of(ranks: int, pipe: int, tensor: int) -> ProcessGrid:
    """One grid of each kind for all tests, as MPI has not many communicators; `ranks` is MPI's number of theirs."""
    comm = MPI.COMM_WORLD if ranks == MPI.COMM_WORLD.py2f() else MPI.COMM_SELF
    assert ranks == comm.py2f()
    return ProcessGrid(Communicator(comm), pipe, tensor)


def assemble(
    path: Path,
    comm: Communicator,
    *,
    shards: int = 8,
    seed: int = 0,
    hidden: tuple[int, ...] = (9, 7),
    dropout: float = 0.0,
    batch_size: int = 16,
    micro_batch: int | None = None,
    optimizer: str = "sgd",
    weight_decay: float = 0.0,
    groups: int | None = None,
    merge: str | None = None,
    tensor: int = 1,
    pipe: int = 1,
    schedule: str = "1f1b",
    precision: str = "float32",
    wire: str = "float32",
    device: Device | None = None,
    budget: Budget | None = None,
    **data_options: Any,
) -> Assembly:
    """Everything up to the first step."""
    device, everyone = device or Host(), comm
    grid = copy(grid_of(comm.comm.py2f(), pipe, tensor))
    comm = grid.data
    for axis in ("data", "pipe", "tensor", "model"):
        setattr(grid, axis, getattr(grid, axis).on(device))
    data = open_image_set(DataOptions(data=str(path), **data_options), seed, comm)
    first = grid.pipe.rank == 0
    training = TrainingRows(data, shards, seed, comm, device, budget, None, grid.model, groups, first)
    held_out = [
        evaluation_rows(split, training.scaler, comm, device, images=first) for split in (data.validation, data.test)
    ]
    classes = class_count(data, training, held_out, comm)
    model = open_model(device, (data.features, *hidden, classes), grid, dropout, seed, precision, groups is not None)
    engine = open_engine(model, training.rows, micro_batch, schedule, groups is not None)
    update = partial(RULES[optimizer], weight_decay=weight_decay)
    merger = over_grid(
        open_merger(
            merge or ("exact" if groups else "flat"), model.store, comm.on(device), update, groups, wire
        ).merger,
        grid,
    )
    return Assembly(everyone, training, *held_out, model, engine, merger, update(model.store), batch_size, grid)
