"""What a run keeps for its pictures: the confusion matrix, the mistakes that it was surest of, first-layer weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpi_parallel.data_parallel.dataset import ImageSet
from mpi_parallel.mpi.communicator import Communicator
from mpi_parallel.pictures.records import GALLERY, Gallery
from mpi_parallel.result_merging.confusion import Tally, softmax

MISTAKES = 24
UNITS = 48
MOST_CLASSES = 256  # of which a matrix can be looked at


class Observer:
    """Looks on while the test rows are evaluated (`Engine.score`), for gallery.h5."""

    def __init__(self, data: ImageSet, classes: int, world: Communicator, speaks: bool) -> None:
        """`speaks`: whether this rank's view counts, which is one rank's of each model."""
        self.data, self.classes, self.world, self.speaks = data, classes, world, speaks
        self.tally = Tally(classes)
        self.surest = np.zeros((0, 4), np.float64)  # of my mistakes: probability, row, label, predicted
        self.rows = 0

    def see(self, start: int, logits_BK: NDArray[Any], labels_B: NDArray[Any]) -> None:
        """What the network makes of rows of mine, `start` being the number of the first."""
        if not self.speaks:
            return
        self.tally.add(logits_BK, labels_B)
        self.rows = start + len(labels_B)
        predicted = logits_BK.argmax(axis=1)
        wrong = np.flatnonzero(predicted != labels_B)
        if len(wrong):
            probability = softmax(logits_BK[wrong]).max(axis=1)
            found = np.column_stack([probability, start + wrong, labels_B[wrong], predicted[wrong]])
            self.surest = _first(np.concatenate([self.surest, found]))

    def merge(self, pieces: Iterable[NDArray[np.float32]]) -> Callable[[Path], None] | None:
        """Merge what all ranks saw; on rank 0, what writes it into a folder. All ranks together.

        `pieces` are those of the model's weights.
        """
        evaluation = self.tally.merge(self.world.on_host())
        lengths = self.world.gather(np.array([self.rows]))[:, 0]
        mine = np.full((MISTAKES, 4), -1.0)
        mine[: len(self.surest)] = self.surest
        mine[:, 1] += lengths[: self.world.rank].sum()  # ranks have contiguous parts of the split, in their order
        everyones = self.world.gather(mine).reshape(-1, 4)
        surest = _first(everyones[everyones[:, 0] >= 0])
        weights = _first_layer(pieces, self.data.features)
        if self.world.rank or evaluation.matrix is None:
            return None
        return partial(self._write, evaluation.matrix, surest, weights)

    def _write(self, matrix: NDArray[Any], surest: NDArray[Any], weights: NDArray[np.float32], folder: Path) -> None:
        rows, labels, predicted = surest[:, 1:].T.astype(np.int64)
        names = self.data.classes or tuple(map(str, range(self.classes)))
        images = self._images(rows)
        Gallery(names, self.data.shape, matrix, images, labels, predicted, surest[:, 0], weights).write(
            folder / GALLERY
        )

    def _images(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        """These rows of the test split, (M, *shape), from the file."""
        images = np.zeros((len(rows), self.data.features), self.data.dtype)
        for number, row in enumerate(rows.tolist()):
            assert self.data.test is not None
            images[number] = self.data.test.read(range(row, row + 1))[0][0]
        return images.reshape(-1, *self.data.shape)


def _first(mistakes: NDArray[np.float64]) -> NDArray[np.float64]:
    """The surest ones; of equally sure ones the first in the file."""
    return mistakes[np.lexsort((mistakes[:, 1], -mistakes[:, 0]))][:MISTAKES]


def _first_layer(pieces: Iterable[NDArray[np.float32]], features: int) -> NDArray[np.float32]:
    """Weights (features, units) of the first units of the first layer."""
    parts: list[NDArray[np.float32]] = []
    for piece in pieces:
        parts.append(piece[:, :UNITS].copy())
        if sum(map(len, parts)) == features:
            break
    return np.concatenate(parts)
