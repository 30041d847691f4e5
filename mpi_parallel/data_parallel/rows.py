"""Rows that a rank has at hand, and the way from there to a network's input."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpi_parallel.data_parallel.scaling import Scaler
from mpi_parallel.data_parallel.split import Split
from mpi_parallel.data_parallel.streaming import Beside, Stream
from mpi_parallel.data_parallel.windows import row_bytes
from mpi_parallel.device import Array, Augmentation, Device, Raw
from mpi_parallel.device.places import BATCHES_AT_HAND, Landing, Taken
from mpi_parallel.device.workspace import Workspace


class Rows:
    """Images (n, features) and labels (n,) that this rank holds."""

    brought = False  # whether they are to be brought before they are gathered
    in_place = True  # whether `gather` finds them by their index, now and again

    def __init__(
        self, images: NDArray[Any], labels: NDArray[np.int32], scaler: Scaler, device: Device,
        augment: Augmentation | None = None,
    ) -> None:  # fmt: skip
        held = device.to_device(images)
        if held.dtype != _held_as(images.dtype, device):
            held = held.astype(np.float32)
        moments = (device.to_device(a.astype(np.float32)) for a in (scaler.mean, 1 / scaler.std))
        self.raw = Raw(held, device.to_device(labels), *moments)
        self.device, self.augment, self.features = device, augment, images.shape[1]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def images(self) -> Array:
        """(n, features), of the type that the device keeps them in."""
        return self.raw.images

    @property
    def labels(self) -> Array:
        """(n,) int32"""
        return self.raw.labels

    @property
    def largest_label(self) -> int:
        """-1 where there are no rows."""
        return int(self.labels.max()) if len(self.labels) else -1

    def gather(self, ws: Workspace, index: Array, keys: Array | None = None) -> tuple[Array, Array]:
        """Standardised images (B, features) as operands, and labels (B,) int32 of the rows in `index` (B,) int64.

        `keys` (B,) uint32 name the rows to what is random in their augmentation.
        """
        n = len(index)
        x, t = ws.operand((n, self.features)), ws.empty((n,), np.int32)
        self._standardise(self.raw, index, x, t, keys)
        return ws.narrowed(x), t

    def labels_of(self, ws: Workspace, index: Array) -> Array:
        """The labels that `gather` would give, without looking at the images."""
        t = ws.empty((len(index),), np.int32)
        self.device.kernels.pick(self.labels, index, t)
        return t

    def places(self, span: range, most: int) -> NDArray[np.int64]:
        """The index of those that come at these places of the order in which they are read, and are to be brought.

        No more than `most` will be brought at a time.
        """
        return np.arange(span.start, span.stop)

    def bring(self, count: int) -> None:
        """Have so many more of them where `gather` finds them."""

    def listen(self, beside: Beside) -> None:
        """Tell what goes on beside the training: only streams have something to tell."""

    def rewind(self, epoch: int = 0, without: int = 0) -> None:
        """The rows will now be asked for in the order of this epoch, `without` so many at its start."""

    def close(self) -> None:
        """The rows will not be asked for again."""

    def _standardise(self, raw: Raw, index: Array, x: Array, t: Array, keys: Array | None) -> None:
        """The one way from the file's numbers to the network's."""
        if self.augment is None:
            self.device.kernels.gather(raw, index, x, t)
        else:
            assert keys is not None, "augmentation must be told which rows these are"
            self.device.kernels.gather_augmented(raw, index, keys, self.augment, x, t)


class StreamedRows(Rows):
    """Rows that pass by in the order of their use; here `index` tells only how many are asked for next."""

    in_place = False

    def __init__(
        self, stream: Stream, largest_label: int, scaler: Scaler, device: Device, augment: Augmentation | None = None
    ) -> None:
        """`largest_label` is that of all rows, which somebody has seen through."""
        buffers = stream.buffers
        super().__init__(buffers.images[:0], buffers.labels[:0], scaler, device, augment)
        self.stream, self._largest_label = stream, largest_label

    @property
    def largest_label(self) -> int:
        return self._largest_label

    def __len__(self) -> int:
        return sum(self.stream.lengths)

    def listen(self, beside: Beside) -> None:
        self.stream.beside = beside

    def labels_of(self, ws: Workspace, index: Array) -> Array:
        t, start = ws.empty((len(index),), np.int32), 0
        for _, labels, slots in self._taken(len(index)):
            self.device.kernels.pick(labels, slots, t[start : start + len(slots)])
            start += len(slots)
        return t

    def gather(self, ws: Workspace, index: Array, keys: Array | None = None) -> tuple[Array, Array]:
        x, t, start = ws.operand((len(index), self.features)), ws.empty((len(index),), np.int32), 0
        for images, labels, slots in self._taken(len(index)):
            where = slice(start, start + len(slots))
            at = None if keys is None else keys[where]
            self._standardise(self.raw._replace(images=images, labels=labels), slots, x[where], t[where], at)
            start = where.stop
        return ws.narrowed(x), t

    def rewind(self, epoch: int = 0, without: int = 0) -> None:
        self.stream.start(epoch, without)

    def close(self) -> None:
        self.stream.close()

    def _taken(self, count: int) -> Iterator[Taken]:
        """The next rows, as many at a time as are at hand."""
        while count:
            slots = self.stream.take(count)
            count -= len(slots)
            yield self.stream.buffers.images, self.stream.buffers.labels, slots


class LandedRows(StreamedRows):
    """The same for a device with memory of its own: it gathers from where they land, as from resident ones."""

    brought = True
    _landing: Landing | None = None
    _placed = 0  # rows of which `places` told, as `Landing.landed`

    def places(self, span: range, most: int) -> NDArray[np.int64]:
        if self._landing is None:
            self._landing = self.device.landing(most, self.features, self.images.dtype)
            self.raw = self.raw._replace(images=self._landing.images, labels=self._landing.labels)
        first, room = self._placed, self._landing.room
        assert most * BATCHES_AT_HAND <= room
        self._placed += len(span)
        return np.arange(first, self._placed) % room

    def bring(self, count: int) -> None:
        assert self._landing is not None
        self._landing.bring(count, self._taken(count))

    def labels_of(self, ws: Workspace, index: Array) -> Array:
        return Rows.labels_of(self, ws, index)

    def gather(self, ws: Workspace, index: Array, keys: Array | None = None) -> tuple[Array, Array]:
        return Rows.gather(self, ws, index, keys)

    def rewind(self, epoch: int = 0, without: int = 0) -> None:
        super().rewind(epoch, without)
        self._placed = self._landing.landed if self._landing else 0


def _held_as(dtype: np.dtype[Any], device: Device) -> np.dtype[Any]:
    """The type in which a device keeps images that have this one in the file: the same where its kernels read that."""
    types = device.kernels.file_types
    return dtype if types is None or dtype in types else np.dtype(np.float32)


def bytes_of_row(split: Split, device: Device) -> int:
    """What a row of the split takes where the device keeps it."""
    wider = _held_as(split.dtype, device).itemsize - split.dtype.itemsize
    return row_bytes(split) + max(0, wider) * split.features


def streamed_rows(
    stream: Stream, largest_label: int, scaler: Scaler, device: Device, augment: Augmentation | None = None
) -> StreamedRows:
    """Those for this device."""
    kind = StreamedRows if device.kind == "cpu" else LandedRows
    return kind(stream, largest_label, scaler, device, augment)
