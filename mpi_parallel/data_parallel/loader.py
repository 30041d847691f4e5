"""A rank's part of the training split, resident or streamed, and the batches that every epoch draws from it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpi_parallel.data_parallel.dataset import ImageSet
from mpi_parallel.data_parallel.digest import digest_of_parts, digest_of_rows, digest_of_streamed
from mpi_parallel.data_parallel.memory import Budget, Shared
from mpi_parallel.data_parallel.order import Positions
from mpi_parallel.data_parallel.rows import Rows, bytes_of_row, streamed_rows
from mpi_parallel.data_parallel.scaling import Scaler, moments_of_pieces, standardise
from mpi_parallel.data_parallel.streaming import pieces, stream_shuffled
from mpi_parallel.device import Array, Augmentation, Device
from mpi_parallel.device.host import best_kernels
from mpi_parallel.mpi.communicator import Communicator
from mpi_parallel.mpi.partition import block, dealt
from mpi_parallel.options import InputError

POSITIONS_AT_ONCE = 2**16  # of this rank: their order is worked out together

BATCHES_AT_ONCE = (
    256  # are put together: one by one, between steps that empty the caches, each takes four times as long
)


@dataclass(slots=True)
class Batch:
    """This rank's rows of one step: their numbers among the rank's rows, and keys that name them (order.Positions)."""

    index: Array  # (b,) int64
    keys: Array  # (b,) uint32
    edges: Sequence[int] | None = None  # where one group of rows ends and the next begins; None: all are one group
    order: tuple[Array, Array] | None = None  # the longer arrays that index and keys are cut from, at `start`
    start: int = 0

    def groups(self) -> Iterator[Batch]:
        """The parts whose gradients are summed apart."""
        if self.edges is None:
            yield self
            return
        for start, stop in pairwise(self.edges):
            yield Batch(self.index[start:stop], self.keys[start:stop])

    def parts(self, size: int | None) -> Iterator[Batch]:
        """Micro-batches of at most `size` rows, at least one: a rank without rows takes the same path."""
        if not size or len(self.index) <= size:
            yield self
            return
        for start in range(0, len(self.index), size):
            yield Batch(self.index[start : start + size], self.keys[start : start + size])


class TrainingRows:
    """This rank's shards of the training split, and the batches that every epoch draws from them.

    `digest` names the rows of all ranks, and does not depend on their number. `holding` says how rows are held:
    "resident" ones are read once and kept, "streaming" ones are read anew in each epoch. Which it is decides the order
    of the samples, the number of ranks does not.
    """

    def __init__(
        self,
        data: ImageSet,
        shards: int,
        seed: int,
        comm: Communicator,
        device: Device,
        budget: Budget | None = None,
        augment: Augmentation | None = None,
        peers: Communicator | None = None,
        groups: int | None = None,
        images: bool = True,
    ) -> None:
        """Find out how the shards are held, and read them, or see through them, once.

        `peers` are ranks that need the same rows as this one: those on its node keep one copy together. Of them some,
        rank 0 among them, look at `images`, and the others at labels alone, and read no more. With `groups`
        position p belongs to group p mod `groups`, ranks own runs of whole groups, and a batch keeps them apart.
        Raises InputError for bad values, for fewer rows than ranks and where the budget is too small for either way.
        """
        self.total, self.of, self.seed, self.comm, self.device = len(data.train), shards, seed, comm, device
        if self.total < comm.size:
            raise InputError(f"{data.path}: {self.total} training rows for {comm.size} ranks: use fewer ranks")
        self.split, self.name = data.train, f"{data.path}:{data.train.images}"
        self.groups = groups or 1
        self.own_groups = block(groups, comm.size, comm.rank) if groups else range(1)
        self.shards: Sequence[int] = dealt(shards, comm.size, comm.rank) if groups is None else self._of_groups()
        self.positions = Positions(self.shards, self.total, self.of, best_kernels())  # the host works out the order
        self.parts = {shard: block(self.total, shards, shard) for shard in self.shards}
        self.images, self._model = images, None if peers is None or peers.size == 1 else peers
        self.peers = None if self._model is None else _near(self._model, images)
        self._shared: list[Shared] = []
        self._seen = data.train if images else data.train.without_images()
        held = sum(map(len, self.parts.values())) * bytes_of_row(self._seen, device)
        self.bytes = held // (self.peers.size if self.peers and device.kind == "cpu" else 1)  # a GPU has its own copy
        self.budget = budget or Budget()
        fits = not comm.maximum(int(not self.budget.fits(self.bytes)))
        if self._model is not None:
            fits = not self._model.maximum(int(not fits))
        self.holding = "resident" if fits else "streaming"
        if groups and not fits:
            raise InputError(
                f"{data.path}: --reproducible needs the training rows resident: {self.told()}; see --memory"
            )
        (self._keep if fits else self._pass_through)(data, augment)

    def rows_of_file(self, index: NDArray[np.int64]) -> list[int]:
        """Where in the file the resident rows with these numbers are."""
        places = np.concatenate([np.arange(part.start, part.stop) for part in self.parts.values()])
        return [self.split.row(int(place)) for place in places[index]]

    def told(self) -> str:
        """For people: what the training rows take on this rank."""
        return f"{self.bytes / 2**20:,.0f} MiB of {self.budget.bytes / 2**20:,.0f} a rank"

    def steps(self, batch_size: int) -> int:
        """Steps of an epoch; the last one may be short."""
        return -(-self.total // batch_size)

    def epoch(self, number: int, batch_size: int, first: int = 0) -> Iterator[Batch]:
        """The rank's part of every step of an epoch (numbered from 0) from step `first` on; some parts may be empty."""
        positions = self.positions
        self.rows.rewind(number, int(positions.below(min(first * batch_size, self.total))[0]))
        at_once = max(1, POSITIONS_AT_ONCE * self.of // max(1, len(self.shards)) // batch_size) * batch_size
        for begin in range(first * batch_size, self.total, at_once):
            span = range(begin, min(begin + at_once, self.total))
            sequence, edges = positions.steps(span, batch_size, self.groups, self.own_groups)
            keys = self.device.to_device(positions.keys(self.seed, number, span)[sequence])
            if self.holding == "resident":
                local = positions.rows(self.seed, number, span)[sequence]
            else:
                most = min(batch_size, len(self.shards) * -(-batch_size // self.of))
                local = self.rows.places(range(len(keys)), most)  # they come in this order
            index = self.device.to_device(local)
            whole = index, keys
            for some in range(0, len(edges), BATCHES_AT_ONCE):
                yield from [self._batch(whole, cuts) for cuts in edges[some : some + BATCHES_AT_ONCE]]

    def _batch(self, whole: tuple[Array, Array], cuts: Sequence[int]) -> Batch:
        """The one between these edges of its groups in index and keys."""
        first, last = cuts[0], cuts[-1]
        within = [cut - first for cut in cuts] if self.groups > 1 else None
        return Batch(whole[0][first:last], whole[1][first:last], within, whole, first)

    def free(self) -> None:
        """Give back what is shared with peers; the rows are dead. All ranks together."""
        self._give_back()
        if self.peers is not None:
            self.peers.free()

    def _give_back(self) -> None:
        for array in self._shared:
            array.free()
        self._shared = []

    def _of_groups(self) -> Sequence[int]:
        """All shards of this rank's groups."""
        return [shard for shard in range(self.of) if shard % self.groups in self.own_groups]

    def _keep(self, data: ImageSet, augment: Augmentation | None) -> None:
        """Read the shards into one array, one after the other; peers read different shards of it."""
        count = sum(map(len, self.parts.values()))
        images = Shared(self.peers if self.images else None, (count, self._seen.features), data.dtype)
        labels = Shared(self.peers, (count,), np.dtype(np.int32))
        self._shared = [images, labels]
        turns, turn = (self.peers.size, self.peers.rank) if self.peers else (1, 0)
        held, start = {}, 0
        for number, (shard, part) in enumerate(self.parts.items()):
            where = slice(start, start + len(part))
            held[shard], start = images.array[where], where.stop
            if number % turns == turn:
                _, labels.array[where] = self._seen.read(part, images.array[where])
        images.settle()
        labels.settle()
        self._know(data, held, lambda: self._digests(held, labels.array))
        self.rows: Rows = Rows(images.array, labels.array, self.scaler, self.device, augment)
        if self.device.kind != "cpu":  # which has a copy in memory of its own
            self._give_back()

    def _know(self, data: ImageSet, shards: Mapping[int, Any], digests: Callable[[], Mapping[int, bytes]]) -> None:
        """Find scaler and digest of all ranks' rows, where there are images; the others are told."""
        self.digest = ""
        if self.images:
            self.scaler = _scaler(data, shards, self.of, self.comm)
            self.digest = digest_of_parts(digests(), self.of, self.comm)
        if self._model is not None:
            host, mine = self._model.on_host(), [self.scaler.mean, self.scaler.std] if self.images else [None, None]
            self.scaler = Scaler(*map(host.broadcast, mine))
            self.digest = host.gather_text(self.digest)[0]

    def _digests(self, held: Mapping[int, NDArray[Any]], labels: NDArray[np.int32]) -> dict[int, bytes]:
        """Of the shards' rows."""
        ends = np.cumsum([0, *map(len, held.values())])
        return {
            shard: digest_of_rows(images, labels[start : start + len(images)])
            for (shard, images), start in zip(held.items(), ends[:-1], strict=True)
        }

    def _pass_through(self, data: ImageSet, augment: Augmentation | None) -> None:
        """Open the stream and see through all labels, and through the images where the file has no moments of them."""
        stream = stream_shuffled(data.train, self.parts, self.of, self.seed, self.budget, self.comm, self.images)
        self.bytes = stream.buffers.nbytes
        largest = max(map(data.train.largest_label, self.parts.values()), default=-1)
        blocks = dict(zip(self.parts, stream.blocks, strict=True)) if data.mean is None and self.images else {}
        seen = {shard: moments_of_pieces(pieces(data.train, own)) for shard, own in blocks.items() if own}
        self._know(data, seen, lambda: digest_of_streamed(data.train, self.parts))
        self.rows = streamed_rows(stream, largest, self.scaler, self.device, augment)


def class_count(data: ImageSet, training: TrainingRows, others: list[Rows | None], comm: Communicator) -> int:
    """How many classes: as many as the file names, else one more than the largest label."""
    if data.classes is not None:
        return len(data.classes)
    held = max((rows.largest_label for rows in others if rows is not None), default=-1)
    return 1 + comm.maximum(max(training.rows.largest_label, held))


def _near(model: Communicator, images: bool) -> Communicator:
    """Of these ranks those on this node that look at the same."""
    node = model.node()
    peers = node.split(int(images))
    node.free()
    return peers


def _scaler(data: ImageSet, shards: Mapping[int, Any], of: int, comm: Communicator) -> Scaler:
    """The file's own moments where it has them, else those of the training rows."""
    if data.mean is not None:
        return Scaler.of(data.mean, data.std)
    return standardise(shards, [len(block(len(data.train), of, shard)) for shard in range(of)], data.features, comm)
