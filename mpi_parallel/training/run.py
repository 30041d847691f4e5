"""A run: everything that takes part in it, and how far it has come."""

from __future__ import annotations

from dataclasses import dataclass, field

from mpi_parallel.config import TrainConfig
from mpi_parallel.data_parallel.dataset import ImageSet
from mpi_parallel.data_parallel.loader import TrainingRows
from mpi_parallel.data_parallel.rows import Rows
from mpi_parallel.mpi.communicator import Communicator
from mpi_parallel.nn.optimizers import Optimizer
from mpi_parallel.training.checkpoints.saver import Never
from mpi_parallel.training.faults.legacy import Forgetful, Heritage
from mpi_parallel.training.faults.signals import StopRequest
from mpi_parallel.training.log import RunFolder
from mpi_parallel.training.step import Engine, Merger
from mpi_parallel.training.trace import NoTrace, Trace


class Patience:
    """Counts the epochs since the loss was last lower than ever before."""

    def __init__(self, epochs: int | None = None) -> None:
        self.epochs, self.best, self.since = epochs, float("inf"), 0

    def lost(self, loss: float) -> bool:
        """Whether this epoch's loss was one too many without an improvement."""
        self.best, self.since = (loss, 0) if loss < self.best else (self.best, self.since + 1)
        return self.epochs is not None and self.since >= self.epochs


@dataclass
class Run:
    """Everything that takes part in a run, and how far it has come."""

    config: TrainConfig
    comm: Communicator  # all ranks
    speaks: bool  # whether this rank's score counts, which is one rank's of each model
    engine: Engine
    merger: Merger
    optimizer: Optimizer
    training: TrainingRows
    validation: Rows | None
    test: Rows | None
    data: ImageSet
    folder: RunFolder
    trace: Trace | NoTrace
    stop: StopRequest
    saver: Never = field(default_factory=Never)
    step: int = 0
    epochs: int = 0  # completed
    samples: int = 0
    legacy: Heritage = field(default_factory=Forgetful)
    bad_steps: int = 0  # that were not finite, and not taken
    first_step: float = 0.0  # seconds from the start of the process to the end of the first step
    sums: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])  # loss, correct, count of the running epoch
    before: float = 0.0  # count of the running epoch when this program took it up
    patience: Patience = field(default_factory=Patience)

    @property
    def steps_per_epoch(self) -> int:
        return self.training.steps(self.config.batch.batch_size)

    @property
    def total_steps(self) -> int:
        """Steps of the whole run."""
        asked = self.config.batch.steps
        return self.config.batch.epochs * self.steps_per_epoch if asked is None else asked
