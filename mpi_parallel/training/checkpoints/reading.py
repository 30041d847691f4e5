"""A checkpoint as many ranks read it: each verifies some of it, and takes its parts of the arrays."""

from __future__ import annotations

from pathlib import Path

from mpi_parallel.device import Array, Device
from mpi_parallel.mpi.communicator import Communicator
from mpi_parallel.nn.mlp import Network
from mpi_parallel.options import InputError
from mpi_parallel.training.checkpoints.checkpoint import CheckpointFile, bytes_of, parameter_shapes
from mpi_parallel.training.checkpoints.slices import pieces_of


def open_together(path: Path, comm: Communicator, asked: str) -> CheckpointFile:
    """Open a checkpoint on all ranks, each of which verifies a part; `asked` is the option that names it.

    Raises InputError on all of them where it is not whole.
    """
    file, complaint = None, ""
    try:
        file = CheckpointFile(path)
        file.verify(comm.rank, comm.size)
    except InputError as error:
        complaint = str(error)
    complaint = next((text for text in comm.gather_text(complaint) if text), "")
    if complaint or file is None:
        if file is not None:
            file.close()
        raise InputError(f"{asked} {complaint}")
    return file


def fill(file: CheckpointFile, kind: str, model: Network, span: slice, array: Array, device: Device) -> None:
    """Put what the file has for `span` of this rank's store into the array, float32 and as long.

    `kind` are the weights or one of the optimizer's arrays. In the host's memory there is no copy of it on the way.
    """
    names = list(parameter_shapes(model.widths))
    values = device.to_host(array)
    data = bytes_of(values)
    for piece in pieces_of(model.places(), span, names):
        file.fill(piece, f"{kind}/{names[piece.array]}", data[piece.local : piece.local + piece.size])
    device.refill(array, values)
