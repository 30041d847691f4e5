"""Some rows of an HDF5 file, and the ways to read them: whole, span by span, labels alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from math import prod
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from mpi_parallel.mpi.pulse import PULSE
from mpi_parallel.options import InputError

MOST_CLASSES = 2**20  # where the file does not name its classes: a stray label must not make a network of gigabytes
LISTED_BYTES, LABELS_AT_ONCE = 4 << 20, 2**20  # of listed rows these are read together with what lies between


@dataclass(frozen=True)
class Split:
    """Some rows of a pair of datasets in a file; `rows` (n,) int64 ascending lists them, None stands for all.

    Labels are 0 to `classes` - 1.
    """

    path: str
    images: str
    labels: str | None  # None: the rows have none, and 0 stands for each
    length: int
    shape: tuple[int, ...]  # of an image
    dtype: np.dtype[Any]  # in the byte order of this machine
    chunk: int = 1  # images in a chunk of the file
    rows: NDArray[np.int64] | None = None
    classes: int = MOST_CLASSES

    def __len__(self) -> int:
        return self.length

    def without_images(self) -> Split:
        """The same rows, of whose images nothing is read: they have no numbers."""
        return replace(self, shape=(0,))

    def read(self, part: range, images: NDArray[Any] | None = None) -> tuple[NDArray[Any], NDArray[np.int32]]:
        """The part's images (n, features), in the file's type but this machine's byte order, and labels (n,).

        The images go to the array that is given, or to one of their own. Raises InputError on bad values.
        """
        with open_file(self.path) as file:
            if images is None:
                images = self.empty(len(part))
            labels, source = np.empty(len(part), np.int32), self.datasets(file)
            if self.rows is None:
                self.load(source, part, images, labels)
                return images, labels
            # Listed rows are read together with what lies between them, of which little is to be held: whole chunks, so
            # that none is unpacked twice, and nothing where no row is wanted.
            size = self.chunk * max(1, LISTED_BYTES // (self.chunk * max(1, self.features * self.dtype.itemsize)))
            for piece in self.blocks(part, size):
                PULSE.beat()
                where = slice(piece.start - part.start, piece.stop - part.start)
                around, theirs = self.empty(self.span(piece)), np.empty(self.span(piece), np.int32)
                at = self.load(source, piece, around, theirs)
                np.take(around, at, axis=0, out=images[where])
                np.take(theirs, at, out=labels[where])
        return images, labels

    def datasets(self, file: h5py.File) -> tuple[h5py.Dataset, h5py.Dataset | None]:
        """Its images and labels in the open file."""
        return file[self.images], file[self.labels] if self.labels else None

    def load(
        self,
        source: tuple[h5py.Dataset, h5py.Dataset | None],
        part: range,
        images: NDArray[Any],
        labels: NDArray[np.int32],
    ) -> NDArray[np.int64]:
        """Read the rows of the file from the part's first to its last into images (span, features) and labels (span,).

        Returns which of them are the part's (n,). Raises InputError on bad values of these.
        """
        first = self.row(part.start)
        rows = slice(first, first + len(images))
        if images.size:
            source[0].read_direct(images.reshape(len(images), *self.shape), rows)
        given = native(source[1][rows]) if source[1] is not None else np.zeros(len(images), np.int32)
        at = np.arange(len(part)) if self.rows is None else self.rows[part.start : part.stop] - first
        self._check(images, given[at], part, at)
        labels[:] = given.astype(np.int32)
        return at

    @property
    def features(self) -> int:
        """Numbers in one image."""
        return prod(self.shape)

    def empty(self, n: int) -> NDArray[Any]:
        """An array for n images (n, features)."""
        return np.empty((n, self.features), self.dtype)

    def row(self, place: int) -> int:
        """The row of the file's dataset at this place of the split."""
        return place if self.rows is None else int(self.rows[place])

    def span(self, part: range) -> int:
        """How many rows of the file lie from the part's first to its last; the part is not empty."""
        return self.row(part[-1]) + 1 - self.row(part[0])

    def places(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """For each row of the file: how many of the split's rows lie before it."""
        return rows if self.rows is None else np.searchsorted(self.rows, rows)

    def blocks(self, part: range, size: int) -> list[range]:
        """The part, cut where blocks of `size` rows of the file end; none is empty."""
        if not part:
            return []
        numbers = range(self.row(part.start) // size, self.row(part.stop - 1) // size + 1)
        inner = self.places(np.arange(numbers.start + 1, numbers.stop) * size).tolist()
        return [range(start, stop) for start, stop in pairwise([part.start, *inner, part.stop]) if start < stop]

    def largest_label(self, part: range) -> int:
        """The largest label of the part, -1 when it is empty; they are read piece by piece."""
        largest = -1
        if self.labels is None:
            return largest
        with open_file(self.path) as file:
            for piece in self.blocks(part, LABELS_AT_ONCE):
                PULSE.beat()
                first = self.row(piece.start)
                labels = native(file[self.labels][first : first + self.span(piece)])
                labels = labels if self.rows is None else labels[self.rows[piece.start : piece.stop] - first]
                self._check_labels(labels, piece)
                largest = max(largest, int(labels.max()))
        return largest

    def _check(self, images: NDArray[Any], labels: NDArray[Any], part: range, at: NDArray[np.int64]) -> None:
        if images.dtype.kind == "f" and not np.isfinite(images).all():
            bad = np.flatnonzero(~np.isfinite(images[at]).all(axis=1))
            if bad.size:
                raise InputError(
                    f"{self.path}: {self.images} row {self.row(part.start + int(bad[0]))} has a pixel that is not "
                    f"finite ({bad.size} such rows among the {len(part)} read here); clean the file first"
                )
        self._check_labels(labels, part)

    def _check_labels(self, labels: NDArray[Any], part: range) -> None:
        for place in (labels.argmin(), labels.argmax()) if labels.size else ():
            if not 0 <= labels[place] < self.classes:
                row = self.row(part.start + int(place))
                raise InputError(
                    f"{self.path}: {self.labels} row {row} is {labels[place]}; labels are 0 to {self.classes - 1}"
                )


@contextmanager
def open_file(path: str) -> Iterator[h5py.File]:
    """The file, open for reading. Raises InputError when it cannot be opened or breaks while it is read."""
    try:
        # Without locks: nobody writes here, and on Lustre and NFS many readers' locks are slow or refused.
        with h5py.File(path, "r", locking=False) as file:
            yield file
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except OSError as error:
        raise InputError(f"{path}: not an HDF5 file that can be read, or a damaged one ({error})") from None


def native(array: NDArray[Any]) -> NDArray[Any]:
    """The array in the byte order of this machine, which MPI and GPUs want."""
    return array.astype(array.dtype.newbyteorder("="), copy=False)
