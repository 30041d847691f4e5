"""A part file a rank under one virtual data set: for file systems where many writers of one file are slow."""

from __future__ import annotations

import json
import secrets
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from mpi4py import MPI
from numpy.typing import NDArray

from mpi_parallel.data_parallel.outfile import create
from mpi_parallel.data_parallel.writing import Layout, OneFile, check_room, part_names, remove_parts
from mpi_parallel.mpi.communicator import Communicator

Run = tuple[str, int, int, int]  # dataset, its row, the part's row, how many rows


class Parts:
    """Each rank writes a file of its own beside `target`; the file at `path` shows them as one.

    `mine` is how many rows of each dataset this rank will write. Until all is written the parts bear the name of
    `path`, as what a killed run leaves is known by it. Those that are to stay (`lasting`) then get names that no other
    run gives, so that a file that is there already keeps its own parts until it is replaced.
    """

    def __init__(
        self, path: Path, target: Path, layout: Layout, mine: dict[str, int], lasting: bool, comm: Communicator
    ) -> None:
        self._path, self._layout, self._comm = path, layout, comm
        check_room(path.parent, layout, 1 if lasting else 2)
        token = comm.broadcast(np.frombuffer(secrets.token_bytes(4), np.uint8) if comm.rank == 0 else None)
        self._written = [f"{path.name}.part-{rank}.h5" for rank in range(comm.size)]
        lasts = [f"{target.stem}.{bytes(token).hex()}.part-{rank}.h5" for rank in range(comm.size)]
        self.names = lasts if lasting else self._written
        own = {name: ((mine[name], *shape[1:]), dtype) for name, (shape, dtype) in layout.items()}
        try:
            self._file = OneFile(path.parent / self._written[comm.rank], own, Communicator(MPI.COMM_SELF))
        finally:
            comm.meet()  # all parts are there before a rank that fails removes them
        self._next = dict.fromkeys(layout, 0)
        self._runs: list[Run] = []

    def write(self, dataset: str, start: int, rows: NDArray[Any]) -> None:
        """Put rows into this rank's part, to be shown at `start` and behind."""
        here = self._next[dataset]
        self._file.write(dataset, here, rows)
        self._next[dataset] = here + len(rows)
        self._runs.append((dataset, start, here, len(rows)))

    def finish(self) -> None:
        """Close the parts and make the file that shows them."""
        self._file.finish()
        runs = [json.loads(text) for text in self._comm.gather_text(json.dumps(_joined(self._runs)))]
        lengths = [json.loads(text) for text in self._comm.gather_text(json.dumps(self._next))]
        if self._comm.rank == 0:
            with create(self._path) as file:
                for name, (shape, dtype) in self._layout.items():
                    sources = [
                        h5py.VirtualSource(part, name, (length[name], *shape[1:]), dtype)
                        for part, length in zip(self.names, lengths, strict=True)
                    ]
                    file.create_virtual_dataset(name, _virtual(shape, dtype, name, sources, runs))
                file.attrs["parts"] = self.names
            for written, last in zip(self._written, self.names, strict=True):  # now that a file tells whose they are
                (self._path.parent / written).replace(self._path.parent / last)
        self._comm.maximum(0)


def _virtual(
    shape: tuple[int, ...], dtype: np.dtype[Any], name: str, sources: list[h5py.VirtualSource], runs: list[list[Run]]
) -> h5py.VirtualLayout:
    layout = h5py.VirtualLayout(shape, dtype)
    for source, mine in zip(sources, runs, strict=True):
        for dataset, start, here, count in mine:
            if dataset == name:
                layout[start : start + count] = source[here : here + count]
    return layout


def _joined(runs: list[Run]) -> list[Run]:
    """The runs with those that follow each other in both files made one."""
    joined: dict[str, list[Run]] = {}
    for dataset, start, here, count in runs:
        known = joined.setdefault(dataset, [])
        if known and known[-1][1] + known[-1][3] == start:
            _, first, first_here, before = known.pop()
            start, here, count = first, first_here, before + count
        known.append((dataset, start, here, count))
    return [run for known in joined.values() for run in known]


def merge_parts(path: Path, layout: Layout) -> None:
    """Replace a file of parts by one that holds all rows itself, and remove the parts; for one rank."""
    names, whole = part_names(path), path.with_name(path.name + ".merging")
    file = OneFile(whole, layout, Communicator(MPI.COMM_SELF))
    with h5py.File(path, locking=False) as shown:
        for name, (shape, _) in layout.items():
            step = max(1, (1 << 26) // max(1, shown[name][:1].nbytes))
            for start in range(0, shape[0], step):
                file.write(name, start, shown[name][start : start + step])
    file.finish()
    whole.replace(path)
    remove_parts(path.parent, names)
