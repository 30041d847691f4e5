"""Rows that do not fit into memory: a thread reads windows of them ahead into a bounded pool of buffers.

The thread reads in the order of need and waits when all buffers are full; whoever trains waits when what it needs is
not there yet. h5py gives up Python's lock while HDF5 reads and unpacks, so reading overlaps with the arithmetic. There
is no fork: MPI and threads of BLAS do not survive one.
"""

from __future__ import annotations

import atexit
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from heapq import merge
from queue import SimpleQueue
from threading import Event, Thread
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpi_parallel.data_parallel.memory import Budget
from mpi_parallel.data_parallel.order import Integers
from mpi_parallel.data_parallel.split import Split, open_file
from mpi_parallel.data_parallel.windows import SLOT_BYTES, Window, cut_of, in_file_order, row_bytes, shuffled
from mpi_parallel.mpi.communicator import Communicator
from mpi_parallel.options import InputError

MOST_PLACES = 64  # of each lane that are dealt at a time
IN_ORDER_WINDOW = 8 << 20
FOREVER = 2**62
Schedule = Callable[[int], list[Iterator[Window]]]
Beside = Callable[[str, str, float, float], None]  # device.clock.Clock.beside: lane, name, begun, ended


@dataclass
class Loaded:
    """A window in memory: its buffer and the slots of its rows, in the order of their use, from `next` on."""

    buffer: int
    slots: Integers
    next: int = 0

    @property
    def left(self) -> int:
        return len(self.slots) - self.next


class Buffers:
    """`count` buffers of `capacity` rows each, as one array; a row of it is a slot."""

    def __init__(self, count: int, capacity: int, features: int, dtype: np.dtype[Any]) -> None:
        self.count, self.capacity = count, capacity
        self.images = np.empty((count * capacity, features), dtype)
        self.labels = np.empty(count * capacity, np.int32)

    @property
    def nbytes(self) -> int:
        """Memory of them all."""
        return self.images.nbytes + self.labels.nbytes

    def load(self, split: Split, source: Any, buffer: int, window: Window) -> Loaded:
        """Read a window into a buffer. Raises InputError for bad values."""
        start, slots = buffer * self.capacity, []
        for part in window.parts:
            span = slice(start, start + split.span(part))
            slots.append(start + split.load(source, part, self.images[span], self.labels[span]))
            start = span.stop
        return Loaded(buffer, np.concatenate(slots)[window.order()])


