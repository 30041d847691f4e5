"""Rows on their way to a GPU: a ring in its memory, which the host fills beside the work on rows that came before.

    host      take N        take N+1        take N+2          by way of pinned memory
    copies          N there         N+1 there       N+2 there     each behind the work on the rows that it overwrites
    stream                  step N          step N+1 ...          each behind the copy of its own rows

The ring stays where it is, so steps that were captured find their rows by index, as where all rows are resident.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mpi_parallel.device.cuda_kernels import address
from mpi_parallel.device.interface import Array
from mpi_parallel.device.places import BATCHES_AT_HAND, Taken

if TYPE_CHECKING:
    from mpi_parallel.device.cuda import Cuda


@dataclass
class Brought:
    """Rows that were brought together: the first one's number, when they are there, and when they have served."""

    first: int
    there: Any
    served: Any = None


class CudaLanding:
    """A device.places.Landing of one GPU."""

    def __init__(self, device: Cuda, most: int, features: int, dtype: np.dtype[Any]) -> None:
        self.device, self.landed, self.room = device, 0, BATCHES_AT_HAND * max(1, most)
        self._here = device.pinned((self.room, features), dtype), device.pinned((self.room,), np.int32)
        self.images: Array = device.xp.empty((self.room, features), dtype)
        self.labels: Array = device.xp.empty((self.room,), np.int32)
        self._there = address(self.images), address(self.labels)
        self._earlier: deque[Brought] = deque()
        device.copies.wait_event(self._event(device.stream))  # this memory may have been that of work not yet done

    def bring(self, count: int, taken: Iterable[Taken]) -> None:
        device, first = self.device, self.landed
        self._make_room(count)
        for images, labels, chosen in taken:
            for rows, start in self._spans(chosen):
                for source, here, there in zip((images, labels), self._here, self._there, strict=True):
                    part = here[start : start + len(rows)]
                    fill(part, source, rows)
                    to, kind = there + start * here.strides[0], device.runtime.memcpyHostToDevice
                    device.copy(to, part.ctypes.data, part.nbytes, kind, device.copies)
            self.landed += len(chosen)
        assert self.landed == first + count
        there = self._event(device.copies)
        device.stream.wait_event(there)
        self._earlier.append(Brought(first, there))

    def _make_room(self, count: int) -> None:
        """Whatever overwrites the rows that are to go waits for what was started on them."""
        assert count * BATCHES_AT_HAND <= self.room
        if self._earlier:
            self._earlier[-1].served = self._event(self.device.stream)
        while self._earlier and self._earlier[0].first + self.room < self.landed + count:
            oldest = self._earlier.popleft()
            oldest.there.synchronize()  # they have left the pinned memory
            self.device.copies.wait_event(oldest.served)

    def _spans(self, chosen: NDArray[Any]) -> Iterator[tuple[NDArray[Any], int]]:
        """These rows in parts that lie in one piece, each with the place of its first."""
        start = self.landed % self.room
        before = min(len(chosen), self.room - start)
        yield chosen[:before], start
        if before < len(chosen):
            yield chosen[before:], 0

    def _event(self, stream: Any) -> Any:
        event = self.device.xp.cuda.Event(disable_timing=True)
        event.record(stream)
        return event


def fill(out: NDArray[Any], rows: NDArray[Any], chosen: NDArray[Any]) -> None:
    """out = rows[chosen], also of another type."""
    if out.dtype == rows.dtype:
        np.take(rows, chosen, axis=0, out=out, mode="clip")  # any other mode makes a copy first
    else:
        out[...] = rows[chosen]
