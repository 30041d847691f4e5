"""Rows in memory: a rank reads its shards once, keeps them as they are in the file, and hands out batches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpi_parallel.data_parallel import order
from mpi_parallel.data_parallel.dataset import ImageSet, Split
from mpi_parallel.data_parallel.scaling import Scaler, standardise
from mpi_parallel.device import Array, Device
from mpi_parallel.device.workspace import Workspace
from mpi_parallel.mpi.communicator import Communicator
from mpi_parallel.mpi.partition import block, dealt
from mpi_parallel.options import InputError


class Rows:
    """Images (n, features) and labels (n,) that this rank holds, and the way from there to a network's input."""

    def __init__(self, images: NDArray[Any], labels: NDArray[np.int32], scaler: Scaler, device: Device) -> None:
        self.images: Array = device.to_device(images)
        self.labels: Array = device.to_device(labels)
        self.mean: Array = device.to_device(scaler.mean.astype(np.float32))
        self.inverse_std: Array = device.to_device((1 / scaler.std).astype(np.float32))
        # Unless it may clip, NumPy's take checks the whole index first and copies the result; CuPy's takes no mode.
        self._unchecked = {"mode": "clip"} if device.xp is np else {}

    def __len__(self) -> int:
        return len(self.labels)

    def gather(self, ws: Workspace, index: Array) -> tuple[Array, Array]:
        """Standardised images (B, features) float32 and labels (B,) int32 of the rows in `index` (B,) int64."""
        raw = ws.empty((len(index), self.images.shape[1]), self.images.dtype)
        x, t = ws.empty(raw.shape), ws.empty((len(index),), np.int32)
        ws.xp.take(self.images, index, axis=0, out=raw, **self._unchecked)
        ws.xp.take(self.labels, index, out=t, **self._unchecked)
        ws.xp.subtract(raw, self.mean, out=x)
        x *= self.inverse_std
        return x, t


@dataclass(frozen=True)
class Batch:
    """This rank's rows of one step: their numbers among the rank's rows, and keys that name them (order.row_keys)."""

    index: Array  # (b,) int64
    keys: Array  # (b,) uint32

    def parts(self, size: int | None) -> Iterator[Batch]:
        """Micro-batches of at most `size` rows, at least one: a rank without rows takes the same path."""
        step = size or max(1, len(self.index))
        for start in range(0, max(1, len(self.index)), step):
            yield Batch(self.index[start : start + step], self.keys[start : start + step])


class TrainingRows:
    """This rank's shards of the training split, and the batches that every epoch draws from them."""

    def __init__(self, data: ImageSet, shards: int, seed: int, comm: Communicator, device: Device) -> None:
        """Read the rank's shards, and no more. Raises InputError for bad values and for fewer rows than ranks."""
        self.total, self.of, self.seed, self.device = len(data.train), shards, seed, device
        if self.total < comm.size:
            raise InputError(f"{data.path}: {self.total} training rows for {comm.size} ranks: use fewer ranks")
        self.shards = dealt(shards, comm.size, comm.rank)
        parts = {shard: data.train.read(block(self.total, shards, shard)) for shard in self.shards}
        images = _join([part[0] for part in parts.values()], (0, data.features), data.dtype)
        labels = _join([part[1] for part in parts.values()], (0,), np.dtype(np.int32))
        self.largest_label = comm.maximum(int(labels.max(initial=-1)))
        self.scaler = _scaler(data, {shard: part[0] for shard, part in parts.items()}, shards, comm)
        self.rows = Rows(images, labels, self.scaler, device)

    def steps(self, batch_size: int) -> int:
        """Steps of an epoch; the last one may be short."""
        return -(-self.total // batch_size)

    def epoch(self, number: int, batch_size: int) -> Iterator[Batch]:
        """The rank's part of every step of an epoch (numbered from 0); some parts may be empty."""
        positions = order.positions_of(self.shards, self.total, self.of)
        local = order.local_order(self.shards, self.total, self.of, self.seed, number)
        keys = self.device.to_device(order.row_keys(positions, self.seed, number))
        index = self.device.to_device(local)
        starts = np.arange(self.steps(batch_size) + 1) * batch_size
        edges = np.searchsorted(positions, starts).tolist()
        for start, stop in pairwise(edges):
            yield Batch(index[start:stop], keys[start:stop])


def evaluation_rows(split: Split | None, scaler: Scaler, comm: Communicator, device: Device) -> Rows | None:
    """This rank's block of a split that is evaluated."""
    if split is None:
        return None
    images, labels = split.read(block(len(split), comm.size, comm.rank))
    return Rows(images, labels, scaler, device)


def class_count(data: ImageSet, training: TrainingRows, others: list[Rows | None], comm: Communicator) -> int:
    """How many classes: as many as the file names, else one more than the largest label."""
    if data.classes is not None:
        return len(data.classes)
    held = [int(rows.labels.max()) for rows in others if rows is not None and len(rows)]
    return 1 + max(training.largest_label, comm.maximum(max(held, default=-1)))


def _join(parts: list[NDArray[Any]], empty: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    return np.concatenate(parts) if parts else np.zeros(empty, dtype)


def _scaler(data: ImageSet, shards: dict[int, NDArray[Any]], of: int, comm: Communicator) -> Scaler:
    """The file's own moments where it has them, else those of the training rows."""
    if data.mean is not None:
        return Scaler.of(data.mean, data.std)
    return standardise(shards, [len(block(len(data.train), of, shard)) for shard in range(of)], data.features, comm)