class Stream:
    """Slots of rows in the order of their use, epoch after epoch.

    `schedule(epoch)` gives each lane's windows in their order; place 0 of every lane comes before place 1 of any. At
    least as many buffers as lanes are needed: of each lane one window is in use. All others are read ahead.
    """

    def __init__(
        self, split: Split, blocks: list[list[range]], schedule: Schedule, buffers: Buffers, epochs: int
    ) -> None:
        """`blocks` are those of the lanes, in the order of the file; after `epochs` the reading ends."""
        assert buffers.count >= len(blocks)
        self.split, self.blocks, self.schedule, self.buffers, self.epochs = split, blocks, schedule, buffers, epochs
        self.lengths = [sum(map(len, lane)) for lane in blocks]
        self.beside: Beside = _unheard
        self._reader: Reader | None = None
        self._left = self._epoch = -1
        self._span: Integers = np.zeros(0, np.int64)

    def start(self, epoch: int, without: int = 0) -> None:
        """Go to the start of an epoch; it costs nothing to go on to the next one.

        Its first rows, `without` so many, are not wanted: windows that have no others are not read.
        """
        rows, place = sum(self.lengths), min([without // max(1, len(self.lengths)), *self.lengths])
        if rows and (self._reader is None or self._left or epoch != self._epoch + 1 or without):
            self.close()
            epochs, lanes = range(epoch, self.epochs), len(self.lengths)
            self._reader = Reader(self.split, self.schedule, epochs, lanes, self.buffers, self.beside, place)
            # Nobody waits for the reader here: this may be within h5py, whose lock the reader wants, too.
            weakref.finalize(self, self._reader.stop)
            self._current: list[Loaded | None] = [None] * len(self.lengths)
        self._epoch, self._left, self._place = epoch, rows - place * len(self.lengths), place
        without -= place * len(self.lengths)
        while without:
            without -= len(self.take(without))

    def take(self, most: int) -> Integers:
        """The slots of the next rows, at most so many and at least one; they are good until the next call.

        Waits for the reader, and raises what it met: InputError for bad values.
        """
        if not len(self._span):
            self._span = self._deal()
        slots, self._span = self._span[:most], self._span[most:]
        self._left -= len(slots)
        return slots

    def close(self) -> None:
        """Stop reading."""
        if self._reader is not None:
            self._reader.close()
            self._reader, self._span = None, self._span[:0]

    def _deal(self) -> Integers:
        """Take places from all lanes that still have some, as far as the windows in memory go."""
        active = [lane for lane, length in enumerate(self.lengths) if self._place < length]
        loaded = [self._window(lane) for lane in active]
        places = min(MOST_PLACES, *(window.left for window in loaded)) if len(loaded) > 1 else loaded[0].left
        table = np.empty((places, len(active)), np.int64)
        for column, window in enumerate(loaded):
            table[:, column] = window.slots[window.next : window.next + places]
            window.next += places
        self._place += places
        return table.ravel()

    def _window(self, lane: int) -> Loaded:
        """The lane's window in use; a used up one is given back first."""
        assert self._reader is not None
        window = self._current[lane]
        if window is None or not window.left:
            if window is not None:
                self._reader.free.put(window.buffer)
            begun = perf_counter()
            window = self._current[lane] = self._reader.wait(lane)
            self.beside("rows awaited", "wait for the reader", begun, perf_counter())
        return window


class Reader:
    """The thread that reads ahead, and the queues between it and the stream."""

    def __init__(
        self, split: Split, schedule: Schedule, epochs: range, lanes: int, buffers: Buffers, beside: Beside, place: int
    ) -> None:
        """In the first of the epochs all lanes begin at this place."""
        self.free: SimpleQueue[int] = SimpleQueue()
        self.ready: list[SimpleQueue[Loaded | BaseException]] = [SimpleQueue() for _ in range(lanes)]
        self.closed = Event()
        for number in range(buffers.count):
            self.free.put(number)
        arguments = (split, schedule, epochs, buffers, beside, place)
        self.thread = Thread(target=self._read, args=arguments, name="reader", daemon=True)
        self.thread.start()
        READING.add(self)

    def wait(self, lane: int) -> Loaded:
        """The lane's next window, when it is in memory."""
        window = self.ready[lane].get()
        if isinstance(window, BaseException):
            raise window
        return window

    def stop(self) -> None:
        """At the end of a window."""
        self.closed.set()
        self.free.put(-1)

    def close(self) -> None:
        """Stop, and wait for that."""
        self.stop()
        self.thread.join()

    def _read(
        self, split: Split, schedule: Schedule, epochs: range, buffers: Buffers, beside: Beside, place: int
    ) -> None:
        try:
            with open_file(split.path) as file:
                source = split.datasets(file)
                for epoch in epochs:
                    # The windows of all lanes by the place at which they are needed: nothing is waited for in vain.
                    for window in merge(*schedule(epoch), key=lambda window: (window.first, window.lane)):
                        begin = place - window.first if epoch == epochs.start else 0
                        if begin >= len(window):
                            continue
                        buffer = self.free.get()
                        if self.closed.is_set():
                            return
                        begun = perf_counter()
                        loaded = buffers.load(split, source, buffer, window)
                        loaded.next = max(0, begin)
                        self.ready[window.lane].put(loaded)
                        beside("reader", "read", begun, perf_counter())
        except BaseException as error:  # whoever waits for a window must hear of it
            for queue in self.ready:
                queue.put(error)


READING: weakref.WeakSet[Reader] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """No thread is to be in the midst of HDF5 when the program ends."""
    for reader in list(READING):
        reader.close()


def _unheard(lane: str, name: str, begun: float, ended: float) -> None:
    """Nobody listens."""


def stream_shuffled(
    split: Split,
    parts: Mapping[int, range],
    of: int,
    seed: int,
    budget: Budget,
    comm: Communicator,
    images: bool = True,
) -> Stream:
    """The stream of these shards (their places by their number, of `of`), with as many buffers as the budget allows.

    More than two a shard are no use. Without `images` only the labels come, in the same order. Raises InputError, on
    all ranks, where the budget allows fewer than one and another one.
    """
    cut = cut_of(split, budget.window // of)
    blocks = [split.blocks(part, cut.rows) for part in parts.values()]
    longest = comm.maximum(max((sum(map(split.span, lane)) for lane in blocks), default=0))
    capacity = max(1, min(cut.capacity, longest))
    seen = split if images else split.without_images()
    size = capacity * (row_bytes(seen) + SLOT_BYTES)
    lanes = len(blocks)
    count = int(min(2 * lanes, budget.bytes // size))
    if comm.maximum(int(count < min(2 * lanes, lanes + 1))):
        most = comm.maximum(lanes)
        raise InputError(
            f"{split.path}: to stream {split.images} a rank keeps {most + 1} windows of {size / 2**20:.1f} MiB, one "
            f"for each of its shards and one to read ahead, and may take {budget.bytes / 2**20:.1f} MiB: raise "
            f"--memory, lower --window ({budget.window >> 20}M) or --shards ({of}), or repack the file to "
            f"smaller chunks than {split.chunk} images"
        )

    def schedule(epoch: int) -> list[Iterator[Window]]:
        return [shuffled(lane, shard, blocks[lane], cut, seed, epoch) for lane, shard in enumerate(parts)]

    return Stream(seen, blocks, schedule, Buffers(count, capacity, seen.features, split.dtype), FOREVER)


def stream_in_order(split: Split, part: range, images: bool = True) -> Stream:
    """These places of the split, one after the other, once; without `images` their labels alone."""
    blocks = split.blocks(part, cut_of(split, IN_ORDER_WINDOW).rows)
    split = split if images else split.without_images()
    buffers = Buffers(3, max(map(split.span, blocks), default=1), split.features, split.dtype)
    return Stream(split, [blocks], lambda _: [in_file_order(blocks)], buffers, epochs=1)


def pieces(split: Split, blocks: Iterable[range]) -> Iterator[NDArray[Any]]:
    """The images (n, features) of each of these blocks."""
    for block in blocks:
        yield split.read(block)[0]
