"""An image set written anew, on all ranks: contiguous or packed in chunks, in a smaller dtype, checked by digest.

Contiguous datasets are written as in `writing`. Packed ones are packed by the ranks, each into a file of its own with
the same chunks, and one rank then copies the chunks as they are, packed, into the one file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from mpi_parallel.data_parallel import trust
from mpi_parallel.data_parallel.dataset import SPLITS
from mpi_parallel.data_parallel.intake import holds
from mpi_parallel.data_parallel.outfile import create, edit
from mpi_parallel.data_parallel.split import open_file
from mpi_parallel.data_parallel.writing import Layout, OneFile
from mpi_parallel.mpi.communicator import Communicator
from mpi_parallel.mpi.partition import block
from mpi_parallel.options import InputError

CHUNK = 1 << 18  # bytes of a chunk: enough to be unpacked at full speed
CHUNKS = 256  # at least, where there are as many images: several to a shard, whose edges then waste little
UNIT = 1 << 22  # bytes that are read, packed and digested together
DIGEST = 32  # bytes
Digests = dict[str, dict[int, bytes]]  # of the units of each dataset, by their first row


@dataclass(frozen=True)
class Packing:
    """How images are to be stored: no filter means contiguous."""

    filter: str | None = None  # gzip or lzf
    rows: int | None = None  # of a chunk


def datasets(path: str, trusting: bool) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
    """The datasets of our layout in a file, with shape and dtype in this machine's byte order. Raises InputError."""
    names = [
        f"{group}{name}" for group in (*(f"{s}/" for s in SPLITS), "") for name in ("images", "labels", "source_rows")
    ]
    with open_file(path) as file:
        trust.check(file, names, trusting)
        found = {name: file[name] for name in names if isinstance(file.get(name), h5py.Dataset)}
        if not images_of(found):
            raise InputError(
                f"{path} has neither train/images nor images: python -m mpi_parallel.convert reads other layouts"
            )
        for name, item in found.items():
            if item.dtype.kind not in "uif" or not item.ndim or 0 in item.shape[1:]:
                raise InputError(f"{path}: {name} is {item.dtype} {item.shape}, not numbers")
        return {name: (item.shape, item.dtype.newbyteorder("=")) for name, item in found.items()}


def others(path: str, layout: Layout) -> list[str]:
    """The datasets of a file that are not among these."""
    found: list[str] = []
    with open_file(path) as file:
        file.visititems(lambda name, item: found.append(name) if isinstance(item, h5py.Dataset) else None)
    return [name for name in found if name not in layout]


def images_of(layout: Layout) -> list[str]:
    """The names of the datasets that hold images."""
    return [name for name in layout if name.endswith("images")]


def are_bytes(path: str, layout: Layout, comm: Communicator) -> bool:
    """Whether the images of all splits are whole numbers of 0 to 255. Collective."""
    wide = {name: layout[name] for name in images_of(layout) if layout[name][1] != np.uint8}
    fits = True
    with open_file(path) as file:
        for name, rows in _units(wide, comm):
            fits = fits and bool(holds(file[name][rows.start : rows.stop], np.dtype(np.uint8)).all())
    return not comm.maximum(int(not fits))


def copy(path: str, target: Path, layout: Layout, packing: Packing, comm: Communicator) -> str:
    """Write the datasets of a file to another one, check that they read as they did; their digest. Collective."""
    digests: Digests = {}
    chunk = (packing.rows or _rows_of_a_chunk(layout)) if packing.filter else 1
    with open_file(path) as file:
        if packing.filter:
            _copy_packed(file, target, layout, packing.filter, chunk, comm, digests)
        else:
            writer = OneFile(target, layout, comm)
            for name, rows, values in _converted(file, layout, comm, digests):
                writer.write(name, rows.start, values)
            writer.finish()
    if comm.rank == 0:
        _copy_attributes(path, target)
    comm.maximum(0)
    return _verify(target, layout, digests, chunk, comm)


