"""Steps that a device takes at its own pace: captured once for each shape of batch, then replayed as a whole.

    device  deal the batch, gather, forward, backward, send            what train_step has the engine and the merger do
    host    exchange                                                   only where ranks merge by way of the host
    device  receive, norm, advance the pace and tell, optimizer        what it has the merger and the optimizer do
            round the weights to operands                              unless the optimizer's kernel has done so

Without an exchange the two are one graph; a merger that divides the update cuts a step once more where the host passes
weights on. With groups of rows (--reproducible) all of a rank's groups are in the first. Rows that stream are brought
to where the device finds them before a step is begun.

The learning rate, the counts of steps, the scale of the loss and the place in the order of samples are in the device's
memory, where the device itself carries them on, so a replay needs nothing from the host, and the next one is launched
before the host has heard of the last (training/ahead.py). What came of a step the device writes into a row of the
host's memory that is not used again before it was read.

A step is captured when one of its shape has found all its memory in the workspace; until then, and with --no-graphs
always, the same calls are made one by one. With its memory found, too, it is measured whether a small network is faster
in kernels that go through all layers at once.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from functools import partial
from itertools import zip_longest
from typing import NamedTuple

import numpy as np

from mpi_parallel.data_parallel.loader import Batch
from mpi_parallel.data_parallel.replica import Replica
from mpi_parallel.device import Array
from mpi_parallel.device.interface import BEGUN, GOOD, HELD, LOSS_SCALE, PACE, SCALE, TAKEN, Schedule
from mpi_parallel.device.places import BATCHES_AT_HAND
from mpi_parallel.device.relay import Relay, Work, in_turn
from mpi_parallel.nn.optimizers import Optimizer
from mpi_parallel.nn.precision import PATIENCE
from mpi_parallel.nn.store import SAVE, STOP, TAIL
from mpi_parallel.result_merging.merger import Merger
from mpi_parallel.result_merging.metrics import Totals
from mpi_parallel.training.ahead import Steps
from mpi_parallel.training.at_once import is_faster_at_once
from mpi_parallel.training.log import logger

NOT_CAPTURED = "no CUDA graphs: not all products are by cublasLt, and those of CuPy cannot be captured"

AHEAD = 2  # steps that may be under way when another is begun: a pause of the host is then none of the device
assert AHEAD < BATCHES_AT_HAND  # nor are rows overwritten that a step under way, or one that is begun anew, looks at


@dataclass
class Shape:
    """Batches of so many rows in such groups: where they are dealt to, and what is done with them."""

    batch: Batch
    eager: list[Work] = field(default_factory=list)
    captured: list[Work] | None = None
    memory: Array | None = None  # what the graphs compute in, which they must outlive
    at_once: bool | None = None  # whether rows go through all layers in kernels that do just that; None: not tried


def _as_it_is(work: Work) -> Work:
    """Call by call."""
    return work


class Begun(NamedTuple):
    """A step that is under way, as it was asked for, and what waits for its end."""

    batch: Batch
    number: int
    stop: bool
    save: bool
    wait: Work


class CapturedSteps(Steps):
    """Takes steps of a replica, by replaying what the device did before wherever that is possible."""

    def __init__(
        self,
        engine: Replica,
        merger: Merger,
        optimizer: Optimizer,
        schedule: Schedule,
        graphs: bool,
        begun: int = 0,
        ahead: int = AHEAD,
    ) -> None:
        """`begun` steps have been taken or skipped before; the optimizer and the loss scale know their own state."""
        self.ahead = ahead
        store = engine.store
        self.engine, self.merger, self.optimizer, self.graphs = engine, merger, optimizer, graphs
        self.store, self.device, self.scale = store, store.device, store.loss_scale
        self.schedule = schedule._replace(growth=PATIENCE if self.scale.dynamic else 0)
        xp = self.device.xp
        pace = np.zeros(PACE, np.float64)
        pace[[LOSS_SCALE, GOOD, TAKEN, BEGUN]] = self.scale.value, self.scale.good, optimizer.steps, begun
        self.pace: Array = self.device.to_device(pace)
        self.scale.on_device = self.pace[LOSS_SCALE : LOSS_SCALE + 1]
        self.squares: Array | None = xp.zeros(len(store.parameters), np.float64) if schedule.clip else None
        self._relays = self._in_turn()
        self._exchanges = [relay.exchange for relay in self._relays if relay.exchange is not None]
        self.cursor: Array = xp.zeros(1, np.int64)
        self._order: tuple[Array, Array] = xp.zeros(0, np.int64), xp.zeros(0, np.uint32)
        self._source: object = None  # what the order is a copy of
        self._at = 0  # where the cursor stands
        self._asked = self.device.pinned((2,), np.float32)  # for tail[STOP] and tail[SAVE]
        self._last = False, False  # what was asked for then
        self._told = self.device.pinned((ahead + 1, TAIL + PACE), np.float64)
        self._under_way: deque[Begun] = deque()
        self._held: list[Begun] | None = None  # steps that were begun behind one that went bad, and not taken
        self._shapes: dict[tuple[int, ...], Shape] = {}

    def begin(self, batch: Batch, number: int, stop: bool = False, save: bool = False) -> None:
        self._let_go()
        self.engine.bring(batch)
        self._begin(batch, number, stop, save)

    def end(self) -> Totals:
        self._let_go()
        clock, step = self.engine.clock, self._under_way.popleft()
        clock.enter("compute", "await")
        step.wait()
        clock.enter("other")
        totals = self._read(step)
        if not (totals.finite or totals.skipped):
            self._held = list(self._under_way)
            self._under_way.clear()
        return totals

    def _begin(self, batch: Batch, number: int, stop: bool, save: bool) -> None:
        assert len(self._under_way) <= self.ahead
        if not self._under_way:  # others may have changed the weights; a step leaves their factors up to date
            self.store.narrow()
        if (stop, save) != self._last:
            if self._under_way:
                self._under_way[-1].wait()  # these steps are still to read what was asked before
            self._asked[:] = self._last = stop, save
        self._follow(batch)
        edges = tuple(batch.edges or (0, len(batch.index)))
        shape = self._shapes.get(edges) or self._meet(edges, batch.edges is not None)
        clock, works = self.engine.clock, self._works(shape)
        clock.enter("compute")
        for work, exchange in zip_longest(works, self._exchanges):
            work()
            if exchange is not None:
                self.device.mark()()
                clock.enter("merge")
                exchange()
                clock.enter("update")
        if shape.captured is None:
            shape.memory = self.engine.workspace.settled
        self._under_way.append(Begun(batch, number, stop, save, self.device.mark()))
        clock.enter("other")

    def _let_go(self) -> None:
        """Where the device holds since a step went bad: have it go on, with the steps that it did not take."""
        if self._held is None:
            return
        held, self._held = self._held, None
        self.pace[HELD : HELD + 1].fill(0)
        for step in held:
            self._begin(step.batch, step.number, step.stop, step.save)

    def close(self) -> None:
        """Give back all graphs, and now: NCCL waits for ever to be closed while there are some with its work."""
        if self.replays:
            self.device.synchronize()
        for shape in self._shapes.values():
            shape.captured = None
        self._shapes.clear()

    @property
    def replays(self) -> bool:
        """Whether steps have been captured."""
        return any(shape.captured is not None for shape in self._shapes.values())

    @property
    def at_once(self) -> bool:
        """Whether rows of some shape of batch go through all layers at once."""
        return any(shape.at_once for shape in self._shapes.values())

    def _works(self, shape: Shape) -> list[Work]:
        """What is to be done for a batch of this shape, by replay once its memory is where it will always be."""
        if self.graphs and not self.device.can_capture:  # a product of a step before went another way than it should
            logger.info(NOT_CAPTURED)
            self.graphs = False
        if shape.at_once is None and shape.memory is not None:
            prepare = self.device.capture if self.graphs else _as_it_is
            shape.at_once = is_faster_at_once(self.engine, self.merger, shape.batch, prepare)
        if self.graphs and shape.captured is None and shape.memory is not None:
            self.engine.workspace.reset()  # an evaluation may have asked for more memory since
            shape.memory = self.engine.workspace.settled
            shape.captured = [self.device.capture(work) for work in shape.eager]
        return shape.captured or shape.eager

    def _meet(self, edges: tuple[int, ...], grouped: bool) -> Shape:
        xp, rows = self.device.xp, edges[-1]
        batch = Batch(xp.zeros(rows, np.int64), xp.zeros(rows, np.uint32), edges if grouped else None)
        shape = self._shapes[edges] = Shape(batch)
        parts: list[list[Work]] = [[]]
        for relay in (Relay(partial(self._front, shape)), *self._relays):
            parts[-1].append(relay.send)
            if relay.exchange is not None:
                parts.append([])
            parts[-1].append(relay.receive)
        shape.eager = [in_turn(*part) for part in parts]
        return shape

    def _in_turn(self) -> list[Relay]:
        """What follows the gradient: merging, the norm, the update, everyone's weights."""
        merger, merging = self.merger, self.merger.relay()
        assert merging is not None
        norm = [] if self.squares is None else [merger.relay_squares(self.squares)]
        update = self.optimizer.relay(merger.owned, self.pace, merger.total if merger.divides else None)
        narrowed = self.optimizer.narrows and merger.owned == slice(0, self.store.size)
        narrow = [] if narrowed else [Relay(self.store.narrow)]
        return [merging, *norm, Relay(self._advance), update, merger.relay_weights(), *narrow]

    def _front(self, shape: Shape) -> None:
        batch = shape.batch
        self.device.kernels.deal(*self._order, self.cursor, batch.index, batch.keys, self.store.tail)
        if shape.at_once:
            self.engine.compute_at_once(batch)
        else:
            self.engine.compute(batch, self.merger.ready, self.merger.collect, cleared=True)
        if self.merger.comm.size > 1:  # else the host knows
            self.device.put(self._asked, self.store.tail[STOP : SAVE + 1])

    def _advance(self) -> None:
        self.device.kernels.advance(self.pace, self.store.tail, self.squares, self.schedule, self._told)

    def _follow(self, batch: Batch) -> None:
        """Have the order that the batch is cut from in memory that stays, and the cursor where the batch begins."""
        source, start = (batch.order, batch.start) if batch.order else ((batch.index, batch.keys), 0)
        if source is not self._source:
            if len(source[0]) > len(self._order[0]):
                self._order = (
                    self.device.xp.zeros(len(source[0]), np.int64),
                    self.device.xp.zeros(len(source[0]), np.uint32),
                )
                self.close()  # the graphs deal from the old one
            for held, new in zip(self._order, source, strict=True):
                held[: len(new)] = new
            self._source, self._at = source, -1
        if self._at != start:
            self.cursor.fill(start)
        self._at = start + len(batch.index)

    def _read(self, step: Begun) -> Totals:
        """What came of the step, and the counts that the host keeps, too."""
        row = self._told[step.number % len(self._told)].tolist()
        (loss, correct, count, stop, save, _), pace = row[:TAIL], row[TAIL:]
        finite = not math.isnan(pace[SCALE])
        skipped = self.scale.update(finite, loss)
        self.optimizer.steps = int(pace[TAKEN])
        assert (pace[BEGUN], pace[LOSS_SCALE]) == (step.number + 1, self.scale.value)
        assert bool(pace[HELD]) == (not finite and not skipped)
        flags = stop > 0 or step.stop, finite, skipped, save > 0 or step.save
        return Totals(loss, int(correct), int(count), *flags)
