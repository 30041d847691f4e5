"""Train, and let something go wrong on the way: python -m tests.faulty RANK PLACE:COUNT ACTION [TRAINING OPTIONS].

On this rank of the job, when PLACE is reached for the COUNTth time: opening (of the data), reading, merging (its
choice), folder, forward, merge, publish, or evaluation.
Several faults are parted by a comma: `1,2 forward:5,merge:7 kill,kill`.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from mpi4py import MPI

from mpi_parallel import signals, train
from mpi_parallel.data_parallel.replica import Replica
from mpi_parallel.mpi.session import launch
from mpi_parallel.training import fit, step

Act = Callable[[Any], None]


def flip(store: Any) -> None:
    """One bit of one weight of this rank alone."""
    store.weights.view(np.uint32)[7] ^= 1 << 12


def bad(store: Any) -> None:
    """A gradient that is not finite."""
    store.parameters["b0"].gradient[3] = np.nan
    store.flag_bad()


def dawdle(store: Any) -> None:
    """Be asked to stop while doing something that takes for ever."""
    signals.PATIENCE = 1.0
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(1000)


ACTIONS: dict[str, Act] = {
    "kill": lambda store: os.kill(os.getpid(), signal.SIGKILL),
    "stop": lambda store: os.kill(os.getpid(), signal.SIGSTOP),
    "hang": lambda store: time.sleep(1000),
    "pause": lambda store: time.sleep(2),
    "lock": lambda store: ctypes.PyDLL(None).sleep(1000),  # and no other thread of this process runs
    "crash": lambda store: ctypes.string_at(0),  # type: ignore[dict-item, return-value]
    "raise": lambda store: 1 / 0,  # type: ignore[dict-item, return-value]
    "flip": flip,
    "bad": bad,
    "dawdle": dawdle,
    **{number.name: partial(lambda number, store: os.kill(os.getpid(), number), number) for number in signals.SIGNALS},
}


class Faults:
    """What is to happen where; `reach` is told of every place."""

    def __init__(self, ranks: str, places: str, actions: str) -> None:
        self.plan = {
            place: ACTIONS[action]
            for rank, place, action in zip(ranks.split(","), places.split(","), actions.split(","), strict=True)
            if int(rank) == MPI.COMM_WORLD.rank
        }
        self.reached: Counter[str] = Counter()

    def reach(self, place: str, store: Any = None) -> None:
        self.reached[place] += 1
        act = self.plan.get(f"{place}:{self.reached[place]}")
        if act is not None:
            print(f"fault in {place} at {time.time()}", flush=True)
            act(store)

    def before(self, place: str, verb: Callable[..., Any], store: Any = None) -> Callable[..., Any]:
        """The verb, with the place reached at its start."""

        def verb_with_fault(*arguments: Any, **named: Any) -> Any:
            self.reach(place, store)
            return verb(*arguments, **named)

        return verb_with_fault


def put_into(faults: Faults) -> None:
    """Have the places of the program reached."""
    take, run, rows = step.train_step, Replica.run, train.TrainingRows

    def train_step(engine: Any, batch: Any, merger: Any, *others: Any, **named: Any) -> Any:
        if "merge" not in vars(merger):
            merger.merge = faults.before("merge", merger.merge, engine.store)
            merger.publish = faults.before("publish", merger.publish, engine.store)
        return take(engine, batch, merger, *others, **named)

    def run_with_fault(self: Replica, *arguments: Any) -> None:
        faults.reach("forward", self.store)
        run(self, *arguments)

    step.train_step = train_step  # type: ignore[assignment]
    fit.evaluate = faults.before("evaluation", fit.evaluate)
    Replica.run = run_with_fault  # type: ignore[method-assign]
    train.TrainingRows = faults.before("reading", rows)  # type: ignore[assignment, misc]
    train.open_image_set = faults.before("opening", train.open_image_set)
    train.open_merger = faults.before("merging", train.open_merger)
    train.RunFolder = faults.before("folder", train.RunFolder)  # type: ignore[assignment, misc]


if __name__ == "__main__":
    put_into(Faults(*sys.argv[1:4]))
    del sys.argv[1:4]
    launch(train.main, stoppable=True)
