"""Start programs as a user does, with a deadline, and leave nothing of them behind."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path

from mpi_parallel.device.host import blas_complaint

MARK = "MPI_PARALLEL_TEST_RUN"  # an environment variable by which a run finds all that it has started
SHARED_MEMORY = Path("/dev/shm")
SEGMENTS = "sm_segment.", "vader_segment.", "mpich_shm_"  # how the MPIs name their part of it


def mpirun_of(mpi: str = "") -> str:
    """The mpirun of `make env` for this MPI, or for the first one; or else the one on PATH."""
    beside = Path(sys.executable).parent / ("mpirun" + (f"-{mpi}" if mpi else ""))
    return str(beside) if beside.exists() else shutil.which(beside.name) or shutil.which("mpirun") or "mpirun"


def launch(
    ranks: int | None,
    *arguments: str | Path,
    deadline: float = 60,
    env: Mapping[str, str] | None = None,
    cwd: str | Path | None = None,
    mpirun: Sequence[str] = (),
    within: Sequence[str] = (),
) -> subprocess.CompletedProcess[str]:
    """Run `mpirun -n RANKS python ARGUMENTS...`, or python alone for None, and return its status, stdout and stderr.

    It runs on the MPI of this process, with `env` added to the environment and `mpirun` to its launcher's options;
    `within` is a command that starts the launcher. Past the deadline every Python process shows where it stands, all
    are ended, and the test fails with what they had printed. For serial tests only. What `without_blas` leaves out is
    not in the output.
    """
    from mpi4py import MPI

    assert MPI.COMM_WORLD.size == 1, "a program under mpirun cannot start another mpirun"
    command = [sys.executable, *map(str, arguments)]
    if ranks is not None:
        mpi = "mpich" if "MPICH" in MPI.Get_library_version() else "openmpi"
        command = [*within, mpirun_of(mpi), *mpirun, "-n", str(ranks), *command]
    remove_sessions()
    before = segments()
    mark = uuid.uuid4().hex
    # os.environ is that of the start of this process, without what MPI has put into its own since.
    environment = {**os.environ, "PYTHONFAULTHANDLER": "1", **(env or {}), MARK: os.environ.get(MARK, "") + mark}
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        env=environment,
        cwd=cwd,
    ) as process:
        try:
            out, err = process.communicate(timeout=deadline)
        except subprocess.TimeoutExpired:
            send(mark, signal.SIGABRT, "python")  # on which faulthandler shows the stacks
            remaining(mark)
            send(mark, signal.SIGKILL)
            out, err = process.communicate()
            remove_segments(before)
            raise AssertionError(f"{' '.join(command)} did not end within {deadline:g} s\n{out}\n{err}") from None
    left = remaining(mark)
    send(mark, signal.SIGKILL)
    remove_segments(before)
    assert not left, f"{' '.join(command)} left processes behind: {left}\n{out}\n{err}"
    return subprocess.CompletedProcess(command, process.returncode, out, without_blas(err))


def without_blas(told: str) -> str:
    """These lines but for what a run warns of where whoever runs the tests has OpenBLAS run older kernels."""
    complaint = blas_complaint()
    return told.replace(f"{complaint}\n", "") if complaint else told


def processes(mark: str) -> dict[int, str]:
    """The command lines, by pid, of the other processes whose environment bears this mark."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if int(folder.name) != os.getpid() and mark.encode() in (folder / "environ").read_bytes():
                found[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:  # gone, or another user's
            continue
    return found


def remaining(mark: str, patience: float = 3) -> list[str]:
    """The command lines of the processes that are still there after a while."""
    deadline = time.monotonic() + patience
    while processes(mark) and time.monotonic() < deadline:
        time.sleep(0.05)
    return list(processes(mark).values())


def send(mark: str, number: signal.Signals, program: str = "") -> None:
    """Send a signal to all processes with this mark that run this program."""
    for pid, command in processes(mark).items():
        if program in command.partition(" ")[0]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)


def segments() -> set[str]:
    """The names of all the MPIs' shared memory."""
    return {path.name for path in SHARED_MEMORY.glob("*") if path.name.startswith(SEGMENTS)}


def remove_segments(before: set[str]) -> None:
    """Remove what has come since and no process uses any more: a rank that is killed or aborts cannot do so itself."""
    new = segments() - before
    used = "".join(_maps(folder) for folder in Path("/proc").glob("[0-9]*")) if new else ""
    for name in new:
        if name not in used:
            with contextlib.suppress(OSError):  # gone by now, or another user's
                (SHARED_MEMORY / name).unlink()


def remove_sessions() -> None:
    """Remove the folders of Open MPI's launchers that were killed: one that gets their number later would not start."""
    for folder in Path(tempfile.gettempdir()).glob("ompi.*"):
        number = folder.name.removeprefix("ompi.")
        if number.isdecimal() and not Path("/proc", number).exists():
            shutil.rmtree(folder, ignore_errors=True)  # perhaps it is another user's


def _maps(folder: Path) -> str:
    try:
        return (folder / "maps").read_text()
    except OSError:
        return ""
