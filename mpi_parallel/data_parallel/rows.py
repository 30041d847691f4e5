"""Rows that a rank has at hand, and the way from there to a network's input."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpi_parallel.data_parallel.scaling import Scaler
from mpi_parallel.data_parallel.streaming import Beside, Stream
from mpi_parallel.device import Array, Augmentation, Device
from mpi_parallel.device.workspace import Workspace

Piece = tuple[slice, Array, Array, Array]  # where in the batch, images, labels and which of them


class Rows:
    """Images (n, features) and labels (n,) that this rank holds."""

    def __init__(
        self, images: NDArray[Any], labels: NDArray[np.int32], scaler: Scaler, device: Device,
        augment: Augmentation | None = None,
    ) -> None:  # fmt: skip
        self.images: Array = device.to_device(images)
        self.labels: Array = device.to_device(labels)
        self.mean: Array = device.to_device(scaler.mean.astype(np.float32))
        self.inverse_std: Array = device.to_device((1 / scaler.std).astype(np.float32))
        self.device, self.augment, self.features = device, augment, images.shape[1]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def largest_label(self) -> int:
        """-1 where there are no rows."""
        return int(self.labels.max()) if len(self.labels) else -1

    @property
    def steady(self) -> bool:
        """Whether `gather` finds its rows in the device's memory, and makes no array of its own."""
        types = self.device.kernels.file_types
        return types is None or self.images.dtype in types

    def gather(self, ws: Workspace, index: Array, keys: Array | None = None) -> tuple[Array, Array]:
        """Standardised images (B, features) as operands, and labels (B,) int32 of the rows in `index` (B,) int64.

        `keys` (B,) uint32 name the rows to what is random in their augmentation.
        """
        n = len(index)
        x, t = ws.operand((n, self.features)), ws.empty((n,), np.int32)
        self._standardise(self.images, self.labels, index, x, t, keys)
        return ws.narrowed(x), t

    def labels_of(self, ws: Workspace, index: Array) -> Array:
        """The labels that `gather` would give, without looking at the images."""
        t = ws.empty((len(index),), np.int32)
        self.device.kernels.pick(self.labels, index, t)
        return t

    def listen(self, beside: Beside) -> None:
        """Tell what goes on beside the training: only streams have something to tell."""

    def rewind(self, epoch: int = 0, without: int = 0) -> None:
        """The rows will now be asked for in the order of this epoch, `without` so many at its start."""

    def close(self) -> None:
        """The rows will not be asked for again."""

    def _standardise(self, images: Array, labels: Array, index: Array, x: Array, t: Array, keys: Array | None) -> None:
        """The one way from the file's numbers to the network's."""
        kernels, mean, inverse_std = self.device.kernels, self.mean, self.inverse_std
        if self.augment is None:
            kernels.gather_labelled(images, labels, index, mean, inverse_std, x, t)
        else:
            assert keys is not None, "augmentation must be told which rows these are"
            kernels.gather_augmented(images, labels, index, keys, self.augment, mean, inverse_std, x, t)


class StreamedRows(Rows):
    """Rows that pass by in the order of their use; `index` tells only how many are asked for next."""

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

    @property
    def steady(self) -> bool:
        return False  # they pass by

    def __len__(self) -> int:
        return sum(self.stream.lengths)

    def listen(self, beside: Beside) -> None:
        self.stream.beside = beside

    def labels_of(self, ws: Workspace, index: Array) -> Array:
        t = ws.empty((len(index),), np.int32)
        for where, _, labels, chosen in self.pieces(index):
            self.device.kernels.pick(labels, chosen, t[where])
        return t

    def pieces(self, index: Array) -> Iterator[Piece]:
        """Where the next rows are, as many at a time as are at hand."""
        buffers, start = self.stream.buffers, 0
        while start < len(index):
            slots = self.stream.take(len(index) - start)
            where = slice(start, start + len(slots))
            start = where.stop
            if self.device.kind == "cpu":
                yield where, buffers.images, buffers.labels, slots
            else:  # only what a batch needs goes to the GPU
                images, labels = (self.device.upload(held, slots) for held in (buffers.images, buffers.labels))
                yield where, images, labels, self.device.xp.arange(len(slots))

    def gather(self, ws: Workspace, index: Array, keys: Array | None = None) -> tuple[Array, Array]:
        x, t = ws.operand((len(index), self.features)), ws.empty((len(index),), np.int32)
        for where, images, labels, chosen in self.pieces(index):
            at = None if keys is None else keys[where]
            self._standardise(images, labels, chosen, x[where], t[where], at)
        return ws.narrowed(x), t

    def rewind(self, epoch: int = 0, without: int = 0) -> None:
        self.stream.start(epoch, without)

    def close(self) -> None:
        self.stream.close()