def _units(layout: Layout, comm: Communicator, chunk: int = 1) -> Iterator[tuple[str, range]]:
    """This rank's ranges of rows of each dataset: about UNIT bytes, of whole chunks, the same for any ranks."""
    for name, (shape, dtype) in layout.items():
        step = rows_of_a_unit(shape, dtype, chunk)
        for unit in block(-(-shape[0] // step), comm.size, comm.rank):
            yield name, range(unit * step, min((unit + 1) * step, shape[0]))


def rows_of_a_unit(shape: tuple[int, ...], dtype: np.dtype[Any], chunk: int = 1) -> int:
    """Rows of about UNIT bytes, whole chunks of them."""
    return max(1, UNIT // (prod(shape[1:]) * dtype.itemsize) // chunk) * chunk


def _converted(
    file: h5py.File, layout: Layout, comm: Communicator, digests: Digests, chunk: int = 1
) -> Iterator[tuple[str, range, NDArray[Any]]]:
    """This rank's rows in their new dtype, their digests noted."""
    for name, rows in _units(layout, comm, chunk):
        read, dtype = file[name][rows.start : rows.stop], layout[name][1]
        if not np.can_cast(read.dtype, dtype) and not holds(read, dtype).all():
            row = rows.start + int(np.flatnonzero(~holds(read.reshape(len(read), -1), dtype).all(axis=1))[0])
            raise InputError(f"{file.filename}: {name} row {row} has a number that {dtype} does not hold: --dtype keep")
        values = np.ascontiguousarray(read.astype(dtype, copy=False))
        digests.setdefault(name, {})[rows.start] = hashlib.sha256(values.data).digest()
        yield name, rows, values


def _copy_packed(
    file: h5py.File, target: Path, layout: Layout, filter_: str, chunk: int, comm: Communicator, digests: Digests
) -> None:
    own = [target.with_name(f"{target.name}.packed-{rank}") for rank in range(comm.size)]
    try:
        with create(own[comm.rank]) as part:
            _make(part, layout, filter_, chunk)
            comm.meet()  # as in `parts`
            for name, rows, values in _converted(file, layout, comm, digests, chunk):
                part[name][rows.start : rows.stop] = values
        comm.maximum(0)
        if comm.rank == 0:
            _gather_chunks(target, own, layout, filter_, chunk)
        comm.maximum(0)
    finally:
        own[comm.rank].unlink(missing_ok=True)


def _rows_of_a_chunk(layout: Layout) -> int:
    shape, dtype = layout[images_of(layout)[0]]
    return max(1, min(CHUNK // (prod(shape[1:]) * dtype.itemsize), shape[0] // CHUNKS))


def _make(file: h5py.File, layout: Layout, filter_: str, chunk: int) -> None:
    for name, (shape, dtype) in layout.items():
        if not name.endswith("images") or not shape[0]:
            file.create_dataset(name, shape, dtype)
            continue
        rows = min(chunk, shape[0])
        file.create_dataset(
            name,
            shape,
            dtype,
            chunks=(rows, *shape[1:]),
            compression=filter_,
            shuffle=dtype.itemsize > 1,
            fletcher32=True,
        )


def _gather_chunks(target: Path, parts: list[Path], layout: Layout, filter_: str, chunk: int) -> None:
    """One file of what the ranks have packed: chunks as they are, the small datasets row by row."""
    with create(target) as file:
        _make(file, layout, filter_, chunk)
        for rank, path in enumerate(parts):
            with h5py.File(path, "r", locking=False) as part:
                for name, (shape, dtype) in layout.items():
                    source, to = part[name], file[name]
                    if source.chunks:
                        for number in range(source.id.get_num_chunks()):
                            place = source.id.get_chunk_info(number).chunk_offset
                            mask, data = source.id.read_direct_chunk(place)
                            to.id.write_direct_chunk(place, data, mask)
                        continue
                    step = rows_of_a_unit(shape, dtype, chunk)
                    mine = block(-(-shape[0] // step), len(parts), rank)
                    to[mine.start * step : mine.stop * step] = source[mine.start * step : mine.stop * step]


def _copy_attributes(path: str, target: Path) -> None:
    with open_file(path) as file, edit(target) as made:
        for name, value in file.attrs.items():
            if name != "parts":
                made.attrs[name] = value


def _verify(target: Path, layout: Layout, digests: Digests, chunk: int, comm: Communicator) -> str:
    """Read everything again, what another rank wrote, and compare; the digest of all digests."""
    whole = hashlib.sha256()
    with open_file(str(target)) as file:
        for name, (shape, dtype) in layout.items():
            step = rows_of_a_unit(shape, dtype, chunk)
            table = np.zeros((-(-shape[0] // step), DIGEST), np.uint8)
            for start, digest in digests.get(name, {}).items():
                table[start // step] = np.frombuffer(digest, np.uint8)
            comm.sum(table)
            for unit in block(len(table), comm.size, (comm.rank + 1) % comm.size):
                values = np.ascontiguousarray(file[name][unit * step : (unit + 1) * step])
                if hashlib.sha256(values.data).digest() != table[unit].tobytes():
                    raise InputError(f"{target}: {name} from row {unit * step} on does not read as it was written")
            whole.update(table.data)
    return whole.hexdigest()
