"""What is told of a step and of an evaluation: sums are merged over the ranks and divided once."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpi_parallel.mpi.communicator import Communicator


@dataclass(frozen=True)
class Totals:
    """The merged sums of one step, the same on all ranks."""

    loss: float
    correct: int
    count: int
    stop: bool  # some rank was asked to stop
    finite: bool  # whether the step may be taken: all ranks' losses and gradients are finite
    skipped: bool = False  # it was not taken because the loss scale of float16 was too large: nothing is wrong
    save: bool = False  # some rank wants a checkpoint after this step

    @classmethod
    def of(cls, tail: NDArray[np.floating[Any]]) -> Totals:
        """From the tail of the merged gradient (see nn/store.py)."""
        loss, correct, count, stop, save, bad = tail.tolist()
        return cls(loss, int(correct), int(count), stop > 0, math.isfinite(loss + bad), save=save > 0)


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
