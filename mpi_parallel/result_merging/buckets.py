"""Merging while backward goes on: an Iallreduce for each bucket of gradients, as soon as they are complete."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from time import perf_counter

from mpi_parallel.mpi.communicator import Communicator
from mpi_parallel.mpi.messages import PendingSum
from mpi_parallel.nn.store import Parameter, ParameterStore
from mpi_parallel.result_merging.merger import Merger
from mpi_parallel.result_merging.metrics import Totals

BUCKET = 1 << 20  # bytes: below, what a message costs by itself outweighs what is hidden


@dataclass
class Bucket:
    """A part of the gradients that travels as one message, and when it did (perf_counter) in the last step."""

    span: slice
    begun: float = 0.0
    ended: float = 0.0
    sum: PendingSum | None = None

    def begin(self, store: ParameterStore, comm: Communicator) -> None:
        """Start its sum."""
        self.begun, self.sum = perf_counter(), comm.begin_sum(store.gradients[self.span])

    def look(self) -> None:
        """Let MPI work on the sum, and note it if that is done."""
        if self.sum and self.sum.done():
            self.finish()

    def finish(self) -> None:
        """Wait for the sum."""
        if self.sum:
            self.sum.wait()
            self.ended, self.sum = perf_counter(), None


class Buckets(Merger):
    """Every rank gets the whole sum, bucket by bucket; the last bucket travels with the tail when all is complete.

    The store holds gradients in the order in which backward completes them, so a bucket is a slice of it. MPI makes
    progress only when it is called, which `ready` does between layers.
    """

    overlaps = True

    name = "buckets"

    def __init__(self, store: ParameterStore, comm: Communicator, nbytes: int = BUCKET) -> None:
        """A bucket has at least `nbytes`, unless that is more than everything."""
        super().__init__(store, comm)
        *first, last = spans(list(store.parameters.values()), nbytes)
        self.buckets = [Bucket(span) for span in first]
        self.rest = Bucket(last)
        self._begun = 0

    def ready(self, parameters: Sequence[Parameter]) -> None:
        """Start the buckets that are complete with these parameters, and let MPI work on those under way."""
        complete = max(parameter.span.stop for parameter in parameters)
        for bucket in self.buckets[: self._begun]:
            bucket.look()
        while self._begun < len(self.buckets) and self.buckets[self._begun].span.stop <= complete:
            self.buckets[self._begun].begin(self.store, self.comm)
            self._begun += 1

    def merge(self) -> Totals:
        """Sum what is left, with the tail, and wait for the rest."""
        assert self._begun == len(self.buckets), "ready was not called for all parameters"
        self.rest.begun = perf_counter()
        self.comm.sum(self.store.merged[self.rest.span.start :])
        self.rest.ended = perf_counter()
        for bucket in self.buckets:
            bucket.finish()
        self._begun = 0
        return Totals.of(self.store.device.to_host(self.store.tail))

    def travels(self) -> Iterator[tuple[str, float, float]]:
        """Each bucket from the start of its sum to when its completion was seen."""
        for bucket in (*self.buckets, self.rest):
            yield f"sum of {bucket.span.stop - bucket.span.start:,} weights", bucket.begun, bucket.ended


def spans(parameters: Sequence[Parameter], nbytes: int) -> list[slice]:
    """Consecutive parameters together until they have `nbytes`; what is left at the end goes with the last ones."""
    ends = [0]
    for parameter in parameters:
        if 4 * (parameter.span.stop - ends[-1]) >= nbytes:
            ends.append(parameter.span.stop)
    ends[max(1, len(ends) - 1) :] = [parameters[-1].span.stop]
    return [slice(start, stop) for start, stop in pairwise(ends)]
