"""What is in a file, and what reading it will cost: `python -m mpi_parallel.inspect FILE.h5 --ranks 8`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mpi4py import MPI

from mpi_parallel.config.learning import DataOptions
from mpi_parallel.data_parallel import survey
from mpi_parallel.data_parallel.dataset import ImageSet, open_image_set
from mpi_parallel.mpi.communicator import Communicator
from mpi_parallel.mpi.session import launch
from mpi_parallel.nn.optimizers import RULES
from mpi_parallel.options import option
from mpi_parallel.options.command_line import parse
from mpi_parallel.options.values import at_least, bytes_of, memory_size
from mpi_parallel.training.forecast import Sizes
from mpi_parallel.training.planning import account, classes_of

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
    hidden: tuple[int, ...] = option(
        (), "also tell what memory a rank would need to train a network of these hidden widths", check=at_least(1)
    )
    batch_size: int = option(256, "rows of a step, for that forecast", check=at_least(1))
    micro_batch: int | None = option(None, "rows that a rank computes at once", check=at_least(1), name="ROWS")
    optimizer: str = option("adam", "update rule, for that forecast", choices=tuple(RULES))
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
        if options.hidden:
            print("\n".join(account(_sizes(options, data, ranks), ranks)), flush=True)
        if options.contact_sheet:
            survey.contact_sheet(data, Path(options.contact_sheet))
            print(f"sheet       {options.contact_sheet}: a row of images for each class, in that order", flush=True)
    return 0


def _sizes(options: InspectOptions, data: ImageSet, ranks: int) -> Sizes:
    """The run that is asked about, on one node."""
    return Sizes(
        (data.features, *options.hidden, classes_of(data, Communicator(MPI.COMM_SELF))),
        options.batch_size,
        options.micro_batch,
        options.optimizer,
        training_rows=len(data.train),
        evaluation_rows=sum(len(split) for split in (data.validation, data.test) if split is not None),
        image_bytes=data.features * data.dtype.itemsize,
        snapshots=1 + (data.validation is not None),
        ranks_of_node=ranks,
    )


if __name__ == "__main__":
    launch(main)
