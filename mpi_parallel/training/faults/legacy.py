"""What outlives an attempt at a run of which ranks die: its newest steps, from the memories of those who live."""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from mpi4py import MPI

from mpi_parallel.config import TrainConfig
from mpi_parallel.device import Array
from mpi_parallel.mpi.communicator import Communicator
from mpi_parallel.mpi.partition import share
from mpi_parallel.training.checkpoints.state import stand, standing
from mpi_parallel.training.log import logger

if TYPE_CHECKING:
    from mpi_parallel.training.run import Run


@dataclass
class Kept:
    """A run after some step: its numbers, the weights, and parts (span, arrays by name) of the optimizer's state."""

    numbers: dict[str, Any]
    weights: Array
    parts: list[tuple[slice, dict[str, Array]]]


class Heritage(Protocol):
    """What outlives an attempt."""

    @property
    def empty(self) -> bool:
        """Whether nobody has come as far as to a step."""

    def claim(self, config: TrainConfig) -> TrainConfig:
        """The options of this attempt."""

    def watch(self, run: Run) -> None:
        """The run of this attempt has begun."""

    def hand_to(self, run: Run) -> bool:
        """The run takes up the newest step that its ranks' memories hold together; whether there was one."""

    def keep(self, run: Run) -> None:
        """The run is at its start, or has come to the end of a step."""


class Forgetful:
    """The twin of Legacy in runs that survive nothing."""

    empty = True

    def claim(self, config: TrainConfig) -> TrainConfig:
        return config

    def watch(self, run: Run) -> None:
        pass

    def hand_to(self, run: Run) -> bool:
        return False

    def keep(self, run: Run) -> None:
        pass


