"""The life of a program under MPI: it starts with a check of the launcher and ends on all ranks, whatever happens.

A rank that leaves with an exception while the others wait for it would hang the job. Here every exception ends the job:
where all ranks failed alike, rank 0 tells it and all leave; where one failed alone, it tells and aborts the others.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from typing import NoReturn

from mpi4py import MPI

from mpi_parallel.device import explain
from mpi_parallel.mpi.communicator import Communicator
from mpi_parallel.options import InputError
from mpi_parallel.output import be_patient
from mpi_parallel.signals import REQUESTS, STOPPED, StopAsked

logger = logging.getLogger("mpi_parallel")

USAGE = 2  # exit status for what the user gave
INTERRUPTED = 130  # the shell's status for a program ended by SIGINT
# Where launchers say how many processes they started, the one nearest to the process first.
LAUNCHED_SIZE = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS")
PATIENCE = 0.5  # seconds that a failing rank waits to see whether all the others fail too
COMPANY = 10.0  # seconds that a rank which leaves with a status waits for the others to leave as well
FORWARDING = 0.2  # seconds for the launcher to pass a message on: on an abort MPICH's now and then drops the last


def launch(main: Callable[[Communicator, list[str]], int], stoppable: bool = False) -> NoReturn:
    """Run `main(world, arguments)` on every rank and leave with its status.

    An exception on any rank ends the job, and so does a status other than 0 that one rank returns alone. A program that
    is `stoppable` remembers signals and looks for them itself (mpi_parallel/signals.py).
    """
    faulthandler.enable()  # a crash shows where it was
    be_patient()
    if stoppable:
        REQUESTS.listen()
    else:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # see mpi_parallel/__init__.py
    world = Communicator(MPI.COMM_WORLD)
    farewell = MPI.COMM_WORLD.Dup()  # its own communicator: the failing ranks' messages must not meet anybody else's
    try:
        check_launcher(world.size)
        status = main(world, sys.argv[1:])
        message, patience = "", COMPANY
    except BaseException as error:
        (message, status), patience = verdict(error), PATIENCE
    sys.exit(status and _leave(farewell, message, status, patience))


def verdict(error: BaseException) -> tuple[str, int]:
    """What to tell of an exception, and the exit status: a GPU's in words, of others where they came from."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", INTERRUPTED
    if isinstance(error, StopAsked):
        return str(error), STOPPED
    if isinstance(error, SystemExit):  # --help leaves with 0 on all ranks; anything else may be one rank's alone
        return f"sys.exit: {error.code}", error.code if isinstance(error.code, int) else int(error.code is not None)
    told = error if isinstance(error, InputError) else explain(error)
    if told is None:
        return "".join(traceback.format_exception(error)), 1
    return f"error: {told}", USAGE if isinstance(told, InputError) else 1


def check_launcher(size: int) -> None:
    """Refuse to be one of several processes that the launcher started but MPI did not join.

    srun with the wrong --mpi gives as many jobs of one rank as there are tasks, each training the whole and all writing
    to the same folder. Raises InputError.
    """
    set_by_launcher = [name for name in LAUNCHED_SIZE if os.environ.get(name)]
    if set_by_launcher and size == 1 and (started := int(os.environ[set_by_launcher[0]])) > 1:
        raise InputError(
            f"the launcher started {started} processes ({set_by_launcher[0]}), but this MPI ({MPI.get_vendor()[0]}) "
            "knows of 1: they do not match. Take srun --mpi=pmix for Open MPI, srun --mpi=pmi2 for MPICH, "
            "or the mpirun of this MPI"
        )


def _leave(farewell: MPI.Intracomm, message: str, status: int, patience: float = PATIENCE) -> int:
    """Tell why this rank leaves, once for the job, and end the job; returns when all ranks leave alike.

    Without a message it has been told before, and there is something to tell only when the others stay.
    """
    if _all_arrive(farewell, patience):
        _tell_once(farewell, message)
        return status
    message = message or f"left with status {status}, but other ranks are still at work after {patience:g} s"
    try:
        logger.error("rank %d on %s: %s", farewell.rank, MPI.Get_processor_name(), message)
        logging.shutdown()
        sys.stderr.flush()
        time.sleep(FORWARDING)
    finally:  # whatever becomes of the message, the others must not wait for ever
        MPI.COMM_WORLD.Abort(status)


def _tell_once(farewell: MPI.Intracomm, message: str) -> None:
    """Rank 0 tells what all ranks met: once if it is the same, else the first few with their rank and host."""
    stories = farewell.gather((message, MPI.Get_processor_name()))
    if stories is None or not any(story for story, _ in stories):
        return
    if len({story for story, _ in stories}) == 1:
        logger.error(message)
        return
    for rank, (story, host) in list(enumerate(stories))[:4]:
        logger.error("rank %d on %s: %s", rank, host, story)


def _all_arrive(farewell: MPI.Intracomm, patience: float) -> bool:
    """Whether all ranks get here within some seconds; a rank that does not is waiting in some message, or dead."""
    deadline = time.monotonic() + patience
    try:
        arrival = farewell.Ibarrier()
        while not arrival.Test():
            if time.monotonic() > deadline:
                # If several fail, the lowest speaks and ends the others.
                time.sleep(2 * FORWARDING * min(farewell.rank, 6))
                return False
            time.sleep(0.005)
    except MPI.Exception:  # an MPI with fault tolerance knows of the dead
        return False
    return True
