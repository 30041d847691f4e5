"""What is told of a step and of an evaluation: sums are merged over the ranks and divided once."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from mpi_parallel.mpi.communicator import Communicator


@dataclass(frozen=True)
class Totals:
    """The merged sums of one step, the same on all ranks, and the Euclidean norm of the mean gradient."""

    loss: float
    correct: int
    count: int
    stop: bool  # some rank was asked to stop
    norm: float

    @property
    def finite(self) -> bool:
        """Whether the step may be taken."""
        return math.isfinite(self.loss) and math.isfinite(self.norm)


@dataclass(frozen=True)
class Score:
    """Mean loss and share correct of `count` rows."""

    loss: float
    accuracy: float
    count: int


def merge_scores(comm: Communicator, loss: float, correct: int, count: int) -> Score:
    """The score of all ranks' rows. float64 holds counts exactly up to 2^53."""
    sums = np.array([loss, correct, count], np.float64)
    comm.sum(sums)
    return score(*sums.tolist())


def score(loss: float, correct: float, count: float) -> Score:
    """Means from sums; of no rows they are 0."""
    return Score(loss / max(1.0, count), correct / max(1.0, count), int(count))
