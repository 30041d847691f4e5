"""The data-parallel engine: the whole model on every rank, each with its own rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from mpi_parallel.data_parallel.evaluation import EVALUATION_ROWS
from mpi_parallel.data_parallel.loader import Batch
from mpi_parallel.data_parallel.replays import Replays
from mpi_parallel.data_parallel.rows import Rows
from mpi_parallel.device import Array
from mpi_parallel.device.clock import Clock
from mpi_parallel.mpi.pulse import PULSE
from mpi_parallel.nn.layers import Ready, See
from mpi_parallel.nn.mlp import MLP, Block, Network, score_of


class Replica:
    """Runs batches of this rank's rows forward and backward."""

    def __init__(self, model: Network, rows: Rows, clock: Clock, micro_batch: int | None = None) -> None:
        self.model, self.rows, self.clock, self.micro_batch = model, rows, clock, micro_batch
        self.store, self.workspace = model.store, model.workspace
        self.replays: Replays | None = None

    def replay(self) -> None:
        """From now on replay passes that come again; no `on_ready` of a `run` may have anything to do, then."""
        self.replays = Replays(self.model, self.rows, partial(self._compute, on_ready=_nobody))

    def run(self, batch: Batch, on_ready: Ready, collect: Callable[[], None]) -> None:
        """Put the gradient (summed over this rank's rows), loss and counts into the store, group by group.

        `on_ready` hears of parameters whose gradient is complete, every parameter once a group, also on a rank without
        rows; `collect` takes what the store holds when a group is complete.
        """
        self.bring(batch)
        self.store.narrow()
        self.compute(batch, on_ready, collect)

    def bring(self, batch: Batch) -> None:
        """Have its rows at hand."""
        if self.rows.brought:
            self.clock.enter("data", "bring")
            self.rows.bring(len(batch.index))

    def compute(self, batch: Batch, on_ready: Ready, collect: Callable[[], None], cleared: bool = False) -> None:
        """The same of rows that are at hand, with factors that are up to date.

        All of it is work of the device, which can do it again by itself. `cleared`: the store's tail is zero already.
        """
        groups = list(batch.groups())
        if not groups:  # the tail holds what all ranks were told of the step before
            self.store.zero_grad(cleared)
        for group in groups:
            self.store.zero_grad(cleared)
            cleared = False
            parts = list(group.parts(self.micro_batch))
            for number, part in enumerate(parts):
                self._accumulate(part, on_ready if part is parts[-1] else _nobody, number if len(parts) > 1 else None)
            self.store.finish(len(group.index))
            self.clock.enter("merge", "collect")
            collect()
        self.clock.enter("other")

    def fits_at_once(self, batch: Batch) -> bool:
        """Whether `compute_at_once` can take the batch."""
        whole = batch.edges is None and len(batch.index) <= (self.micro_batch or len(batch.index))
        return whole and isinstance(self.model, MLP) and self.model.fits_at_once(len(batch.index))

    def compute_at_once(self, batch: Batch) -> None:
        """What `compute` does, in kernels that take rows through all layers; nobody hears of single parameters."""
        assert isinstance(self.model, MLP)
        self.clock.enter("data", "gather")
        self.workspace.reset()
        x, t = self.rows.gather(self.workspace, batch.index, batch.keys)
        self.clock.enter("compute", "forward")
        self.model.at_once(x, batch.keys, t)
        self.clock.enter("other")

    def score(self, rows: Rows, see: See | None = None) -> tuple[float, int, int]:
        """Summed loss, number correct and number of these rows, as nn.mlp.score_of."""
        return *score_of(self.model, self.logits(rows), see), len(rows)

    def logits(self, rows: Rows) -> Iterator[Block]:
        """All of these rows in their order, without dropout; each block is good until the next.

        Ranks own whole blocks, and products of one shape round alike, whoever computes them.
        """
        self.store.narrow()
        rows.rewind()
        for start in range(0, len(rows), EVALUATION_ROWS):
            self.workspace.reset()
            span = range(start, min(start + EVALUATION_ROWS, len(rows)))
            index = self.workspace.device.to_device(rows.places(span, EVALUATION_ROWS))
            rows.bring(len(span))
            x, t = rows.gather(self.workspace, index)
            yield start, self.model.inference.forward(x)[0], t
            PULSE.beat()

    def _accumulate(self, part: Batch, on_ready: Ready, micro: int | None) -> None:
        self.clock.enter("data", "gather", micro)
        compute = self.replays.gather(part) if self.replays and not self.clock.listeners else None
        if compute:
            self.clock.enter("compute", "forward", micro)
            compute()
        else:
            self.workspace.reset()  # what the micro-batch before left is not needed any more
            x, t = self.rows.gather(self.workspace, part.index, part.keys)
            self._compute(x, t, part.keys, on_ready, micro)
        self.store.accumulating = True

    def _compute(self, x: Array, t: Array, keys: Array, on_ready: Ready, micro: int | None = None) -> None:
        self.clock.enter("compute", "forward", micro)
        logits, backward = self.model.training.forward(x, keys)
        dz = self.model.loss_gradient(logits, t, self.store.tail)
        self.clock.enter("compute", "backward", micro)
        backward(dz, on_ready)


def _nobody(parameters: object) -> None:
    """Gradients of a micro-batch that is not the last are not complete."""
