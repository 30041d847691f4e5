"""The second half of a conversion: every rank puts its rows where they belong, all of them into one file at once.

The h5py of most machines cannot write in parallel. MPI can: one rank makes a file whose datasets are contiguous, which
HDF5 lets be allocated in advance, and then every rank writes its rows as bytes at their places through MPI-IO. So the
file is the same for any number of ranks, byte for byte. Where a file system is slow at many writers of one file, a rank
can write a part file of its own, and a virtual data set makes the parts look like one.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from math import prod
from pathlib import Path
from typing import Any, Protocol

import h5py
import numpy as np
from numpy.typing import NDArray

from mpi_parallel.data_parallel.outfile import create
from mpi_parallel.mpi.communicator import Communicator
from mpi_parallel.mpi.files import SharedFile
from mpi_parallel.options import InputError

Layout = Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]]  # shape and dtype of each dataset, by its path
COALESCE = 1 << 23  # bytes of neighbouring rows that are written together


class Writer(Protocol):
    """Takes rows from all ranks; `finish` is collective, and then all of it can be read."""

    def write(self, dataset: str, start: int, rows: NDArray[Any]) -> None:
        """Put rows at `start` and behind."""

    def finish(self) -> None:
        """Everything has been written."""


class OneFile:
    """All ranks write one file."""

    def __init__(self, path: Path, layout: Layout, comm: Communicator) -> None:
        self._layout, self._comm = layout, comm
        check_room(path.parent, layout)
        offsets = _allocate(path, layout) if comm.rank == 0 else None
        self._offsets = dict(zip(layout, comm.broadcast(offsets).tolist(), strict=True))
        self._file = SharedFile(path, comm)
        self._waiting: dict[str, tuple[int, list[NDArray[Any]], int]] = {}  # first row, rows behind it, how many

    def write(self, dataset: str, start: int, rows: NDArray[Any]) -> None:
        """Put rows at `start` and behind, once there are enough of them or others do not follow them."""
        first, waiting, count = self._waiting.get(dataset, (start, [], 0))
        if first + count != start:
            self._flush(dataset)
            first, waiting, count = start, [], 0
        self._waiting[dataset] = first, [*waiting, rows], count + len(rows)
        if (count + len(rows)) * rows[:1].nbytes >= COALESCE:
            self._flush(dataset)

    def _flush(self, dataset: str) -> None:
        first, waiting, _ = self._waiting.pop(dataset, (0, [], 0))
        shape, dtype = self._layout[dataset]
        if waiting:
            rows = np.concatenate(waiting).astype(dtype, copy=False)
            self._file.write(self._offsets[dataset] + first * prod(shape[1:]) * dtype.itemsize, rows)

    def finish(self) -> None:
        """Everything has been written."""
        for dataset in list(self._waiting):
            self._flush(dataset)
        self._file.close()
        self._comm.maximum(0)


def _allocate(path: Path, layout: Layout) -> NDArray[np.int64]:
    """Make the file, its datasets laid out but not written; where in the file each one begins."""
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_layout(h5py.h5d.CONTIGUOUS)
    properties.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    properties.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    properties.set_obj_track_times(False)
    with create(path) as file:
        for name, (shape, dtype) in layout.items():
            parent, _, last = name.rpartition("/")
            group, space = file.require_group(parent) if parent else file, h5py.h5s.create_simple(shape)
            h5py.h5d.create(group.id, last.encode(), h5py.h5t.py_create(dtype), space, properties)
        file.flush()
        return np.array([file[name].id.get_offset() or 0 for name in layout], np.int64)  # None: no rows


def check_room(folder: Path, layout: Layout, times: int = 1) -> None:
    """Raise InputError where a folder's disk has no room for so many files of these datasets."""
    needed = times * sum(prod(shape) * dtype.itemsize for shape, dtype in layout.values())
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise InputError(f"{folder}: {needed:,} bytes are to be written, but {free:,} are free")


def check_target(target: Path, sources: Iterable[str | Path] = ()) -> None:
    """Raise InputError where the file cannot have that name, or where one of the `sources` has it."""
    if not _is_folder(target.parent):
        raise InputError(f"--to {target}: there is no folder {target.parent}")
    if len(os.fsencode(f"{unfinished_name(target).name}.part-9999.h5")) > os.pathconf(target.parent, "PC_NAME_MAX"):
        raise InputError(f"--to {target}: this name is too long, as longer ones are made of it while it is written")
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise InputError(f"--to {target}: no permission to write in the folder {target.parent}")
    if target.is_dir():
        raise InputError(f"--to {target} is a folder: name a file in it")
    if target.exists() and not target.is_file():  # root would replace /dev/null by a file
        raise InputError(f"--to {target} is not a regular file: name one")
    for source in sources:
        if target.exists() and Path(source).exists() and target.samefile(source):
            raise InputError(f"--to {target} is what is read, and would be overwritten: name another file")


def _is_folder(path: Path) -> bool:
    """False also where the name is too long to be one, or nobody may look."""
    with suppress(OSError):
        return path.is_dir()
    return False


@contextmanager
def whole_file(target: Path, comm: Communicator, sources: Iterable[str | Path] = ()) -> Iterator[Path]:
    """The name under which all ranks write a file that gets its own once all have left the block.

    Where one fails nothing is left behind, and what was there stays. What a run that was killed has left is removed
    by the next one. Raises InputError where `check_target` does.
    """
    check_target(target, sources)
    unfinished = unfinished_name(target)
    if comm.rank == 0:
        _remove(unfinished)
    comm.meet()
    try:
        yield unfinished
        comm.meet()
        if comm.rank == 0:
            unfinished.replace(target)
    except BaseException:
        _remove(unfinished)  # whichever rank it is: the others may be ended before they can
        raise


def unfinished_name(target: Path) -> Path:
    """What a file is called until it is whole; whatever is called so, and more, belongs to it."""
    return target.with_name(target.name + ".unfinished")


def _remove(unfinished: Path) -> None:
    """Remove an unfinished file, the parts that it shows and whatever else bears its name."""
    remove_parts(unfinished.parent, part_names(unfinished))
    for path in unfinished.parent.iterdir():
        if path.name.startswith(unfinished.name):
            with suppress(OSError):  # a folder, or another user's
                path.unlink()


def part_names(path: Path) -> list[str]:
    """The parts of a file that `Parts` made, none of any other."""
    with suppress(OSError, KeyError, RuntimeError), h5py.File(path, locking=False) as file:
        return [str(name) for name in file.attrs["parts"]]
    return []


def remove_parts(folder: Path, names: list[str]) -> None:
    """Remove part files that no file shows any more."""
    for name in names:
        if ".part-" in name and Path(name).name == name:  # a name that says something else is not ours
            (folder / name).unlink(missing_ok=True)
