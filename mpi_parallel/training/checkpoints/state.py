"""What a run's future depends on, captured into memory: nothing here knows of files.

Beside data and options, which the run has anyway, these are flat arrays as long as the store (the weights, and the
optimizer's moments), of which a rank need only keep its share, and a few numbers, alike on all ranks.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mpi_parallel.device import Array

if TYPE_CHECKING:
    from mpi_parallel.training.run import Run

WEIGHTS = "weights"


def flat_arrays(run: Run) -> dict[str, Array]:
    """The run's arrays (size of the store,) float32 by their names in a checkpoint: weights, optimizer/m, …

    Of the weights every rank has all; of the optimizer's state the slice that its merger says it owns.
    """
    return {WEIGHTS: run.engine.store.weights} | {f"optimizer/{k}": array for k, array in run.optimizer.state.items()}


def standing(run: Run) -> dict[str, Any]:
    """The numbers: how far the run has come; JSON can hold them."""
    best, epochs = run.patience.best, min(run.epochs, run.step // run.steps_per_epoch)  # --steps may end within one
    position = (run.step - epochs * run.steps_per_epoch) * run.config.batch.batch_size
    return {
        "step": run.step,
        "epochs": epochs,
        "samples": run.samples,
        "position": min(position, run.training.total),  # in samples within the epoch
        "sums": list(run.sums),
        "bad_steps": run.bad_steps,
        "loss_scale": run.engine.store.loss_scale.state(),
        "optimizer_steps": run.optimizer.steps,
        "patience": {"best": best if math.isfinite(best) else None, "since": run.patience.since},
    }


def stand(run: Run, numbers: dict[str, Any]) -> None:
    """Put the numbers back."""
    run.step, run.epochs, run.samples = numbers["step"], numbers["epochs"], numbers["samples"]
    run.sums = [float(value) for value in numbers["sums"]]
    run.bad_steps = numbers["bad_steps"]
    run.engine.store.loss_scale.restore(numbers["loss_scale"])
    run.optimizer.steps = numbers["optimizer_steps"]
    best = numbers["patience"]["best"]
    run.patience.best, run.patience.since = float("inf") if best is None else best, numbers["patience"]["since"]


class Snapshot:
    """A copy of a slice of the run's arrays, in the host's memory, and of its numbers; it can be taken again."""

    def __init__(self, run: Run, span: slice) -> None:
        """Room for the elements `span` of every array."""
        self.span = span
        length = span.stop - span.start
        # Written to, as the first touch of memory takes several times as long as a copy, for which a step waits.
        self.arrays: dict[str, NDArray[np.float32]] = {
            name: np.full(length, np.float32(0)) for name in flat_arrays(run)
        }
        self.numbers: dict[str, Any] = {}

    def take(self, run: Run) -> None:
        """Copy the run as it stands, between two steps."""
        device = run.engine.store.device
        for name, array in flat_arrays(run).items():
            self.arrays[name][...] = device.to_host(array[self.span])
        self.numbers = standing(run)
