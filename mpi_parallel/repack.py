"""Write an image set anew for fast parallel reading: `mpirun -n 4 python -m mpi_parallel.repack OLD.h5 --to NEW.h5`."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mpi_parallel.data_parallel import repacking
from mpi_parallel.data_parallel.writing import Layout, whole_file
from mpi_parallel.mpi.communicator import Communicator
from mpi_parallel.mpi.session import launch
from mpi_parallel.options import option
from mpi_parallel.options.command_line import parse
from mpi_parallel.options.values import at_least

SENTENCE = "Write an image set anew for fast parallel reading, and check that it reads as it did."


@dataclass(frozen=True, kw_only=True)
class RepackOptions:
    """what becomes what"""

    file: str = option(..., "HDF5 file of our layout", name="FILE.h5", positional=True)
    to: str = option(..., "file to write; it appears only once it is whole and checked", name="OUT.h5")
    filter: str = option(
        "none", "none is the fastest to read: contiguous, nothing to unpack; gzip is the smallest",
        choices=("none", "gzip", "lzf"),
    )  # fmt: skip
    chunk: int | None = option(
        None, "images of a chunk, where there is a filter; by default 256 KiB of them", check=at_least(1), name="ROWS"
    )
    dtype: str = option(
        "auto", "type of the images; auto is uint8 where that loses nothing, and else leaves them as they are",
        choices=("auto", "keep", "uint8", "uint16", "float16", "float32"),
    )  # fmt: skip
    allow_external: bool = option(
        False, "read also what the file takes from other files, and believe the sizes that it declares"
    )


@dataclass(frozen=True, kw_only=True)
class RepackConfig:
    """All options of `python -m mpi_parallel.repack`."""

    repack: RepackOptions


def main(world: Communicator, arguments: list[str]) -> int:
    """Copy, check and give the copy its name; the exit status."""
    began = time.perf_counter()
    options = parse(RepackConfig, arguments, "mpi_parallel.repack", SENTENCE, speaks=world.rank == 0).repack
    target = Path(options.to)
    packing = repacking.Packing(None if options.filter == "none" else options.filter, options.chunk)
    with whole_file(target, world, [options.file]) as unfinished:
        layout = _layout(options, world)
        digest = repacking.copy(options.file, unfinished, layout, packing, world)
    if world.rank == 0:
        if others := repacking.others(options.file, layout):
            print(f"not copied, as no training reads it: {', '.join(others)}", flush=True)
        seconds, size = time.perf_counter() - began, target.stat().st_size
        print(f"{target}: {size:,} bytes; read again and found equal, sha256 {digest}; {seconds:.2f} s", flush=True)
    return 0


def _layout(options: RepackOptions, world: Communicator) -> Layout:
    """The datasets to be written, images in their new dtype: one for all splits, or each split's own."""
    layout = repacking.datasets(options.file, options.allow_external)
    dtype = options.dtype
    if dtype == "auto":
        dtype = "uint8" if repacking.are_bytes(options.file, layout, world) else "keep"
    if dtype == "keep":
        return layout
    return layout | {name: (layout[name][0], np.dtype(dtype)) for name in repacking.images_of(layout)}


if __name__ == "__main__":
    launch(main)
