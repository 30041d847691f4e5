"""Steps in their order, of which a device may have begun some that the host has not heard of yet.

    host     begin 1   begin 2   begin 3   hear of 1, begin 4   hear of 2, begin 5   ...
    device             [  1  ][  2  ][  3  ][  4  ][  5  ]

A device that carries on by itself what a step needs (training/captured.py) need not wait for the host between two of
them. The host hears late of what came of a step, by a number of steps that is the same on all ranks. Where it has
something to do with the weights it lets the device come to rest first: at the end of an epoch, where a step's number
says so, and where a rank asked for it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import chain

from mpi_parallel.data_parallel.loader import Batch
from mpi_parallel.result_merging.metrics import Totals


class Steps(ABC):
    """Takes synchronised steps."""

    ahead = 0  # how many may be under way when another one is begun

    @abstractmethod
    def begin(self, batch: Batch, number: int, stop: bool = False, save: bool = False) -> None:
        """Begin the step `number`, from 0, of this batch; `stop` and `save` tell all ranks what this one was asked."""

    @abstractmethod
    def end(self) -> Totals:
        """What came of the step that was begun first of those that are under way."""

    def close(self) -> None:  # noqa: B027, most hold nothing
        """Give back what steps are replayed from, which has to be gone before the merger is closed."""

    def __call__(self, batch: Batch, number: int, stop: bool = False, save: bool = False) -> Totals:
        """The whole step, where none is under way."""
        self.begin(batch, number, stop, save)
        return self.end()


def _nothing(_: int) -> tuple[bool, bool]:
    """This rank was asked for nothing."""
    return False, False


def _never(_: int) -> bool:
    """No step needs the device at rest."""
    return False


def in_order(
    steps: Steps,
    batches: Iterable[Batch],
    first: int,
    before: Callable[[int], tuple[bool, bool]] = _nothing,
    rests: Callable[[int], bool] = _never,
) -> Iterator[tuple[Batch, Totals]]:
    """Take the steps of these batches, numbered from `first` on; each with what came of it.

    `before` hears the number of each step that is begun, and says whether this rank was asked to stop, and to save.
    When a request of any rank is handed out no step is under way: it comes with the last of those that were. Nor is
    there one behind a step of which `rests` says so, from the number of steps that are then taken.
    """
    under_way: deque[Batch] = deque()
    stop = save = False
    for number, batch in enumerate(chain(batches, (None,)), first):
        if batch is not None:
            steps.begin(batch, number, *before(number))
            under_way.append(batch)
        while under_way and (batch is None or len(under_way) > steps.ahead or stop or save or rests(number + 1)):
            totals = steps.end()
            stop, save = stop or totals.stop, save or totals.save
            yield under_way.popleft(), _asking(totals, stop and not under_way, save and not under_way)
            if not under_way:
                stop = save = False


def _asking(totals: Totals, stop: bool, save: bool) -> Totals:
    """The totals with these requests."""
    return totals if (totals.stop, totals.save) == (stop, save) else replace(totals, stop=stop, save=save)
