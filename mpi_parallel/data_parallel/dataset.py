"""An HDF5 file of images and labels: what it holds, checked before anything is read, and rows of it.

Our layout is the groups train, validation and test, each with `images` and `labels` (see DESIGN and data/README.md). A
file with one pile of images, ours or foreign, is split 0.7 / 0.1 / 0.2.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from mpi_parallel.config import DataOptions
from mpi_parallel.data_parallel import trust
from mpi_parallel.data_parallel.splits import stratified
from mpi_parallel.mpi.communicator import Communicator
from mpi_parallel.options import InputError

SPLITS = ("train", "validation", "test")
SHARES = (0.7, 0.1, 0.2)  # where the file has no splits
MOST_CLASSES = 2**20  # where the file does not name its classes: a stray label must not make a network of gigabytes
LISTED_ROWS, LABELS_AT_ONCE = 1024, 2**20


@dataclass(frozen=True)
class Split:
    """Some rows of a pair of datasets in a file; `rows` (n,) int64 ascending lists them, None stands for all.

    Labels are 0 to `classes` - 1.
    """

    path: str
    images: str
    labels: str
    length: int
    shape: tuple[int, ...]  # of an image
    dtype: np.dtype[Any]  # in the byte order of this machine
    chunk: int = 1  # images in a chunk of the file
    rows: NDArray[np.int64] | None = None
    classes: int = MOST_CLASSES

    def __len__(self) -> int:
        return self.length

    def read(self, part: range, images: NDArray[Any] | None = None) -> tuple[NDArray[Any], NDArray[np.int32]]:
        """The part's images (n, features), in the file's type but this machine's byte order, and labels (n,).

        The images go to the array that is given, or to one of their own. Raises InputError on bad values.
        """
        with open_file(self.path) as file:
            if images is None:
                images = self.empty(len(part))
            labels, source = np.empty(len(part), np.int32), self.datasets(file)
            # Listed rows are read piece by piece together with what lies between them, of which little is to be held.
            step = len(part) if self.rows is None else LISTED_ROWS
            for start in range(0, len(part), step or 1):
                piece, where = part[start : start + step], slice(start, start + step)
                if self.rows is None:
                    self.load(source, piece, images[where], labels[where])
                    continue
                around, theirs = self.empty(self.span(piece)), np.empty(self.span(piece), np.int32)
                at = self.load(source, piece, around, theirs)
                np.take(around, at, axis=0, out=images[where])
                np.take(theirs, at, out=labels[where])
        return images, labels

    def datasets(self, file: h5py.File) -> tuple[h5py.Dataset, h5py.Dataset]:
        """Its images and labels in the open file."""
        return file[self.images], file[self.labels]

    def load(
        self, source: tuple[h5py.Dataset, h5py.Dataset], part: range, images: NDArray[Any], labels: NDArray[np.int32]
    ) -> NDArray[np.int64]:
        """Read the rows of the file from the part's first to its last into images (span, features) and labels (span,).

        Returns which of them are the part's (n,). Raises InputError on bad values of these.
        """
        first = self.row(part.start)
        rows = slice(first, first + len(images))
        source[0].read_direct(images.reshape(len(images), *self.shape), rows)
        given = _native(source[1][rows])
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

    def largest_label(self, part: range) -> int:
        """The largest label of the part, -1 when it is empty; they are read piece by piece."""
        largest = -1
        with open_file(self.path) as file:
            for start in range(part.start, part.stop, LABELS_AT_ONCE):
                piece = range(start, min(start + LABELS_AT_ONCE, part.stop))
                labels = _native(file[self.labels][self.row(piece[0]) : self.row(piece[-1]) + 1])
                labels = labels if self.rows is None else labels[self.rows[start : piece.stop] - self.row(start)]
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


@dataclass(frozen=True)
class ImageSet:
    """The splits of a file and what it says of them."""

    path: str
    train: Split
    validation: Split | None
    test: Split | None
    shape: tuple[int, ...]  # of one image
    dtype: np.dtype[Any]
    classes: tuple[str, ...] | None
    mean: NDArray[np.float64] | None
    std: NDArray[np.float64] | None

    @property
    def features(self) -> int:
        """Numbers in one image."""
        return prod(self.shape)


def open_image_set(options: DataOptions, seed: int, comm: Communicator) -> ImageSet:
    """What `--data` holds. Every rank looks at the header; one reads the labels where a split has to be made.

    Raises InputError, naming file and dataset, for a file that cannot be opened or is not an image set.
    """
    with open_file(options.data) as file:
        named = [options.images, options.labels] if options.images and options.labels else trust.OUR_NAMES
        trust.check(file, named, options.allow_external)
        pairs = _pairs(file, options)
        splits = {name: _split(file, options.data, images, labels) for name, (images, labels) in pairs.items()}
        first = file[next(iter(splits.values())).images]
        shape, dtype = first.shape[1:], first.dtype.newbyteorder("=")
        for split in splits.values():
            _same_kind(file[split.images], shape, options.data, first.name)
        attributes = _attributes(file, prod(shape))
        if (names := attributes[0]) is not None:
            splits = {name: replace(split, classes=len(names)) for name, split in splits.items()}
    if "all" in splits:
        splits = _share_out(splits["all"], dict(zip(SPLITS, SHARES, strict=True)), seed, comm)
    elif options.validation and "validation" not in splits:
        held = options.validation
        splits |= _share_out(splits["train"], {"train": 1 - held, "validation": held}, seed, comm)
    train, validation, test = (splits.get(name) or None for name in SPLITS)
    if train is None:
        raise InputError(f"{options.data}: there are no training rows")
    return ImageSet(options.data, train, validation, test, shape, dtype, *attributes)


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
        raise InputError(f"--data {path}: no such file") from None
    except OSError as error:
        raise InputError(f"--data {path}: not an HDF5 file that can be read, or a damaged one ({error})") from None


def _pairs(file: h5py.File, options: DataOptions) -> dict[str, tuple[str, str]]:
    """The paths of images and labels of each split, or of "all" rows."""
    if options.images and options.labels:
        return {"all": (options.images, options.labels)}
    if "train" in file:
        return {name: (f"{name}/images", f"{name}/labels") for name in SPLITS if name in file}
    if "images" in file and "labels" in file:
        return {"all": ("images", "labels")}
    raise InputError(
        f"{options.data} has neither train/images nor images; it has {_datasets(file)}: "
        "name them with --images and --labels"
    )


def _datasets(file: h5py.File) -> str:
    names: list[str] = []
    file.visititems(lambda name, item: names.append(f"/{name}") if isinstance(item, h5py.Dataset) else None)
    return ", ".join(names[:8]) + (", …" if len(names) > 8 else "") if names else "no datasets"


def _split(file: h5py.File, path: str, images: str, labels: str) -> Split:
    """A split whose two datasets are there and fit each other."""
    for name in (images, labels):
        if not isinstance(file.get(name), h5py.Dataset):
            raise InputError(f"{path}: there is no dataset {name}; it has {_datasets(file)}")
    pixels, targets = file[images], file[labels]
    if pixels.ndim < 2 or 0 in pixels.shape[1:] or pixels.dtype.kind not in "uif":
        raise InputError(
            f"{path}: {images} is {pixels.dtype} {pixels.shape}; images are numbers (N, H, W[, C]) or (N, features)"
        )
    if targets.ndim != 1 or targets.dtype.kind not in "ui":
        raise InputError(f"{path}: {labels} is {targets.dtype} {targets.shape}; labels are whole numbers (N,)")
    if len(pixels) != len(targets):
        raise InputError(f"{path}: {len(pixels)} rows in {images}, but {len(targets)} in {labels}")
    chunk = pixels.chunks[0] if pixels.chunks else 1
    return Split(path, images, labels, len(pixels), pixels.shape[1:], pixels.dtype.newbyteorder("="), chunk)


def _same_kind(images: h5py.Dataset, shape: tuple[int, ...], path: str, first: str) -> None:
    if images.shape[1:] != shape:
        raise InputError(f"{path}: images of {images.name} are {images.shape[1:]}, those of {first} {shape}")


def _attributes(file: h5py.File, features: int) -> tuple[tuple[str, ...] | None, Any, Any]:
    """Class names, mean and std, each None where the file says nothing."""
    names = file.attrs.get("classes")
    classes = None if names is None else tuple(n.decode() if isinstance(n, bytes) else str(n) for n in np.ravel(names))
    if "mean" not in file.attrs or "std" not in file.attrs:
        return classes, None, None
    both = [_numbers(file.attrs[name]) for name in ("mean", "std")]
    for name, values in zip(("mean", "std"), both, strict=True):
        if values.size not in (1, features) or not np.isfinite(values).all() or (name == "std" and (values < 0).any()):
            raise InputError(
                f"{file.filename}: attribute {name} holds {values.size} numbers; expected 1 or {features}, all finite"
                f"{' and not negative' * (name == 'std')}"
            )
    return classes, both[0], both[1]


def _numbers(value: Any) -> NDArray[np.float64]:
    """An attribute as a flat array; nothing where it holds no numbers."""
    try:
        return np.asarray(value, np.float64).reshape(-1)
    except (TypeError, ValueError):
        return np.zeros(0)


def _native(array: NDArray[Any]) -> NDArray[Any]:
    """The array in the byte order of this machine, which MPI and GPUs want."""
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _share_out(pile: Split, shares: dict[str, float], seed: int, comm: Communicator) -> dict[str, Split]:
    """The pile's rows in stratified parts."""
    labels = None
    if comm.rank == 0:
        with open_file(pile.path) as file:
            labels = _native(file[pile.labels][:])
    parts = stratified(comm.broadcast(labels), list(shares.values()), seed)
    return {name: replace(pile, rows=rows, length=len(rows)) for name, rows in zip(shares, parts, strict=True)}
