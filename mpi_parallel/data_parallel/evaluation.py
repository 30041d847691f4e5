"""A rank's part of a split that is evaluated: whole blocks of rows, in the order of the file."""

from __future__ import annotations

from mpi_parallel.data_parallel.memory import Budget
from mpi_parallel.data_parallel.rows import Rows, bytes_of_row, streamed_rows
from mpi_parallel.data_parallel.scaling import Scaler
from mpi_parallel.data_parallel.split import Split
from mpi_parallel.data_parallel.streaming import stream_in_order
from mpi_parallel.device import Device
from mpi_parallel.mpi.communicator import Communicator
from mpi_parallel.mpi.partition import block

EVALUATION_ROWS = 512  # at a time: enough for BLAS, little memory


def evaluation_rows(
    split: Split | None,
    scaler: Scaler,
    comm: Communicator,
    device: Device,
    budget: Budget | None = None,
    images: bool = True,
) -> Rows | None:
    """This rank's part of a split that is evaluated; streamed, in the order of the file, where it does not fit.

    Without `images` it reads labels alone.

    Ranks own whole blocks of EVALUATION_ROWS, so that what is computed together does not depend on their number.
    """
    if split is None:
        return None
    part = evaluation_part(split, comm)
    seen = split if images else split.without_images()
    if (budget or Budget()).fits(len(part) * bytes_of_row(seen, device)):
        return Rows(*seen.read(part), scaler, device)
    return streamed_rows(stream_in_order(split, part, images), split.largest_label(part), scaler, device)


def evaluation_part(split: Split, comm: Communicator) -> range:
    """The places of a split that this rank evaluates."""
    blocks = block(-(-len(split) // EVALUATION_ROWS), comm.size, comm.rank)
    return range(*(min(number * EVALUATION_ROWS, len(split)) for number in (blocks.start, blocks.stop)))
