"""Where the arrays of the kernels' tests are: with the shim in the host's memory, or on a GPU."""

from __future__ import annotations

from typing import Any

import numpy as np

from mpi_parallel.device.cuda import Cuda
from tests.device.strict import StrictArray, inside


class Place:
    """Where the arrays of a test are: strict ones in the host's memory, or on a GPU."""

    gpu: Cuda | None = None


def on(array: np.ndarray) -> Any:
    """A device array of these values, its rows as far apart."""
    if Place.gpu is None:
        return StrictArray(array.copy())
    return Place.gpu.to_device(array)


def slots_on(array: np.ndarray, columns: int) -> Any:
    """The first columns of it, in place."""
    return on(array)[:, :columns]


def values(array: Any) -> np.ndarray:
    return inside(array) if Place.gpu is None else Place.gpu.to_host(array)
