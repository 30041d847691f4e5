"""Rows that are in memory already, dressed as those of a file."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpi_parallel.data_parallel.dataset import ImageSet
from mpi_parallel.data_parallel.split import Split


@dataclass(frozen=True, eq=False)
class ArraySplit(Split):
    """Images (n, features) and labels (n,) int32 in memory; they are resident wherever they are used."""

    pixels: NDArray[Any] = field(default_factory=lambda: np.empty((0, 0)))
    targets: NDArray[np.int32] = field(default_factory=lambda: np.empty(0, np.int32))

    def read(self, part: range, images: NDArray[Any] | None = None) -> tuple[NDArray[Any], NDArray[np.int32]]:
        rows = slice(part.start, part.stop)
        if images is None:
            return self.pixels[rows], self.targets[rows]
        images[...] = self.pixels[rows]
        return images, self.targets[rows]

    def largest_label(self, part: range) -> int:
        return int(self.targets[part.start : part.stop].max(initial=-1))


def image_set(images_NF: NDArray[Any], labels_N: NDArray[np.int32], classes: int) -> ImageSet:
    """A training split of these rows and nothing else."""
    rows, features = images_NF.shape
    split = ArraySplit(
        "the array", "images", "labels", rows, (features,), images_NF.dtype, pixels=images_NF, targets=labels_N
    )
    return ImageSet(
        split.path, split, None, None, split.shape, split.dtype, tuple(map(str, range(classes))), None, None
    )
