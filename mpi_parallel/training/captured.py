"""Steps that a device takes at its own pace: captured once for each shape of batch, then replayed as a whole.

    front   deal the batch, gather, forward, backward, send            what train_step has the engine and the merger do
    host    exchange                                                   only where ranks merge by way of the host
    back    receive, norm, advance the pace, optimizer, fetch          what it has the merger and the optimizer do

Without an exchange the two are one graph. The learning rate, the counts of steps, the scale of the loss and the place
in the order of samples are in the device's memory, where the device itself carries them on, so a replay needs nothing
from the host. A step is captured when one of its shape has found all its memory in the workspace; until then, and with
--no-graphs always, the same calls are made one by one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from mpi_parallel.config import TrainConfig
from mpi_parallel.data_parallel.loader import Batch
from mpi_parallel.data_parallel.replica import Replica
from mpi_parallel.device import Array
from mpi_parallel.device.interface import BEGUN, GOOD, LOSS_SCALE, PACE, SCALE, TAKEN, Schedule
from mpi_parallel.nn.mlp import MLP
from mpi_parallel.nn.optimizers import LAMB, Optimizer
from mpi_parallel.nn.precision import PATIENCE
from mpi_parallel.nn.store import SAVE, STOP, TAIL
from mpi_parallel.result_merging.merger import Merger
from mpi_parallel.result_merging.metrics import Totals
from mpi_parallel.training.log import logger
from mpi_parallel.training.step import Engine, HostSteps, Take
from mpi_parallel.training.step import Merger as StepMerger

NOT_CAPTURED = "no CUDA graphs: not all products are by cublasLt, and those of CuPy cannot be captured"

Work = Callable[[], None]


@dataclass
class Shape:
    """Batches of so many rows: where they are dealt to, and what is done with them."""

    index: Array
    keys: Array
    eager: list[Work] = field(default_factory=list)
    captured: list[Work] | None = None
    memory: Array | None = None  # what the graphs compute in, which they must outlive


class CapturedSteps:
    """Takes steps of a replica, by replaying what the device did before wherever that is possible."""

    def __init__(
        self, engine: Replica, merger: Merger, optimizer: Optimizer, schedule: Schedule, graphs: bool, begun: int = 0
    ) -> None:
        """`begun` steps have been taken or skipped before; the optimizer and the loss scale know their own state."""
        store = engine.store
        self.engine, self.merger, self.optimizer, self.graphs = engine, merger, optimizer, graphs
        self.store, self.device, self.scale = store, store.device, store.loss_scale
        self.schedule = schedule._replace(growth=PATIENCE if self.scale.dynamic else 0)
        xp = self.device.xp
        pace = np.zeros(PACE, np.float64)
        pace[[LOSS_SCALE, GOOD, TAKEN, BEGUN]] = self.scale.value, self.scale.good, optimizer.steps, begun
        self.pace: Array = self.device.to_device(pace)
        self.scale.on_device = self.pace[LOSS_SCALE : LOSS_SCALE + 1]
        self.squares: Array | None = xp.zeros(1, np.float64) if schedule.clip else None
        self.cursor: Array = xp.zeros(1, np.int64)
        self._order: tuple[Array, Array] = xp.zeros(0, np.int64), xp.zeros(0, np.uint32)
        self._source: object = None  # what the order is a copy of
        self._at = 0  # where the cursor stands
        self._asked = self.device.pinned((2,), np.float32)  # for tail[STOP] and tail[SAVE]
        self._last = False, False  # what was asked for then
        self._tail = self.device.pinned((TAIL,), np.float32)
        self._pace = self.device.pinned((PACE,), np.float64)
        self._shapes: dict[int, Shape] = {}

    def __call__(self, batch: Batch, number: int, stop: bool = False, save: bool = False) -> Totals:
        """One synchronised step, as train_step takes it; it is the one `number`, from 0."""
        self._follow(batch)
        shape = self._shapes.get(len(batch.index)) or self._meet(len(batch.index))
        if (stop, save) != self._last:
            self._asked[:] = self._last = stop, save
        clock = self.engine.clock
        clock.enter("compute")
        first, *rest = self._works(shape)
        first()
        for work in rest:
            self.device.mark()()
            clock.enter("merge")
            self.merger.exchange()
            clock.enter("update")
            work()
        if shape.captured is None:
            shape.memory = self.engine.workspace.settled
        self.device.mark()()
        clock.enter("other")
        return self._told(number)

    @property
    def replays(self) -> bool:
        """Whether steps have been captured."""
        return any(shape.captured is not None for shape in self._shapes.values())

    def _works(self, shape: Shape) -> list[Work]:
        """What is to be done for a batch of this shape, by replay once its memory is where it will always be."""
        if self.graphs and not self.device.can_capture:  # a product of a step before went another way than it should
            logger.info(NOT_CAPTURED)
            self.graphs = False
        if self.graphs and shape.captured is None and shape.memory is not None:
            self.engine.workspace.reset()  # an evaluation may have asked for more memory since
            shape.memory = self.engine.workspace.settled
            shape.captured = [self.device.capture(work) for work in shape.eager]
        return shape.captured or shape.eager

    def _meet(self, rows: int) -> Shape:
        xp = self.device.xp
        shape = self._shapes[rows] = Shape(xp.zeros(rows, np.int64), xp.zeros(rows, np.uint32))
        if self.merger.exchanges:
            shape.eager = [lambda: self._front(shape), self._back]
        else:
            shape.eager = [lambda: self._whole(shape)]
        return shape

    def _whole(self, shape: Shape) -> None:
        self._front(shape)
        self._back()

    def _front(self, shape: Shape) -> None:
        self.store.device.kernels.deal(*self._order, self.cursor, shape.index, shape.keys)
        self.engine.run(Batch(shape.index, shape.keys), self.merger.ready, self.merger.collect)
        if self.merger.comm.size > 1:  # else the host knows
            self.device.put(self._asked, self.store.tail[STOP : SAVE + 1])
        self.merger.send()

    def _back(self) -> None:
        store, kernels = self.store, self.device.kernels
        self.merger.receive()
        if self.squares is not None:
            kernels.squares(store.gradients[self.merger.owned], self.squares)
            self.merger.total_on_device(self.squares)
        kernels.advance(self.pace, store.tail, self.squares, self.schedule)
        self.optimizer.apply(self.merger.owned, self.pace)
        self.merger.publish()
        self.device.fetch(store.tail, self._tail)
        self.device.fetch(self.pace, self._pace)

    def _follow(self, batch: Batch) -> None:
        """Have the order that the batch is cut from in memory that stays, and the cursor where the batch begins."""
        source, start = (batch.order, batch.start) if batch.order else ((batch.index, batch.keys), 0)
        if source is not self._source:
            if len(source[0]) > len(self._order[0]):
                self._order = (
                    self.device.xp.zeros(len(source[0]), np.int64),
                    self.device.xp.zeros(len(source[0]), np.uint32),
                )
                self._shapes.clear()  # their graphs deal from the old one
            for held, new in zip(self._order, source, strict=True):
                held[: len(new)] = new
            self._source, self._at = source, -1
        if self._at != start:
            self.cursor.fill(start)
        self._at = start + len(batch.index)

    def _told(self, number: int) -> Totals:
        """What came of the step, and the counts that the host keeps, too."""
        # Plain numbers: what is done here the GPU waits for.
        loss, correct, count, stop, save, _ = self._tail.tolist()
        pace = self._pace.tolist()
        finite = not math.isnan(pace[SCALE])
        skipped = self.scale.update(finite, loss)
        self.optimizer.steps = int(pace[TAKEN])
        assert (pace[BEGUN], pace[LOSS_SCALE]) == (number + 1, self.scale.value)
        asked_to_stop, asked_to_save = self._last
        flags = stop > 0 or asked_to_stop, finite, skipped, save > 0 or asked_to_save
        return Totals(loss, int(correct), int(count), *flags)


def open_steps(
    engine: Engine, merger: StepMerger, optimizer: Optimizer, options: TrainConfig, total: int, begun: int = 0
) -> Take:
    """Who takes the steps of a run of `total`, of which `begun` are behind: the device, or the host call by call."""
    rule, device = options.optimizer, engine.store.device
    if device.kind != "cpu":
        reason = why_not(engine, merger, optimizer, options.groups is not None)
        if reason is None:
            assert isinstance(engine, Replica)
            assert isinstance(merger, Merger)
            schedule = Schedule(rule.lr, rule.schedule == "cosine", rule.warmup, total, rule.clip_norm)
            return CapturedSteps(engine, merger, optimizer, schedule, options.device.graphs, begun)
        logger.info("no CUDA graphs: %s", reason)
    return HostSteps(engine, merger, optimizer, rule, total)


def why_not(engine: Engine, merger: StepMerger, optimizer: Optimizer, grouped: bool) -> str | None:
    """Why a device cannot take the steps at its own pace; None where it can."""
    if not (isinstance(engine, Replica) and isinstance(engine.model, MLP) and isinstance(merger, Merger)):
        return "the model is split over ranks, which talk within a step"
    if grouped:
        return "--reproducible keeps groups of rows apart"
    if not merger.relays:
        return f"--merge {merger.name} leaves the sums to MPI"
    if isinstance(optimizer, LAMB) and merger.owned != slice(0, engine.store.size):
        return "lamb sums norms over the ranks that own shares of a layer"
    if not engine.rows.steady:
        return "the host streams the rows, or --shift, --flip or --erase change them"
    return None
