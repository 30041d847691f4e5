"""`--survive`: ranks die, and the others go on, inside the allocation and from memory.

It needs an MPI with fault tolerance (ULFM: Open MPI 5, started by `mpirun --with-ft ulfm`), in which a message to a
dead rank raises in place of waiting for ever. Whoever is told revokes all communicators, so that everyone is; all agree
that this attempt is over, shrink to those that live, and build the run anew, smaller: its ranks read the shards of the
dead from the file. Then they take up the last step of which all of the state is in some survivor's memory. With mergers
that leave the whole state on every rank that is the newest step that anybody completed. With `sharded` each rank keeps,
beside its own share of the optimizer's state after the last two steps, that of its neighbour. What no survivor has is
taken from the newest checkpoint.

An attempt ends, on every rank, with one vote: that it is over and well, or that someone has died. So a rank that has
finished already learns of one that died in the last message. The survivors leave without MPI_Finalize, which may hang
when several have died.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import sys
from collections.abc import Callable
from typing import NoReturn

from mpi_parallel.mpi.communicator import Communicator
from mpi_parallel.mpi.session import verdict
from mpi_parallel.mpi.tolerance import agree, intact, is_loss, refuse_without_tolerance, revoke, shrink
from mpi_parallel.training.faults.legacy import Legacy

Attempt = Callable[[Communicator, Legacy], int]


def survive(world: Communicator, attempt: Attempt, patience: float) -> NoReturn:
    """Attempt it until it is over or has failed otherwise, each time with the ranks that live, and leave.

    A rank that has waited for `patience` seconds to agree with the others gives itself up; 0 is for ever. Raises
    InputError where this MPI cannot tell of the dead, and whatever an attempt raises but the loss of ranks.
    """
    refuse_without_tolerance()
    legacy = Legacy()
    while True:
        try:
            fatal = legacy.meet(world)
            if fatal:
                _leave(fatal)
            faulthandler.cancel_dump_traceback_later()  # from here a watchdog watches
            status, well = attempt(world, legacy), True
        except BaseException as error:
            if not is_loss(error, world):
                if legacy.attempt == 1 and intact(world):
                    raise
                message, legacy.fatal = verdict(error)  # with the dead in it, the world cannot be told in another way
                print(f"{legacy.name}: {message}", file=sys.stderr, flush=True)
            status, well = 0, False
            revoke(world)
            legacy.bury()
        if patience:
            faulthandler.dump_traceback_later(patience, exit=True)
        if agree(world, well):
            _leave(status)
        world = shrink(world)


def _leave(status: int) -> NoReturn:
    """Without MPI_Finalize, which may wait for the dead."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