@dataclass
class Legacy:
    """What a rank knows of the run so far, whatever becomes of other ranks: its newest steps, by their number."""

    kept: dict[int, Kept] = field(default_factory=dict)
    run: Run | None = None
    attempt: int = 0
    fatal: int = 0  # exit status for an error that is not the loss of a rank
    name: str = field(default_factory=lambda: f"rank {MPI.COMM_WORLD.rank} on {platform.node()}")
    out: str = ""  # the run's folder
    names: Sequence[str] = ()  # of the ranks of this attempt, by the numbers that the job gave them

    @property
    def empty(self) -> bool:
        """Told of the attempts, so that all ranks say the same."""
        return self.attempt == 1

    def meet(self, world: Communicator) -> int:
        """An attempt begins: all ranks learn who is there and where the run's folder is; rank 0 tells who is not.

        Returns the exit status for an error that a rank had in the attempt before, else 0.
        """
        told = [json.loads(text) for text in world.gather_text(json.dumps([self.name, self.out, self.fatal]))]
        before, self.names = self.names, [name for name, _, _ in told]
        self.out = next((out for _, out, _ in told if out), "")
        lost = [name for name in before if name not in self.names]
        if lost and world.rank == 0:  # on stderr, as between two attempts there is no log
            print(f"lost {', '.join(lost)}; {len(told)} ranks go on", file=sys.stderr, flush=True)
        self.attempt += 1
        return max(int(fatal) for _, _, fatal in told)

    def claim(self, config: TrainConfig) -> TrainConfig:
        """Every further attempt goes on in the folder of the first, and from the disk where memory does not suffice."""
        out = self.out or config.run.out
        if self.attempt == 1 or not out:
            return config
        return replace(config, run=replace(config.run, out=out, resume=config.run.resume or "auto"))

    def watch(self, run: Run) -> None:
        run.legacy, self.run, self.out = self, run, str(run.folder.path)

    def bury(self) -> None:
        """The attempt has failed: close what it had open, and keep no more of it than was kept."""
        if self.run is not None:
            self.run.saver.rest()
            self.run.folder.close()
            self.run = None

    def keep(self, run: Run) -> None:
        store = run.engine.store
        if run.merger.name != "sharded" or run.comm.size == 1:
            # All of it on every rank; and between two messages weights, state and numbers change together.
            whole = slice(0, store.size)
            self.kept = {run.step: Kept(standing(run), store.weights, [(whole, run.optimizer.state)])}
            return
        # While the others may be a step behind, two are kept; whoever has come here knows that all have kept the last.
        last = max((step for step in self.kept if step < run.step), default=None)
        old = [kept for step, kept in self.kept.items() if step not in (last, run.step)]
        newest = _with_neighbour(run, old[0] if old else None)
        self.kept = {run.step: newest} if last is None else {last: self.kept[last], run.step: newest}

    def hand_to(self, run: Run) -> bool:
        offers = [json.loads(text) for text in run.comm.gather_text(json.dumps(self._offer()))]
        steps = sorted({int(step) for offer in offers for step in offer}, reverse=True)
        for number in steps:
            spans = [offer.get(str(number), []) for offer in offers]
            plan = cover(spans, run.engine.store.size)
            if plan is not None:
                first = next(rank for rank, offer in enumerate(offers) if str(number) in offer)
                self._hand_over(run, number, plan, first)
                self.kept = {step: kept for step, kept in self.kept.items() if step == number}
                logger.info("%d ranks go on from step %d", run.comm.size, number)
                run.folder.event("survived", step=number, ranks=run.comm.size)
                return True
        if steps:
            logger.warning("those that died held parts of the optimizer's state that no other rank has")
        return False

    def _offer(self) -> dict[int, list[list[int]]]:
        return {step: [[span.start, span.stop] for span, _ in kept.parts] for step, kept in self.kept.items()}

    def _hand_over(self, run: Run, step: int, plan: list[tuple[int, int, slice]], first: int) -> None:
        """Everyone gets the numbers and the weights from rank `first`, each slice of the state as the plan says."""
        kept, store, comm = self.kept.get(step), run.engine.store, run.comm.on_host()
        mine, numbers = None, None
        if kept and comm.rank == first:
            mine = store.device.to_host(kept.weights)
            numbers = np.frombuffer(json.dumps(kept.numbers).encode(), np.uint8)
        weights, text = comm.broadcast(mine, first), comm.broadcast(numbers, first)
        for rank, part, span in plan:
            for name, array in run.optimizer.state.items():
                values = None
                if rank == comm.rank and kept:
                    whole, arrays = kept.parts[part]
                    values = store.device.to_host(arrays[name][span.start - whole.start : span.stop - whole.start])
                received = comm.broadcast(values, rank)
                start, stop = max(span.start, run.merger.owned.start), min(span.stop, run.merger.owned.stop)
                if start < stop:
                    array[start:stop] = store.device.to_device(received[start - span.start : stop - span.start])
        store.weights[...] = store.device.to_device(weights)
        stand(run, json.loads(text.tobytes()))


def cover(offers: list[list[list[int]]], size: int) -> list[tuple[int, int, slice]] | None:
    """(rank, number of its part, span) that together make range(size), from each rank's spans; None if they do not."""
    spans = sorted(
        (start, stop, rank, part) for rank, parts in enumerate(offers) for part, (start, stop) in enumerate(parts)
    )
    plan, end = [], 0
    while end < size:
        reach = [(stop, rank, part) for start, stop, rank, part in spans if start <= end < stop]
        if not reach:
            return None
        stop, rank, part = max(reach, key=lambda found: (found[0], -found[1]))
        plan.append((rank, part, slice(end, stop)))
        end = stop
    return plan


def _with_neighbour(run: Run, old: Kept | None) -> Kept:
    """Copies of the weights, of this rank's share of the optimizer's state and of that of the rank before it.

    They go into the memory of `old` where that is of the same shape.
    """
    store, state, comm = run.engine.store, run.optimizer.state, run.training.comm
    spans = [share(store.size, comm.size, (comm.rank - back) % comm.size) for back in (0, 1)]
    if old is None or [span for span, _ in old.parts] != spans:
        parts = [(span, {name: np.empty(span.stop - span.start, np.float32) for name in state}) for span in spans]
        old = Kept({}, np.empty(store.size, np.float32), parts)
    (mine, own), (_, other) = old.parts
    old.weights[...] = store.device.to_host(store.weights)
    for name, array in state.items():
        own[name][...] = store.device.to_host(array[mine])
        comm.pass_on(own[name], other[name])
    old.numbers = standing(run)
    return old
