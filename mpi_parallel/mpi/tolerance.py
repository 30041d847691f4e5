"""What an MPI with fault tolerance (ULFM, Bland et al. 2013) can do when ranks die: verbs raise, and these go on."""

from __future__ import annotations

import os
import time

from mpi4py import MPI

from mpi_parallel.mpi.communicator import Communicator
from mpi_parallel.options import InputError

LOSSES = MPI.ERR_PROC_FAILED, MPI.ERR_PROC_FAILED_PENDING, MPI.ERR_REVOKED
DETECTION = 2.0  # seconds until a death that has raised an error is known to everyone for certain
SWITCH = "OMPI_MCA_mpi_ft_enable"  # set by Open MPI's mpirun for --with-ft ulfm


def refuse_without_tolerance() -> None:
    """Raise InputError unless this MPI was started with fault tolerance."""
    name, version = MPI.get_vendor()
    if name != "Open MPI" or version < (5, 0, 0) or os.environ.get(SWITCH, "0").lower() not in ("1", "true", "yes"):
        raise InputError(
            f"--survive needs an MPI that outlives its ranks: Open MPI 5 or newer, started by mpirun --with-ft ulfm; "
            f"this is {name} {'.'.join(map(str, version))}, without it. On any MPI a killed run goes on from its "
            "last checkpoint with --resume auto"
        )


def intact(world: Communicator) -> bool:
    """Whether no rank is known to have died."""
    return not (world.comm.Is_revoked() or world.comm.Get_failed().size)


def is_loss(error: BaseException, world: Communicator) -> bool:
    """Whether this was raised because ranks have died; some collectives of Open MPI 5.0 say just MPI_ERR_OTHER."""
    if not isinstance(error, MPI.Exception):
        return False
    until = time.monotonic() + DETECTION
    while error.Get_error_class() not in LOSSES and intact(world):
        if time.monotonic() > until:
            return False
        time.sleep(0.02)
    return True


def revoke(world: Communicator) -> None:
    """Let every rank that uses this communicator or one of its family, now or later, hear that one has died."""
    for comm in world.family:
        comm.Revoke()


def agree(world: Communicator, vote: bool) -> bool:
    """Whether all ranks are alive and vote for it; the ranks that live get the same answer."""
    try:
        return bool(world.comm.Agree(int(vote)))
    except MPI.Exception:
        return False


def shrink(world: Communicator) -> Communicator:
    """The ranks that live, in this communicator's order."""
    return Communicator(MPI.Intracomm(world.comm.Shrink()), world.device)
