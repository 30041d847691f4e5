"""Converting a table, a part of `benchmark data`: on all ranks against one, and against pandas that only reads it."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import h5py
import numpy as np
from mpi4py import MPI
from numpy.typing import NDArray

from mpi_parallel import convert
from mpi_parallel.data_parallel.split import open_file
from mpi_parallel.mpi.communicator import Communicator
from mpi_parallel.options import InputError

FEATURES, CLASSES = 784, 10
TURNS = 5  # of which the median is told
PERIOD = 0.005  # seconds between two looks of those that wait: in a barrier they would take a core
NUMBERS = [str(number) for number in range(256)]


def converting(folder: Path, rows: int, images: str | None, comm: Communicator) -> dict[str, Any]:
    """Seconds of each kind, by turns; the table is that of the training rows of a file, or random. Collective."""
    table, written = folder / "table.csv", 0
    if comm.rank == 0:
        written = _write(table, *(_rows_of(images, rows) if images else _random(rows)))
    written = comm.maximum(written)
    kinds: dict[str, Callable[[], None]] = {
        "one_rank": lambda: _convert(table, Communicator(MPI.COMM_SELF)) if comm.rank == 0 else None,
        "all_ranks": lambda: _convert(table, comm),
    }
    if comm.maximum(int(find_spec("pandas") is not None)):
        kinds["pandas"] = lambda: _read_by_pandas(table) if comm.rank == 0 else None
    seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
    for _ in range(TURNS):
        for kind, call in kinds.items():
            seconds[kind].append(_timed(call, table.with_suffix(".h5"), comm))
    medians = {f"{kind}_seconds": median(times) for kind, times in seconds.items()}
    return {"rows": written, "bytes": table.stat().st_size, **medians}


def told(figures: dict[str, Any], ranks: int) -> str:
    """The figures in a line."""
    one, every = figures["one_rank_seconds"], figures["all_ranks_seconds"]
    line = (
        f"converting {figures['bytes'] * 1e-6 / every:12,.0f} MB/s: {figures['rows']:,} rows of CSV in {every:.2f} s, "
        f"by 1 rank in {one:.2f} s ({ranks} ranks are {one / every:.2f} times as fast)"
    )
    if "pandas_seconds" not in figures:
        return line + "; pandas is not here to compare with"
    pandas = figures["pandas_seconds"]
    return f"{line}; by pandas.read_csv, to memory alone, in {pandas:.2f} s ({pandas / every:.2f} times as fast)"


def _timed(call: Callable[[], None], target: Path, comm: Communicator) -> float:
    """Seconds from the start of all ranks to the end of all; rank 0's, on every rank."""
    if comm.rank == 0:
        target.unlink(missing_ok=True)  # freeing it is no part of converting
    comm.meet()
    began = time.perf_counter()
    call()
    done = comm.comm.Ibarrier()
    while not done.Test():
        time.sleep(PERIOD)
    return float(comm.gather(np.array([time.perf_counter() - began]))[0, 0])


def _convert(table: Path, comm: Communicator) -> None:
    with redirect_stdout(io.StringIO()):
        convert.main(comm, [str(table), "--to", str(table.with_suffix(".h5")), "--progress", "none"])


def _read_by_pandas(table: Path) -> None:
    import pandas as pd  # type: ignore[import-untyped,import-not-found,unused-ignore]  # only this compares with it

    pd.read_csv(table)


def _random(rows: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Images (rows, FEATURES), half of whose pixels are 0, as in pictures of things, and labels (rows,)."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (rows, FEATURES), np.uint8) * rng.integers(0, 2, (rows, FEATURES), np.uint8)
    return images, rng.integers(0, CLASSES, rows).astype(np.uint8)


def _rows_of(path: str, rows: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """The first training images of a file of our layout, flat, and their labels. Raises InputError."""
    with open_file(path) as file:
        if not isinstance(file.get("train/images"), h5py.Dataset) or file["train/images"].dtype != np.uint8:
            raise InputError(f"--table-of {path}: there are no train/images of uint8")
        images = file["train/images"][:rows]
        return images.reshape(len(images), -1), file["train/labels"][:rows]


def _write(table: Path, images: NDArray[np.uint8], labels: NDArray[np.uint8]) -> int:
    """A header and a line an image, label first, as in the train.csv of competitions; how many images."""
    with table.open("w") as file:
        file.write(",".join(["label", *(f"pixel{n}" for n in range(1, images.shape[1] + 1))]) + "\n")
        for image, label in zip(images, labels.tolist(), strict=True):
            file.write(f"{label}," + ",".join([NUMBERS[pixel] for pixel in image.tolist()]) + "\n")
    return len(images)
