"""Images and labels in HDF5 files of any layout, by the paths of their datasets; our own layout keeps its splits."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from pathlib import Path

import h5py
import numpy as np

from mpi_parallel.data_parallel import trust
from mpi_parallel.data_parallel.formats.source import UNIT, Piece, Source, SourceOptions, Units
from mpi_parallel.data_parallel.labels import class_names
from mpi_parallel.options import InputError

SPLITS = ("train", "validation", "test")
MOST = 1 << 28  # bytes that are read at once


class Hdf5Source:
    """A pair of datasets (the protocol is that of formats.source)."""

    written = False

    def __init__(self, path: Path, images: str, labels: str, split: str | None, trusting: bool) -> None:
        self.path, self.split, self._names = path, split, (images, labels)
        with _open(path) as file:
            trust.check(file, (images, labels), trusting)
            for name in (images, labels):
                if not isinstance(file.get(name), h5py.Dataset):
                    raise InputError(f"{path}: there is no dataset {name}; it has {_datasets(file)}")
            self._check(file[images], file[labels])
            self.shape = file[images].shape[1:]
            self.named = _holds_text(file[labels])
            self.names = class_names(file) or ()
            self._length, self._step = len(file[images]), _rows_of_a_unit(file[images])
        self.units: int | None = -(-self._length // self._step)

    def pieces(self, mine: Units) -> Iterator[tuple[int, Piece]]:
        """Number and rows of each of the units that are mine."""
        with _open(self.path) as file:
            images, labels = (file[name] for name in self._names)
            labels = labels.asstr("utf-8", "surrogateescape") if self.named else labels
            for unit in mine:
                start, stop = unit * self._step, min((unit + 1) * self._step, self._length)
                try:
                    rows, marks = images[start:stop], labels[start:stop].reshape(-1)
                except OSError as error:
                    raise InputError(f"{self.path}: rows {start} to {stop - 1} are damaged: {error}") from None
                rows = rows.astype(rows.dtype.newbyteorder("="), copy=False)
                yield unit, Piece(rows, marks, np.arange(stop - start), stop - start)

    def where(self, row: int) -> str:
        """The row's number, from 0."""
        return f"{self.path}: {self._names[0]} row {row}"

    def _check(self, images: h5py.Dataset, labels: h5py.Dataset) -> None:
        if images.ndim < 2 or 0 in images.shape or images.dtype.kind not in "uif":
            raise InputError(
                f"{self.path}: {images.name} is {images.dtype} {images.shape}; "
                "images are numbers (N, H, W[, C]) or (N, features)"
            )
        if labels.shape not in ((labels.size,), (labels.size, 1)) or not (
            labels.dtype.kind in "uif" or _holds_text(labels)
        ):
            raise InputError(
                f"{self.path}: {labels.name} is {labels.dtype} {labels.shape}; labels are (N,), of one-hot ones "
                "their argmax"
            )
        if len(images) != len(labels):
            raise InputError(f"{self.path}: {len(images)} rows in {images.name}, but {len(labels)} in {labels.name}")


def hdf5_sources(path: Path, options: SourceOptions, split: str | None = None) -> list[Source]:
    """The sources of a file: the datasets that the options name, or those of our layout. Raises InputError."""
    if (options.images is None) != (options.labels is None):
        raise InputError("--images and --labels name the two datasets of an HDF5 file: give both or none")
    if options.images and options.labels:
        pairs = [(options.images, options.labels, split)]
    else:
        with _open(path) as file:
            trust.check(file, trust.OUR_NAMES, options.allow_external)
            pairs = [(f"{name}/images", f"{name}/labels", split or name) for name in SPLITS if name in file]
            if not pairs and "images" in file and "labels" in file:
                pairs = [("images", "labels", split)]
            if not pairs:
                raise InputError(
                    f"{path} has neither train/images nor images; it has {_datasets(file)}: "
                    "name them with --images and --labels"
                )
    return [Hdf5Source(path, *pair, options.allow_external) for pair in pairs]


def _open(path: Path) -> h5py.File:
    try:
        return h5py.File(path, "r", locking=False)
    except OSError as error:
        raise InputError(f"{path}: not an HDF5 file that can be read, or a damaged one ({error})") from None


def _datasets(file: h5py.File) -> str:
    names: list[str] = []
    file.visititems(lambda name, item: names.append(f"/{name}") if isinstance(item, h5py.Dataset) else None)
    return ", ".join(names[:8]) + (", …" if len(names) > 8 else "") if names else "no datasets"


def _holds_text(labels: h5py.Dataset) -> bool:
    return h5py.check_string_dtype(labels.dtype) is not None


def _rows_of_a_unit(images: h5py.Dataset) -> int:
    """About UNIT bytes, and whole chunks, so that none is unpacked twice, unless these are too many for memory.

    A chunk of a pixel each of a million images is small, but all chunks with these images are not.
    """
    size: int = images.dtype.itemsize * prod(images.shape[1:])
    rows, most = (max(1, bytes_ // size) for bytes_ in (UNIT, MOST))
    chunk: int = images.chunks[0] if images.chunks else 1
    return min(max(1, rows // chunk) * chunk, max(most, rows))
