"""What is in a file, and what reading it will cost: `python -m mpi_parallel.inspect FILE.h5 --ranks 8`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mpi_parallel.config import DataOptions
from mpi_parallel.data_parallel import survey
from mpi_parallel.data_parallel.dataset import open_image_set
from mpi_parallel.mpi.communicator import Communicator
from mpi_parallel.mpi.session import launch
from mpi_parallel.options import at_least, bytes_of, memory_size, option, parse

SENTENCE = "Show what is in an image set: splits, classes, how it is stored and what an epoch of streaming reads."


@dataclass(frozen=True, kw_only=True)
class InspectOptions:
    """what to look at, and for which run"""

    file: str = option(..., "HDF5 file of images and labels", name="FILE.h5", positional=True)
    images: str | None = option(None, "path of the images in a file of another layout", name="/PATH")
    labels: str | None = option(None, "path of the labels in a file of another layout", name="/PATH")
    ranks: int | None = option(None, "ranks of the run to be; by default those that run this", check=at_least(1))
    shards: int = option(64, "contiguous parts that the rows are dealt in, as in train", check=at_least(1))
    window: str = option("256M", "rows that streaming shuffles together, as in train", check=memory_size, name="SIZE")
    contact_sheet: str | None = option(None, "also draw some images of each class", name="FILE.png")
    allow_external: bool = option(
        False, "read also what the file takes from other files, and believe the sizes that it declares"
    )


@dataclass(frozen=True, kw_only=True)
class InspectConfig:
    """All options of `python -m mpi_parallel.inspect`."""

    inspect: InspectOptions


def main(world: Communicator, arguments: list[str]) -> int:
    """Look at the file and tell; the exit status."""
    options = parse(InspectConfig, arguments, "mpi_parallel.inspect", SENTENCE, speaks=world.rank == 0).inspect
    source = DataOptions(
        data=options.file, images=options.images, labels=options.labels, allow_external=options.allow_external
    )
    data = open_image_set(source, 0, world)
    if world.rank == 0:
        window, ranks = bytes_of(options.window), options.ranks or world.size
        print("\n".join(survey.lines(data, options.shards, window, ranks)), flush=True)
        if options.contact_sheet:
            survey.contact_sheet(data, Path(options.contact_sheet))
    return 0


if __name__ == "__main__":
    launch(main)
