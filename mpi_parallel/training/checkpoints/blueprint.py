"""The checkpoints of one run: where each array will lie in the file, and which pieces this rank writes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mpi_parallel.mpi.communicator import Communicator
from mpi_parallel.options import InputError
from mpi_parallel.training.checkpoints.checkpoint import (
    ARRAYS,
    COLUMNS,
    FACTS,
    NAME,
    PIECES,
    Stored,
    bytes_of,
    parameter_shapes,
)
from mpi_parallel.training.checkpoints.skeleton import (
    Shapes,
    Skeleton,
    Writer,
    encoded,
    lay_out,
    pieces_of_rest,
    room_for,
    shapes_of,
)
from mpi_parallel.training.checkpoints.slices import Piece, pieces_of, written_by
from mpi_parallel.training.checkpoints.state import Snapshot, flat_arrays

if TYPE_CHECKING:
    from mpi_parallel.training.run import Run


@dataclass
class Blueprint:
    """What this rank needs to know to write its part of any checkpoint of the run."""

    rank: int
    span: slice  # of the store
    pieces: dict[str, list[Piece]]  # of each flat array; `local` is their place in its span
    first: int  # number of the first of them in the file's table
    skeleton: Skeleton
    constants: dict[str, NDArray[Any]]  # rank 0's
    rest: list[Piece]  # rank 0's beside those of flat arrays

    def write(self, path: Path, snapshot: Snapshot, facts: Mapping[str, Any]) -> None:
        """Write this rank's part to the file, which the first to come makes, and have the disk hold it.

        Raises OSError.
        """
        with closing(Writer(self.skeleton, path)) as writer:
            data = {name: bytes_of(array) for name, array in snapshot.arrays.items()}
            parts = [
                (piece, data[name][piece.local : piece.local + piece.size])
                for name, pieces in self.pieces.items()
                for piece in pieces
            ]
            writer.put_all(self.first, parts)
            if self.rank == 0:
                self._write_rest(writer, facts)
            writer.finish()

    def _write_rest(self, writer: Writer, facts: Mapping[str, Any]) -> None:
        """The structure of the file, the facts and the constants."""
        writer.begin()
        text = encoded(facts)
        room = self.skeleton.arrays[FACTS].nbytes
        assert len(text) <= room, "the facts have outgrown their place"
        values = self.constants | {FACTS: np.frombuffer(text.ljust(room, b"\0"), np.uint8)}
        parts = [(piece, bytes_of(values[writer.names[piece.array]])) for piece in self.rest]
        writer.put_all(self.skeleton.arrays[PIECES].shape[0] - len(parts), parts)


def draw(run: Run, facts: Mapping[str, Any], folder: Path) -> Blueprint:
    """The blueprint of a run; all ranks together.

    Raises InputError where the folder cannot be written.
    """
    names = parameter_shapes(run.engine.model.widths)
    span, own = share_of(run)
    kinds = list(flat_arrays(run))
    pieces = {
        kind: [replace(piece, array=piece.array + number * len(names)) for piece in own]
        for number, kind in enumerate(kinds)
    }
    tables = _everyones([piece for some in pieces.values() for piece in some], run.comm)
    first = sum(len(table) for table in tables[: run.comm.rank])
    arrays = {f"{kind}/{name}": shape for kind in kinds for name, shape in names.items()}
    constants = {"scaling/mean": run.training.scaler.mean, "scaling/std": run.training.scaler.std}
    room = room_for(facts) if run.comm.rank == 0 else 0
    shapes = shapes_of(arrays, constants, run.comm.maximum(room), sum(map(len, tables)))
    rest = pieces_of_rest(shapes)
    constants[ARRAYS] = np.array(list(shapes), NAME)
    constants[PIECES] = np.concatenate([*tables, _table(rest)])
    return Blueprint(run.comm.rank, span, pieces, first, _share_skeleton(shapes, folder, run.comm), constants, rest)


def share_of(run: Run) -> tuple[slice, list[Piece]]:
    """The slice of the store that this rank writes, and its pieces in an array of the parameters' shapes."""
    owned = run.merger.owned
    spans = run.merger.comm.gather(np.array([owned.start, owned.stop], np.int64)).tolist()
    span = written_by([slice(*ends) for ends in spans], run.merger.comm.rank)
    return span, pieces_of(run.engine.model.places(), span, list(parameter_shapes(run.engine.model.widths)))


def _everyones(pieces: Sequence[Piece], comm: Communicator) -> list[NDArray[np.int64]]:
    """The tables of all ranks' pieces, by rank."""
    counts = comm.gather(np.array([len(pieces)], np.int64)).ravel().tolist()
    table = np.zeros((max(counts), COLUMNS), np.int64)
    table[: len(pieces)] = _table(pieces)
    return [rows[:count] for rows, count in zip(comm.gather(table), counts, strict=True)]


def _table(pieces: Sequence[Piece]) -> NDArray[np.int64]:
    rows = [(piece.array, piece.start, piece.run, piece.stride, piece.count) for piece in pieces]
    return np.array(rows, np.int64).reshape(-1, COLUMNS)


def _share_skeleton(shapes: Shapes, folder: Path, comm: Communicator) -> Skeleton:
    """Rank 0 has the file laid out and tells the others where the arrays are."""
    complaint, skeleton = "", None
    if comm.rank == 0:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for left in folder.glob(".*.part"):  # by a run that was killed
                left.unlink(missing_ok=True)
            skeleton = lay_out(folder / ".layout", shapes)
        except OSError as error:
            complaint = f"{folder}: no checkpoint can be written there: {error}"
    if complaint := comm.gather_text(complaint)[0]:
        raise InputError(f"{complaint}; --checkpoint-every never does without them")
    offsets = [stored.offset for stored in skeleton.arrays.values()] + [skeleton.size] if skeleton else None
    told = comm.broadcast(None if offsets is None else np.array(offsets, np.int64)).tolist()
    if skeleton is None:
        stored = {name: Stored(at, *shapes[name]) for name, at in zip(shapes, told, strict=False)}
        skeleton = Skeleton(stored, told[-1])
    return skeleton
