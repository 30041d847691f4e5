"""The making of checkpoints: HDF5 lays the file out once, and from then on ranks put bytes where they belong.

h5py is serial, and what it would do for each checkpoint is the same but for the contents of the arrays. So at the start
rank 0 makes one file, sparse, keeps all bytes outside of arrays and tells the others where these are. To write a
checkpoint every rank opens the new file, in any order, and puts its pieces in place (pwrite); rank 0 adds the rest.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from mpi_parallel.mpi.pulse import PULSE
from mpi_parallel.training.checkpoints.checkpoint import ARRAYS, COLUMNS, DIGESTS, FACTS, FORMAT, NAME, PIECES, Stored
from mpi_parallel.training.checkpoints.disk import PAGE, Output
from mpi_parallel.training.checkpoints.slices import Piece

SLACK = 4096  # bytes by which the facts may grow
Shapes = Mapping[str, tuple[tuple[int, ...], Any]]  # of arrays by name, with their dtype


@dataclass
class Skeleton:
    """Where everything is in the checkpoints of a run; rank 0 also has the bytes between the arrays."""

    arrays: dict[str, Stored]
    size: int  # bytes of the file
    between: list[tuple[int, bytes]] = field(default_factory=list)


def lay_out(scratch: Path, shapes: Shapes) -> Skeleton:
    """Have HDF5 lay out these arrays in a file that is removed again. Raises OSError."""
    try:
        with h5py.File(
            scratch, "w", libver=("v108", "v108"), alignment_threshold=PAGE, alignment_interval=PAGE
        ) as file:
            file.attrs["format"] = FORMAT
            arrays = {name: _allocate(file, name, shape, np.dtype(dtype)) for name, (shape, dtype) in shapes.items()}
        return Skeleton(arrays, scratch.stat().st_size, _between(scratch, arrays))
    except RuntimeError as error:  # HDF5 has no other word for some failures of the disk
        raise OSError(str(error)) from None
    finally:
        scratch.unlink(missing_ok=True)


def _allocate(file: h5py.File, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Stored:
    """Room for an array in the file, of which nothing is written yet."""
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    properties.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    folder, _, last = name.rpartition("/")
    group = file.require_group(folder) if folder else file
    kind, space = h5py.h5t.py_create(dtype, logical=True), h5py.h5s.create_simple(shape)
    dataset = h5py.h5d.create(group.id, last.encode(), kind, space, properties)
    return Stored(dataset.get_offset(), shape, dtype)


def _between(path: Path, arrays: Mapping[str, Stored]) -> list[tuple[int, bytes]]:
    """The bytes of the file that are in no array, each run with its offset."""
    found, start = [], 0
    with path.open("rb") as file:
        for stored in sorted(arrays.values(), key=lambda stored: stored.offset):
            file.seek(start)
            found.append((start, file.read(stored.offset - start)))
            start = stored.offset + stored.nbytes
        file.seek(start)
        found.append((start, file.read()))
    return [(offset, data) for offset, data in found if data]


def shapes_of(
    arrays: Mapping[str, tuple[int, ...]], constants: Mapping[str, NDArray[Any]], facts: int, pieces: int
) -> dict[str, tuple[tuple[int, ...], Any]]:
    """All arrays of a checkpoint: the float32 ones, constants, `facts` bytes of JSON, and tables.

    `pieces` are those of the float32 arrays; of the others each is one.
    """
    named: dict[str, tuple[tuple[int, ...], Any]] = {name: (shape, np.dtype("<f4")) for name, shape in arrays.items()}
    named |= {name: (array.shape, array.dtype) for name, array in constants.items()}
    named[FACTS] = ((1,), np.dtype(f"S{facts}"))
    tables = {ARRAYS: NAME, PIECES: np.dtype("<i8"), DIGESTS: np.dtype("u1")}
    pieces += len(constants) + len((FACTS, ARRAYS, PIECES))
    digest = hashlib.sha256().digest_size
    lengths = {ARRAYS: (len(named) + len(tables),), PIECES: (pieces, COLUMNS), DIGESTS: (pieces, digest)}
    return named | {name: (lengths[name], dtype) for name, dtype in tables.items()}


def room_for(facts: Mapping[str, Any]) -> int:
    """Bytes to set aside for facts like these, whose numbers will grow."""
    return -(-(len(encoded(facts)) + SLACK) // PAGE) * PAGE


def encoded(facts: Mapping[str, Any]) -> bytes:
    """The facts as they are in the file."""
    return json.dumps(facts, indent=1, allow_nan=False).encode()


def pieces_of_rest(shapes: Shapes) -> list[Piece]:
    """What rank 0 writes beside its part of the float32 arrays."""
    names = list(shapes)
    found: list[Piece] = []
    for name, (shape, dtype) in shapes.items():
        nbytes = prod(shape) * np.dtype(dtype).itemsize
        if name != DIGESTS and not name.startswith(("weights/", "optimizer/")):
            found.append(Piece(names.index(name), 0, nbytes, nbytes, 1))
    return found


class Writer:
    """Writes one rank's pieces of a checkpoint."""

    def __init__(self, skeleton: Skeleton, path: Path) -> None:
        """Open the file, make it where no other rank has yet. Raises OSError."""
        self.skeleton, self.names = skeleton, list(skeleton.arrays)
        self._output = Output(path, skeleton.size)

    def begin(self) -> None:
        """What one rank does: give the file its structure."""
        for offset, data in self.skeleton.between:
            self._output.write(memoryview(data), offset)

    def put_all(self, first: int, parts: Sequence[tuple[Piece, memoryview]]) -> None:
        """Write pieces, from number `first` on, with their bytes and checksums. Raises OSError.

        A thread works the checksums out meanwhile, as writing leaves the processor to others.
        """
        beside = ThreadPoolExecutor(1, "checksums")
        try:
            digests = [beside.submit(_digest, data) for _, data in parts]
            for piece, data in parts:
                PULSE.beat()
                self._put(piece, data)
            stored = self.skeleton.arrays[DIGESTS]
            told = b"".join(digest.result() for digest in digests)
            self._output.write(memoryview(told), stored.offset + first * stored.shape[1])
        finally:
            beside.shutdown(cancel_futures=True)

    def _put(self, piece: Piece, data: memoryview) -> None:
        """Write the piece, whose bytes these are."""
        offset = self.skeleton.arrays[self.names[piece.array]].offset + piece.start
        for number in range(piece.count):
            self._output.write(data[number * piece.run : (number + 1) * piece.run], offset + number * piece.stride)

    def finish(self) -> None:
        """All of this rank is on the disk."""
        self._output.sync()

    def close(self) -> None:
        self._output.close()


def _digest(data: memoryview) -> bytes:
    PULSE.beat()
    return hashlib.sha256(data).digest()
