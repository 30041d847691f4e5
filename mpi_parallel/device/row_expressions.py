"""Rows on their way to the network as expressions of the array module; see expressions.py."""

from __future__ import annotations

from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from mpi_parallel.device.augmentation import augmented
from mpi_parallel.device.hashing import Keys, mix, permute
from mpi_parallel.device.interface import Array, Augmentation, Raw


class RowExpressions:
    """What is done to rows before the network sees them."""

    xp: ModuleType

    def gather(self, raw: Raw, index_B: Array, x_BF: Array, t_B: Array) -> None:
        """x = (raw - mean) / std of the images in index (B,) int64, and t = their labels."""
        self._standardise(raw.images[index_B], raw, x_BF)
        self.pick(raw.labels, index_B, t_B)

    def gather_augmented(
        self, raw: Raw, index_B: Array, keys_B: Array, how: Augmentation, x_BF: Array, t_B: Array
    ) -> None:
        """The same of images that are changed before, each by its key."""
        self._standardise(augmented(self.xp, raw.images[index_B], keys_B, how), raw, x_BF)
        self.pick(raw.labels, index_B, t_B)

    def pick(self, labels_N: Array, index_B: Array, t_B: Array) -> None:
        """t = the labels of the rows in index."""
        self.xp.take(labels_N, index_B, out=t_B)

    def permute(self, image: NDArray[np.int64], first: int, n: int, keys: Keys, starts: NDArray[np.int64]) -> None:
        """image (P, C), in the host's memory, of the places from `first` on under the permutations of keys (C,), each
        counted from its start (C,)."""
        image[...] = permute(np.arange(first, first + len(image))[:, None], n, keys) + starts

    def name_positions(self, keys: Keys, first: int, of: int, shards: NDArray[np.int64], salt: int) -> None:
        """keys (P, C), in the host's memory, of the places from `first` on of `shards` (C,), of `of`: random bits of
        the positions place * of + shard."""
        positions = np.arange(first, first + len(keys))[:, None] * of + shards
        keys[...] = mix(positions.astype(np.uint32) + np.uint32(salt))

    def deal(self, index_N: Array, keys_N: Array, cursor: Array, index_B: Array, keys_B: Array, tail: Array) -> None:
        """The batch from place `cursor` (1,) int64 of a longer order on, which then stands behind it; tail = 0."""
        first = int(cursor[0])
        index_B[...], keys_B[...] = index_N[first : first + len(index_B)], keys_N[first : first + len(keys_B)]
        cursor += len(index_B)
        tail.fill(0)

    def _standardise(self, images_BF: Array, raw: Raw, x_BF: Array) -> None:
        self.xp.subtract(images_BF, raw.mean, out=x_BF)
        x_BF *= raw.inverse_std
