"""A communicator with the few verbs in use; the one place that orders a GPU's work before a message."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
from mpi4py import MPI
from numpy.typing import NDArray

from mpi_parallel.device import Array, Device, Host
from mpi_parallel.mpi.messages import PendingSum, at_once, messages, row_type
from mpi_parallel.mpi.partition import share
from mpi_parallel.mpi.pulse import waiting


class Communicator:
    """Some ranks that talk to each other about arrays of one device.

    Every verb is collective: all ranks of the communicator call it, with arrays of the same shape and dtype. Arrays
    of a GPU are staged through the host's memory, which waits for the work on them.
    """

    def __init__(
        self, comm: MPI.Intracomm, device: Device | None = None, family: list[MPI.Intracomm] | None = None
    ) -> None:
        """`family` are all communicators that were made from one, to be revoked together."""
        self.comm = comm
        self.family = [] if family is None else family
        if comm not in self.family:
            self.family.append(comm)
        self.device: Device = Host() if device is None else device
        self.rank, self.size = comm.rank, comm.size

    def on(self, device: Device) -> Communicator:
        """The same ranks, for arrays of `device`."""
        return Communicator(self.comm, device, self.family)

    def on_host(self) -> Communicator:
        """The same ranks, for arrays in the host's memory."""
        return self if self.device.kind == "cpu" else self.on(Host())

    @waiting
    def node(self) -> Communicator:
        """The ranks that share this rank's node."""
        return Communicator(MPI.Intracomm(self.comm.Split_type(MPI.COMM_TYPE_SHARED)), self.device, self.family)

    @waiting
    def split(self, group: int) -> Communicator:
        """The ranks that give the same number, in this communicator's order."""
        return Communicator(MPI.Intracomm(self.comm.Split(group, self.rank)), self.device, self.family)

    def share(self, n: int) -> slice:
        """This rank's share of an array of n elements."""
        return share(n, self.size, self.rank)

    @waiting
    def sum(self, array: Array) -> None:
        """Replace the array by its elementwise sum over the ranks, the same bits on all."""
        if self.size > 1:
            values = self.device.to_host(array)
            for part in messages(values):
                self.comm.Allreduce(MPI.IN_PLACE, part, MPI.SUM)
            self.device.refill(array, values)

    @waiting
    def sum_there(self, array: Array) -> None:
        """As `sum`, by an MPI that reads and writes the device's memory itself; the device has to be done with it.

        Blocking: both MPIs have crashed in non-blocking reductions of a GPU's arrays.
        """
        for part in messages(array):
            self.comm.Allreduce(MPI.IN_PLACE, part, MPI.SUM)

    @waiting
    def largest(self, array: Array) -> None:
        """Replace the array by its elementwise maximum over the ranks; what becomes of NaN is undefined."""
        if self.size > 1:
            values = self.device.to_host(array)
            for part in messages(values):
                self.comm.Allreduce(MPI.IN_PLACE, part, MPI.MAX)
            self.device.refill(array, values)

    def begin_sum(self, array: Array) -> PendingSum:
        """Start to replace the array, which nobody may touch meanwhile, by its sum over the ranks."""
        return PendingSum(self.comm, self.device, array)

    @waiting
    def sum_shares(self, array: Array, mine: NDArray[Any]) -> None:
        """Replace this rank's share of a flat array by its sum over the ranks; what becomes of the rest is undefined.

        `mine` is scratch of the host, as long as the share.
        """
        if self.size == 1:
            return
        values, spans = self.device.to_host(array), self._shares(array.size)
        if at_once(array):
            self.comm.Reduce_scatter(values, mine, [span.stop - span.start for span in spans], MPI.SUM)
            array[spans[self.rank]] = self.device.to_device(mine)
            return
        for root, span in enumerate(spans):
            for part in messages(values[span]):
                sender, receiver = (MPI.IN_PLACE, part) if root == self.rank else (part, None)
                self.comm.Reduce(sender, receiver, MPI.SUM, root)
        array[spans[self.rank]] = self.device.to_device(values[spans[self.rank]])

    @waiting
    def gather_shares(self, array: Array) -> None:
        """Replace the shares of the other ranks by what these have there."""
        if self.size == 1:
            return
        values, spans = self.device.to_host(array), self._shares(array.size)
        if at_once(array):
            counts, starts = [span.stop - span.start for span in spans], [span.start for span in spans]
            self.comm.Allgatherv(MPI.IN_PLACE, [values, (counts, starts)])
        else:
            for root, span in enumerate(spans):
                for part in messages(values[span]):
                    self.comm.Bcast(part, root)
        self.device.refill(array, values)

    @waiting
    def total(self, value: float) -> float:
        """The sum of the ranks' numbers, in float64; the same bits on all."""
        values = np.array([value], np.float64)
        self.comm.Allreduce(MPI.IN_PLACE, values, MPI.SUM)
        return float(values[0])

    @waiting
    def maximum(self, value: int) -> int:
        """The largest of the ranks' numbers."""
        values = np.array([value], np.int64)
        self.comm.Allreduce(MPI.IN_PLACE, values, MPI.MAX)
        return int(values[0])

    @waiting
    def gather(self, row: NDArray[Any], rows: NDArray[Any] | None = None) -> NDArray[Any]:
        """(size, *row.shape) on every rank: the host arrays of all ranks, by rank; in `rows` where that is given."""
        rows = np.empty((self.size, *row.shape), row.dtype) if rows is None else rows
        self.comm.Allgather(np.ascontiguousarray(row), rows)
        return rows

    @waiting
    def gather_rows(self, rows: Array, counts: Sequence[int], everyone: Array) -> None:
        """Fill `everyone` (sum of counts, M) with the rows (counts[rank], M) of all ranks, by rank; of one type."""
        values, table = self.device.to_host(rows), self.device.to_host(everyone)
        starts = [0, *accumulate(counts)]
        if at_once(table):
            row = row_type(table.shape[1] * table.itemsize)
            self.comm.Allgatherv([values, len(values), row], [table, (counts, None), row])
        else:
            table[starts[self.rank] : starts[self.rank + 1]] = values
            for root, (start, stop) in enumerate(pairwise(starts)):
                for part in messages(table[start:stop]):
                    self.comm.Bcast(part, root)
        self.device.refill(everyone, table)

    @waiting
    def exchange_columns(self, rows: Array, counts: Sequence[int], everyone: Array) -> None:
        """Fill `everyone` (sum of counts, mine) with this rank's share of the columns of all ranks' rows, by rank.

        `rows` are this one's (counts[rank], M), of the same type. Row by row, as nothing has to be packed for
        that: each part is sent from where it lies and received where it belongs.
        """
        values, table = self.device.to_host(rows), self.device.to_host(everyone)
        spans, starts = self._shares(values.shape[1]), [0, *accumulate(counts)]
        theirs = [table[start:stop] for start, stop in pairwise(starts)]
        theirs[self.rank][...] = values[:, spans[self.rank]]
        requests: list[MPI.Request] = []
        for turn in range(1, self.size):
            to, source = (self.rank + turn) % self.size, (self.rank - turn) % self.size
            requests += [self.comm.Irecv(part, source) for row in theirs[source] for part in messages(row)]
            requests += [self.comm.Isend(part, to) for row in values[:, spans[to]] for part in messages(row)]
        MPI.Request.Waitall(requests)
        self.device.refill(everyone, table)

    @waiting
    def gather_text(self, text: str) -> list[str]:
        """The ranks' texts on every rank, by rank."""
        return self.comm.allgather(text)

    @waiting
    def hand_over(self, text: str) -> None:
        """Give rank 0 a text, which it takes by `take_over`."""
        self.comm.send(text, 0)

    def take_over(self) -> Iterator[str]:
        """On rank 0: the texts that the others hand over, by rank, one at a time in memory."""
        for rank in range(1, self.size):
            yield self._text_of(rank)

    @waiting
    def _text_of(self, rank: int) -> str:
        text: str = self.comm.recv(source=rank)
        return text

    @waiting
    def broadcast(self, array: NDArray[Any] | None, root: int = 0) -> NDArray[Any]:
        """The root's host array on every rank; only the root needs to give one."""
        assert self.rank != root or array is not None
        head = None if array is None else (array.shape, array.dtype.str)
        shape, dtype = self.comm.bcast(head, root)
        values = np.asarray(array, order="C") if array is not None else np.empty(shape, dtype)
        for part in messages(values):
            self.comm.Bcast(part, root)
        return values

    @waiting
    def pass_on(self, array: NDArray[Any], from_before: NDArray[Any]) -> None:
        """Send a host array to the next rank, and receive that of the rank before; the last is before the first."""
        next_rank, before = (self.rank + 1) % self.size, (self.rank - 1) % self.size
        self.comm.Sendrecv(array, next_rank, recvbuf=from_before, source=before)

    @waiting
    def meet(self) -> None:
        """Wait until all ranks are here."""
        self.comm.Barrier()

    def progress(self) -> None:
        """Let MPI work on messages that are under way: it does so only within its calls."""
        self.comm.Iprobe()

    def free(self) -> None:
        """Give the communicator back to MPI."""
        self.family.remove(self.comm)
        self.comm.Free()

    def _shares(self, n: int) -> list[slice]:
        return [share(n, self.size, rank) for rank in range(self.size)]
