"""The pipeline engine: this rank's layers, fed by the stage before, feeding the stage behind.

A micro-batch comes in (images from the rows on the first stage, else the activations that the stage before sends), goes
forward, and waits as a closure until its gradient comes back. What it needs lies in an arena of its own, which the
next but some micro-batch takes over; so memory grows with the micro-batches that are held, not with those of a step.
Weight gradients are taken for a few micro-batches together (backlog.py), whose number does not grow either.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from mpi_parallel.device import Array
from mpi_parallel.device.clock import Clock
from mpi_parallel.model_parallel import backlog
from mpi_parallel.model_parallel.micro_batch import Batch, MicroBatch, Rows, micro_batches
from mpi_parallel.model_parallel.part import ModelPart
from mpi_parallel.model_parallel.schedules import Action, Forward, Schedule, most_held
from mpi_parallel.mpi.link import Expected, Link
from mpi_parallel.mpi.pulse import PULSE
from mpi_parallel.nn.layers import Ready, See
from mpi_parallel.nn.mlp import Block, score_of

BACKWARD, INPUT = -1, -2  # arenas: of what lives no longer than one backward; of inputs, from here downwards


@dataclass
class Plan:
    """What this stage does in a step of so many micro-batches, and how many of them it holds at a time."""

    actions: Sequence[Action]
    held: int


class PipelineStage:
    """Runs batches of these rows through a part of the model, together with the other stages."""

    def __init__(
        self,
        model: ModelPart,
        rows: Rows,
        clock: Clock,
        schedule: Schedule,
        micro_batch: int | None,
        grouped: bool,
        scored: int,
    ) -> None:
        """`micro_batch` rows go through together; where it is None, whole groups in a `grouped` run, else a share.

        `scored` rows go through together when they are evaluated.
        """
        self.model, self.rows, self.clock, self.schedule = model, rows, clock, schedule
        self.micro_batch, self.grouped, self.scored = micro_batch, grouped, scored
        self.store, self.workspace = model.store, model.workspace
        pipe = model.grid.pipe
        self.before = Link(pipe, pipe.rank - 1) if pipe.rank > 0 else None
        self.behind = Link(pipe, pipe.rank + 1) if pipe.rank < pipe.size - 1 else None
        self.pipe, self._looks = pipe, self.before is None or self.behind is None  # at images or at labels
        self._plans: dict[int, Plan] = {}
        self._together = 1  # micro-batches whose weight gradients are taken together
        self._late = 0  # micro-batches whose weight gradients are to be taken

    def run(self, batch: Batch, on_ready: Ready, collect: Callable[[], None]) -> None:
        """Put the gradient (summed over the batch's rows) of this stage's weights into the store, group by group.

        Loss and number correct come into the tail of the last stage, the counts into that of all. `on_ready` and
        `collect` are called as by data_parallel.replica.
        """
        if self.rows.brought and self._looks:
            self.clock.enter("data", "bring")
            self.rows.bring(len(batch.index))
        self.store.narrow()
        queue = list(micro_batches(batch, self.micro_batch, self.pipe.size, self.grouped))
        self._together = self._make_room(queue)
        plan = self._plan(len(queue))
        self._expect(queue, 0, plan.held)
        for action in plan.actions:
            if isinstance(action, Forward):
                self._forward(queue, action.number, plan.held)
            else:
                self._backward(queue[action.number], action.number, on_ready, collect)
        self._settle()
        self.clock.enter("other")

    def score(self, rows: Rows, see: See | None = None) -> tuple[float, int, int]:
        """Summed loss, number correct and number of these rows, as nn.mlp.score_of; on the last stage, else no sums."""
        return *score_of(self.model, self.logits(rows), see), len(rows)

    def logits(self, rows: Rows) -> Iterator[Block]:
        """On the last stage all of these rows in their order, without dropout; each block is good until the next.

        The other stages do their part, and yield nothing.
        """
        self.store.narrow()
        rows.rewind()
        starts = range(0, len(rows), self.scored)
        lengths = [min(self.scored, len(rows) - start) for start in starts]
        inputs = [self._input_of(length, 0) for length in lengths[:1]]
        for number, start in enumerate(starts):
            expected = inputs[number]
            inputs += [self._input_of(length, (number + 1) % 2) for length in lengths[number + 1 : number + 2]]
            self._turn(0)
            PULSE.beat()
            index = self._next_rows(rows, range(start, start + lengths[number]))
            x = rows.gather(self.workspace, index)[0] if expected is None else expected.wait()
            y, _ = self.model.inference.forward(x)
            if self.behind is not None:
                self.behind.send(y)
                continue
            yield start, y, rows.labels_of(self.workspace, index)
        self._settle()

    def _next_rows(self, rows: Rows, span: range) -> Array:
        """The index of these rows, at hand on the stages that look at any."""
        index = rows.places(span, self.scored)
        if self._looks:
            rows.bring(len(span))
        return self.workspace.device.to_device(index)

    def _make_room(self, queue: Sequence[MicroBatch]) -> int:
        """Of how many micro-batches weight gradients are taken together; one in a `grouped` run, as others take it."""
        rows = max((len(micro.rows.index) for micro in queue), default=0)
        together = 1 if self.grouped or not rows else max(1, backlog.ROWS // rows)
        if self.model.backlog:
            self.model.backlog.room = together * rows if together > 1 else 0
        return together

    def _plan(self, count: int) -> Plan:
        if count not in self._plans:
            actions = list(self.schedule(self.pipe.size, self.pipe.rank, count))
            self._plans[count] = Plan(actions, most_held(actions))
        return self._plans[count]

    def _expect(self, queue: Sequence[MicroBatch], number: int, held: int) -> None:
        """Be ready for the input of this micro-batch, if there is one; `held` others may still need theirs."""
        if number < len(queue):
            queue[number].input = self._input_of(len(queue[number].rows.index), number % (held + 1))

    def _input_of(self, rows: int, place: int) -> Expected | None:
        """What so many rows will come in as, in memory that is free; the first stage waits for none."""
        if self.before is None:
            return None
        self._turn(INPUT - place)
        return self.before.expect(self.workspace.operand((rows, self.model.cuts[0].width_in)))

    def _turn(self, arena: int) -> None:
        """From now on cut from this arena, whose contents are not needed any more."""
        self.workspace.turn(arena)
        self.workspace.reset()

    def _forward(self, queue: Sequence[MicroBatch], number: int, held: int) -> None:
        this, ws = queue[number], self.workspace
        self._turn(number % held)
        if this.input is None:
            self.clock.enter("data", "gather", number)
            x, _ = self.rows.gather(ws, this.rows.index, this.rows.keys)
        else:
            self.clock.enter("merge", "receive", number)
            x = this.input.wait()
        self.clock.enter("compute", "forward", number)
        y, this.backward = self.model.training.forward(x, this.rows.keys)
        if self.behind is None:
            self.clock.enter("data", "gather", number)
            t = self.rows.labels_of(ws, this.rows.index)
            this.gradient = partial(self.model.loss_gradient, y, t, self.store.tail)
        else:
            self.clock.enter("merge", "send", number)
            this.gradient = self.behind.expect(ws.operand((len(y), self.model.cuts[-1].gradient_out))).wait
            self.behind.send(y)
        self._expect(queue, number + 1, held)

    def _backward(self, this: MicroBatch, number: int, on_ready: Ready, collect: Callable[[], None]) -> None:
        assert this.gradient is not None
        assert this.backward is not None
        if this.first:
            self.store.zero_grad()
        self._turn(BACKWARD)
        if self.behind is None:
            self.clock.enter("compute", "loss", number)
        else:
            self.clock.enter("merge", "receive", number)
        dy = this.gradient()
        self.clock.enter("compute", "backward", number)
        ready, late = _nobody if this.group_rows is None else on_ready, self.model.backlog
        dx = this.backward(dy, _nobody if late else ready)
        this.gradient = this.backward = None  # its arena is free
        if self.before is not None:
            self.clock.enter("merge", "send", number)
            self.before.send(dx)
        self._late += 1
        if late is None:
            self.store.accumulating = True
        elif self._late == self._together or this.group_rows is not None:
            self.clock.enter("compute", "weight gradient", number)
            late.settle(ready)
            self.store.accumulating, self._late = True, 0
        if this.group_rows is not None:
            self.store.finish(this.group_rows)
            collect()

    def _settle(self) -> None:
        for link in (self.before, self.behind):
            if link is not None:
                link.settle()


def _nobody(parameters: object) -> None:
    """Gradients of a micro-batch that is not the last are not complete."""
