"""One synchronised step, and what it needs of an engine and of a merger."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from mpi_parallel.config.learning import OptimizerOptions
from mpi_parallel.data_parallel.loader import Batch
from mpi_parallel.data_parallel.rows import Rows
from mpi_parallel.device.clock import Clock
from mpi_parallel.mpi.communicator import Communicator
from mpi_parallel.nn.layers import Ready, See
from mpi_parallel.nn.learning_rate import learning_rate
from mpi_parallel.nn.mlp import Block, Network
from mpi_parallel.nn.optimizers import Optimizer
from mpi_parallel.nn.store import SAVE, STOP, Parameter, ParameterStore
from mpi_parallel.result_merging.metrics import Totals
from mpi_parallel.training.ahead import Steps


class Engine(Protocol):
    """Runs this rank's part of the model on this rank's part of the data."""

    @property
    def model(self) -> Network:
        """What it runs."""

    store: ParameterStore
    clock: Clock

    def run(self, batch: Batch, on_ready: Ready, collect: Callable[[], None]) -> None:
        """Put the gradient of the batch's rows, their loss and counts into the store; `collect` after each group."""

    def score(self, rows: Rows, see: See | None = None) -> tuple[float, int, int]:
        """Summed loss, number correct and number of these rows, without dropout; where the model is split, on the
        rank that speaks for it (ProcessGrid.speaks). There `see` is shown the logits and labels of all rows."""

    def logits(self, rows: Rows) -> Iterator[Block]:
        """These rows in their order, without dropout, on the ranks that have logits; a block is good until the next."""


class Merger(Protocol):
    """Makes the ranks' gradients one. `owned` is the slice of the store whose optimizer step this rank takes."""

    owned: slice
    comm: Communicator  # the ranks that have the same part of the model
    name: str  # as --merge has it
    overlaps: bool  # whether it does anything in `ready`

    def ready(self, parameters: Sequence[Parameter]) -> None:
        """The gradients of these parameters are complete on this rank."""

    def collect(self) -> None:
        """The store holds the gradient and the tail of a whole group; there is one group unless the run is exact."""

    def merge(self) -> Totals:
        """Everyone's gradient (summed over rows, in the owned slice at least), count, loss and flags."""

    def norm(self) -> float:
        """Euclidean norm of the whole summed gradient."""

    def total(self, sums: NDArray[np.float64]) -> None:
        """Sum numbers, in place, over the ranks that own the other slices."""

    def travels(self) -> Iterable[tuple[str, float, float]]:
        """What went between ranks beside the arithmetic in the last step: (what, begun, ended), by perf_counter."""

    def publish(self) -> None:
        """Everyone's weights, after the owners have updated theirs."""


def train_step(
    engine: Engine,
    batch: Batch,
    merger: Merger,
    optimizer: Optimizer,
    rate: float,
    clip_norm: float = 0.0,
    stop: bool = False,
    save: bool = False,
) -> Totals:
    """One synchronised step: every rank ends with the same weights.

    `stop` tells all ranks that this one was asked to, and `save` that it wants a checkpoint.
    """
    store, clock = engine.store, engine.clock
    engine.run(batch, merger.ready, merger.collect)  # my share of the gradient

    clock.enter("merge")
    if stop:
        store.tail[STOP] = 1
    if save:
        store.tail[SAVE] = 1
    totals = merger.merge()  # everyone's gradient, count, loss and flags

    clock.enter("update")
    if totals.finite:
        scale = _scale(merger, totals.count * store.loss_scale.value, clip_norm)
        optimizer.step(merger.owned, rate, scale, merger.total)  # my share
    if store.loss_scale.update(totals.finite, totals.loss):
        totals = replace(totals, skipped=True)

    clock.enter("merge", "publish")
    merger.publish()  # everyone's weights
    clock.enter("other")
    if clock.listeners:
        for what, begun, ended in merger.travels():
            clock.beside("messages", what, begun, ended)
    return totals


def _scale(merger: Merger, terms: float, clip_norm: float) -> float:
    """What turns the summed gradient, of so many terms, into the mean, cut to the norm that is allowed."""
    mean = 1 / max(1.0, terms)
    if not clip_norm:
        return mean
    return mean * min(1.0, clip_norm / max(merger.norm() * mean, 1e-30))


class HostSteps(Steps):
    """Takes the steps of a run of `total`, at the pace that the options tell, and each to its end."""

    def __init__(
        self, engine: Engine, merger: Merger, optimizer: Optimizer, options: OptimizerOptions, total: int
    ) -> None:
        self.engine, self.merger, self.optimizer = engine, merger, optimizer
        self.options, self.total = options, total

    def begin(self, batch: Batch, number: int, stop: bool = False, save: bool = False) -> None:
        rule = self.options
        rate = learning_rate(number, base=rule.lr, schedule=rule.schedule, warmup=rule.warmup, total=self.total)
        parts = self.engine, batch, self.merger, self.optimizer
        self._totals = train_step(*parts, rate, rule.clip_norm, stop, save)

    def end(self) -> Totals:
        return self._totals
