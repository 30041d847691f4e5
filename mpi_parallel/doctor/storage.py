"""The folder that data come from and runs go to: HDF5, locks, MPI-IO, room."""

from __future__ import annotations

import os
import secrets
import shutil
from contextlib import suppress
from pathlib import Path

import h5py
import numpy as np

from mpi_parallel.doctor.report import Section
from mpi_parallel.mpi.communicator import Communicator
from mpi_parallel.mpi.files import SharedFile
from mpi_parallel.options import InputError

BLOCK = 1 << 16  # bytes that each rank writes to try MPI-IO
LITTLE = 1 << 30  # bytes of room below which a warning is due
MOUNTS = Path("/proc/self/mounts")


def check(folder: Path, world: Communicator) -> Section:
    """Try everything that a run does there, with files that are removed again."""
    section = Section("storage")
    section.tell("folder", f"{folder} ({file_system(folder)})", folder=str(folder), file_system=file_system(folder))
    config = h5py.get_config()
    writers = "h5py itself" if config.mpi else "MPI-IO beside a serial h5py"
    section.tell(
        "HDF5", f"{h5py.version.hdf5_version}, h5py {h5py.__version__}; ranks write one file by {writers}",
        hdf5=h5py.version.hdf5_version, h5py=h5py.__version__, mpio=bool(config.mpi),
    )  # fmt: skip
    name = bytes(world.broadcast(np.frombuffer(secrets.token_bytes(4), np.uint8) if world.rank == 0 else None)).hex()
    path = folder / f".doctor-{name}.h5"
    try:
        served = _trials(section, folder, path, world)
        world.meet()  # nobody needs the file any more
    finally:
        if world.rank == 0:
            path.unlink(missing_ok=True)
    world.meet()
    if served:
        free = shutil.disk_usage(folder).free
        section.tell("room", f"{free / 2**30:,.1f} GiB free", free_bytes=free)
        if free < LITTLE:
            section.warnings.append(f"{folder}: only {free / 2**20:,.0f} MiB are free")
    return section


def _trials(section: Section, folder: Path, path: Path, world: Communicator) -> bool:
    """Try locks, one folder for all and MPI-IO with the file at `path`; whether runs can be kept there."""
    locking = os.environ.get("HDF5_USE_FILE_LOCKING", "not set")
    locks = world.gather_text(_lock(path) if world.rank == 0 else "")[0]
    if locks.startswith("cannot be written"):
        section.problems.append(f"{folder}: {locks}")
        return False
    section.tell("locks", f"{locks} (HDF5_USE_FILE_LOCKING is {locking})", locks=locks, locking=locking)
    if locks != "work":
        section.warnings.append(
            f"{folder}: file locks fail ({locks}); data are read without them, but other programs that open "
            "HDF5 files here want HDF5_USE_FILE_LOCKING=FALSE"
        )
    seen = _alike(world.gather_text(_see(path)))
    section.tell("seen by", "all ranks" if seen == "yes" else seen, seen=seen)
    if seen != "yes":
        section.problems.append(f"{folder} is not one folder for all ranks: {seen}")
        return False
    parallel = _parallel(path, world)
    section.tell("MPI-IO", parallel, mpi_io=parallel)
    if parallel != "works":
        section.problems.append(f"{folder}: ranks cannot write one file through MPI-IO: {parallel}; convert --parts")
    return True


def _lock(path: Path) -> str:
    """Make a file with HDF5's locks on."""
    try:
        with h5py.File(path, "w", locking=False) as file:
            file["x"] = np.arange(3)
    except OSError as error:
        return f"cannot be written: {error}"
    try:
        with h5py.File(path, "r+", locking=True):
            return "work"
    except OSError as error:
        return str(error)


def _see(path: Path) -> str:
    """Whether this rank reads what rank 0 has written."""
    try:
        with h5py.File(path, "r", locking=False) as file:
            return "yes" if file["x"][2] == 2 else "no"
    except (OSError, KeyError):
        return "no"


def _parallel(path: Path, world: Communicator) -> str:
    """Whether all ranks can write one file, and each reads what the next one wrote; the same words on all ranks."""
    if world.rank == 0:
        path.write_bytes(b"")
    world.meet()
    file, error = None, ""
    try:
        file = SharedFile(path, world)
        file.write(world.rank * BLOCK, np.full(BLOCK, world.rank % 251, np.uint8))
    except InputError as refused:
        error = str(refused)
    opened = -world.maximum(-int(file is not None))
    if file is not None and opened:  # closing takes all ranks
        file.close()
    if told := [text for text in world.gather_text(error) if text]:
        return told[0]
    other = (world.rank + 1) % world.size
    read = np.fromfile(path, np.uint8, BLOCK, offset=other * BLOCK)
    right = len(read) == BLOCK and bool((read == other % 251).all())
    return "works" if not world.maximum(int(not right)) else "what was written is not what another rank reads"


def _alike(found: list[str]) -> str:
    """What all ranks found, or what each of them did."""
    if len(set(found)) == 1:
        return found[0]
    return "; ".join(f"{answer} on rank {rank}" for rank, answer in list(enumerate(found))[:8])


def file_system(folder: Path, mounts: Path = MOUNTS) -> str:
    """The type of the file system that holds the folder."""
    best = ("", "unknown")
    with suppress(OSError):
        where = str(folder.resolve())
        for line in mounts.read_text().splitlines():
            _, point, kind = line.split()[:3]
            if (where + "/").startswith(point.rstrip("/") + "/") and len(point) >= len(best[0]):
                best = (point, kind)
    return best[1]
