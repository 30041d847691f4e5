"""One file that all ranks write at once, each where it likes, through MPI-IO."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from mpi4py import MPI
from numpy.typing import NDArray

from mpi_parallel.mpi.communicator import Communicator
from mpi_parallel.options import InputError

MOST = 1 << 28  # bytes of a write: counts of more than 2^31 are beyond some libraries


class SharedFile:
    """An existing file, open for writing on all ranks of a communicator; opening and closing are collective."""

    def __init__(self, path: str | os.PathLike[str], comm: Communicator) -> None:
        self.path = Path(path)
        try:
            self._file = MPI.File.Open(comm.comm, os.fspath(path), MPI.MODE_WRONLY)
        except MPI.Exception as error:
            raise InputError(f"{path}: cannot be written: {error.Get_error_string()}") from error

    def write(self, offset: int, array: NDArray[Any]) -> None:
        """Put an array's bytes at an offset. Raises InputError when there is no room."""
        data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        for start in range(0, len(data), MOST):
            try:
                self._file.Write_at(offset + start, data[start : start + MOST])
            except MPI.Exception as error:
                raise InputError(
                    f"{self.path}: cannot be written, is the disk full? ({error.Get_error_string()})"
                ) from error

    def close(self) -> None:
        """Collective: all has been written. A rank that fails leaves without, as the others may never come."""
        self._file.Close()
