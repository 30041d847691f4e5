"""Images that lie one after the other in a file or in a compressed stream, with their labels: IDX and NPZ."""

from __future__ import annotations

import gzip
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from mpi_parallel.data_parallel.formats.idx import GZIP_MAGIC, GZIP_RATIO, read_header, read_idx
from mpi_parallel.data_parallel.formats.source import UNIT, Piece, Units
from mpi_parallel.options import InputError


@dataclass(frozen=True)
class ArrayFile:
    """An array (N, ...) that begins at `offset` of what `open` gives, in C order."""

    name: str  # for messages: the file, and the array in it
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    offset: int
    open: Callable[[], IO[bytes]]

    @property
    def row_bytes(self) -> int:
        """Bytes of one image."""
        return prod(self.shape[1:]) * self.dtype.itemsize


class ArraySource:
    """Rows of an ArrayFile (the protocol is that of formats.source). A compressed one is unpacked from its start."""

    names: tuple[str, ...] = ()
    written = False

    def __init__(self, path: Path, images: ArrayFile, labels: NDArray[Any], split: str | None = None) -> None:
        self.path, self.split, self._images, self._labels = path, split, images, labels
        self.shape = images.shape[1:]
        self.named = labels.dtype.kind in "USO"
        self._step = max(1, UNIT // max(1, images.row_bytes))
        self.units: int | None = -(-images.shape[0] // self._step)
        if images.shape[0] != len(labels):
            raise InputError(f"{images.name}: {images.shape[0]} images, but {len(labels)} labels")
        if len(images.shape) < 2 or 0 in images.shape or images.dtype.kind not in "uif":
            raise InputError(
                f"{images.name} is {images.dtype} {images.shape}; images are numbers (N, H, W[, C]) or (N, features)"
            )

    def pieces(self, mine: Units) -> Iterator[tuple[int, Piece]]:
        """Number and rows of each of the units that are mine."""
        units = list(mine)
        if not units:
            return
        try:
            with self._images.open() as file:
                file.seek(self._images.offset + units[0] * self._step * self._images.row_bytes)
                for unit in units:
                    yield unit, self._piece(file, unit)
        except (EOFError, zlib.error, OSError, zipfile.BadZipFile) as error:
            raise InputError(f"{self._images.name}: damaged: {error}") from error

    def _piece(self, file: IO[bytes], unit: int) -> Piece:
        start = unit * self._step
        count = min(self._step, self._images.shape[0] - start)
        data = file.read(count * self._images.row_bytes)
        if len(data) < count * self._images.row_bytes:
            row = start + len(data) // self._images.row_bytes
            raise InputError(f"{self._images.name}: truncated: ends in row {row} of {self._images.shape[0]}")
        if start + count == self._images.shape[0] and file.read(1):
            raise InputError(f"{self._images.name}: too long: bytes follow the {self._images.shape[0]} rows declared")
        images = np.frombuffer(data, self._images.dtype).reshape(count, *self.shape)
        images = images.astype(self._images.dtype.newbyteorder("="), copy=False)
        return Piece(images, self._labels[start : start + count], np.arange(count), count)

    def where(self, row: int) -> str:
        """The row's number, from 0."""
        return f"{self._images.name} row {row}"


def idx_source(images: Path, labels: Path, split: str | None = None) -> ArraySource:
    """A pair of IDX files, each plain or .gz. Raises InputError when they are not, or do not fit."""
    try:
        return ArraySource(images, _idx_array(images), read_idx(labels, ndim=1), split)
    except (ValueError, OSError, EOFError, zlib.error) as error:
        raise error if isinstance(error, InputError) else InputError(str(error)) from error


def _idx_array(path: Path) -> ArrayFile:
    def unpacked() -> IO[bytes]:
        return gzip.open(path) if packed else path.open("rb")  # type: ignore[return-value]

    with path.open("rb") as file:
        packed = file.read(2) == GZIP_MAGIC
    with unpacked() as stream:
        dtype, shape = read_header(stream, path)
        offset = stream.tell()
    size, needed = path.stat().st_size, offset + prod(shape) * dtype.itemsize
    if needed > size * (GZIP_RATIO if packed else 1):
        raise InputError(f"{path}: declares {shape} of {dtype.name}, {needed:,} bytes, but is {size:,} bytes long")
    return ArrayFile(str(path), shape, dtype, offset, unpacked)
