"""Rows on their way to the network as expressions of the array module; see expressions.py."""

from __future__ import annotations

from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from mpi_parallel.device.augmentation import augmented
from mpi_parallel.device.hashing import Keys, permute
from mpi_parallel.device.interface import Array, Augmentation


class RowExpressions:
    """What is done to rows before the network sees them."""

    xp: ModuleType

    def gather(self, images_NF: Array, index_B: Array, mean: Array, inverse_std: Array, x_BF: Array) -> None:
        """x = (raw - mean) / std of the rows in index; images in the file's type, mean and 1/std (1,) or (F,)."""
        self.xp.subtract(images_NF[index_B], mean, out=x_BF)
        x_BF *= inverse_std

    def gather_labelled(
        self,
        images_NF: Array,
        labels_N: Array,
        index_B: Array,
        mean: Array,
        inverse_std: Array,
        x_BF: Array,
        t_B: Array,
    ) -> None:
        """Both `gather` and `pick`."""
        self.gather(images_NF, index_B, mean, inverse_std, x_BF)
        self.pick(labels_N, index_B, t_B)

    def gather_augmented(
        self,
        images_NF: Array,
        labels_N: Array,
        index_B: Array,
        keys_B: Array,
        how: Augmentation,
        mean: Array,
        inverse_std: Array,
        x_BF: Array,
        t_B: Array,
    ) -> None:
        """The same of images that are changed before, each by its key."""
        changed_BF = augmented(self.xp, images_NF[index_B], keys_B, how)
        self.gather(changed_BF, self.xp.arange(len(index_B)), mean, inverse_std, x_BF)
        self.pick(labels_N, index_B, t_B)

    def pick(self, labels_N: Array, index_B: Array, t_B: Array) -> None:
        """t = the labels of the rows in index."""
        self.xp.take(labels_N, index_B, out=t_B)

    def permute(self, image: NDArray[np.int64], first: int, n: int, keys: Keys, starts: NDArray[np.int64]) -> None:
        """image (P, C), in the host's memory, of the places from `first` on under the permutations of keys (C,), each
        counted from its start (C,)."""
        image[...] = permute(np.arange(first, first + len(image))[:, None], n, keys) + starts

    def deal(self, index_N: Array, keys_N: Array, cursor: Array, index_B: Array, keys_B: Array) -> None:
        """The batch from place `cursor` (1,) int64 of a longer order on, which then stands behind it."""
        first = int(cursor[0])
        index_B[...], keys_B[...] = index_N[first : first + len(index_B)], keys_N[first : first + len(keys_B)]
        cursor += len(index_B)
