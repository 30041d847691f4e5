"""A run put together from its parts, as train.py does it, on any communicator: a serial twin for every parallel run."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from mpi4py import MPI
from numpy.typing import NDArray

from mpi_parallel.config import DataOptions
from mpi_parallel.data_parallel.dataset import open_image_set
from mpi_parallel.data_parallel.loader import Rows, TrainingRows, class_count, evaluation_rows
from mpi_parallel.data_parallel.replica import Replica
from mpi_parallel.device import Host
from mpi_parallel.device.clock import Clock
from mpi_parallel.mpi.communicator import Communicator
from mpi_parallel.nn.mlp import MLP
from mpi_parallel.nn.optimizers import RULES, Optimizer
from mpi_parallel.result_merging.automatic import open_merger
from mpi_parallel.result_merging.merger import Merger
from mpi_parallel.result_merging.metrics import Score, Totals, merge_scores
from mpi_parallel.training.step import train_step

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
    model: MLP
    engine: Replica
    merger: Merger
    optimizer: Optimizer
    batch_size: int

    def train(self, steps: int, rate: float = 0.01, clip_norm: float = 0.0) -> list[Totals]:
        """Take that many steps from the start of the first epoch."""
        totals: list[Totals] = []
        for epoch in range(steps):  # more than enough
            for batch in self.training.epoch(epoch, self.batch_size):
                if len(totals) == steps:
                    return totals
                totals.append(train_step(self.engine, batch, self.merger, self.optimizer, rate, clip_norm))
        return totals

    def weights(self) -> NDArray[np.float32]:
        """All weights, flat."""
        return self.model.store.weights.copy()

    def score(self, rows: Rows) -> Score:
        """The exact score of all ranks' rows."""
        return merge_scores(self.comm, *self.engine.score(rows))


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
    merge: str = "flat",
    **data_options: Any,
) -> Assembly:
    """Everything up to the first step."""
    device = Host()
    data = open_image_set(DataOptions(data=str(path), **data_options), seed, comm)
    training = TrainingRows(data, shards, seed, comm, device, groups=groups)
    held_out = [evaluation_rows(split, training.scaler, comm, device) for split in (data.validation, data.test)]
    classes = class_count(data, training, held_out, comm)
    model = MLP(device, (data.features, *hidden, classes), dropout, seed)
    engine = Replica(model, training.rows, Clock(), micro_batch)
    update = partial(RULES[optimizer], weight_decay=weight_decay)
    merger = open_merger(merge, model.store, comm, update, groups).merger
    return Assembly(comm, training, *held_out, model, engine, merger, update(model.store), batch_size)
