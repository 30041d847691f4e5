"""HDF5 files that are written by one rank, on disks that may be full.

HDF5 that cannot write fails once more as it closes the file, and may crash when the process ends. So it writes through
a file object which keeps the first error to itself; that is told once HDF5 has closed the file in peace.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py

from mpi_parallel.options import InputError

# The format of HDF5 1.8: in that of before no attribute is longer than 64 KiB, as the means of 8192 features are. Only
# virtual data sets need that of 1.10.
FORMAT = ("v108", "v110")
PAGE = 4096  # bytes: what is larger than LARGE begins at a multiple of it, where disks read best
LARGE = 1 << 16


@contextmanager
def create(path: Path) -> Iterator[h5py.File]:
    """A new HDF5 file. Raises InputError where it cannot be made or written."""
    with _opened(path, "w") as file:
        yield file


@contextmanager
def edit(path: Path) -> Iterator[h5py.File]:
    """A file that `create` has made, to be added to. Raises InputError where it cannot be written."""
    with _opened(path, "r+") as file:
        yield file


@contextmanager
def _opened(path: Path, mode: str) -> Iterator[h5py.File]:
    try:
        disk = _Disk(path, mode.rstrip("+") + "+")
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error}") from None
    with disk:
        try:
            with h5py.File(disk, mode, libver=FORMAT, alignment_threshold=LARGE, alignment_interval=PAGE) as file:
                yield file
        except Exception:
            if disk.error is None:  # else what was not written could not be read back
                raise
    if disk.error is not None:
        raise InputError(f"{path}: cannot be written: {disk.error}")


class _Disk(io.FileIO):
    """A file that takes all that is written to it and remembers the first error."""

    error: OSError | None = None

    def write(self, data: Any) -> int:
        left = memoryview(data).cast("B")
        try:
            while left and self.error is None:
                left = left[super().write(left) or 0 :]
        except OSError as error:
            self.error = error
        return len(data)

    def truncate(self, size: int | None = None) -> int:
        try:
            return super().truncate(size)
        except OSError as error:
            self.error = self.error or error
            return size or 0
