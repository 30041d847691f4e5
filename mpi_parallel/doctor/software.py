"""What is installed: MPI, BLAS and kernels, HDF5; and whether all ranks have the same."""

from __future__ import annotations

import json
import os
from collections import Counter

import h5py
from mpi4py import MPI

from mpi_parallel.device import Device
from mpi_parallel.device.host import Host, blas_complaint
from mpi_parallel.doctor.report import Section
from mpi_parallel.mpi.communicator import Communicator
from mpi_parallel.mpi.cuda_probe import Awareness, probe
from mpi_parallel.training.banner import library, versions

THREAD_LEVELS = {
    MPI.THREAD_SINGLE: "single", MPI.THREAD_FUNNELED: "funneled", MPI.THREAD_SERIALIZED: "serialized",
    MPI.THREAD_MULTIPLE: "multiple",
}  # fmt: skip
# By which variable a launcher shows itself, the innermost first.
LAUNCHERS = {
    "OMPI_COMM_WORLD_SIZE": "Open MPI's mpirun, or srun --mpi=pmix",
    "PMI_SIZE": "MPICH's mpirun, or srun --mpi=pmi2",
    "SLURM_STEP_ID": "srun",
}


def messages(world: Communicator) -> Section:
    """The MPI library and what it can."""
    section = Section("mpi")
    level, standard = THREAD_LEVELS[MPI.Query_thread()], ".".join(map(str, MPI.Get_version()))
    launcher = next((name for variable, name in LAUNCHERS.items() if variable in os.environ), "none: one rank alone")
    section.tell("library", library(), library=library(), vendor=MPI.get_vendor()[0], version=library().split()[-1])
    section.tell("standard", f"MPI {standard}", standard=standard, description=MPI.Get_library_version().strip("\0 \n"))
    section.tell("threads", f"thread level {level}", thread_level=level)
    section.tell("launcher", launcher, launcher=launcher, size=world.size)
    aware = _awareness(world)
    word = {True: "yes", False: "no", None: "unknown"}[aware.aware]
    section.tell("GPU memory", f"{word}; {aware.why}", cuda_aware=aware.aware, cuda_aware_why=aware.why)
    if level != "multiple":
        section.warnings.append(f"MPI gives thread level {level}: whatever talks from a second thread cannot work")
    return section


def _awareness(world: Communicator) -> Awareness:
    """What rank 0's child process found, on all ranks."""
    found = probe() if world.rank == 0 else None
    text = json.dumps([found.aware, found.why]) if found else ""
    return Awareness(*json.loads(world.gather_text(text)[0]))


def arithmetic(world: Communicator, device: Device, threads: int) -> Section:
    """Who computes, with which kernels, and whether there are better ones."""
    section = Section("arithmetic")
    host = Host()
    section.tell("device", device.describe(), device=device.kind, describe=device.describe())
    beside = "" if device.kind == host.kind else f"{host.describe()}; "  # what cores do beside a GPU
    section.tell(
        "cores",
        f"{beside}{threads} thread{'s' * (threads > 1)} a rank",
        host=host.describe(),
        kernels=host.kernels.name,
    )
    pinned = {
        name: value for name in os.environ if name.startswith(("OPENBLAS_", "OMP_")) and (value := os.environ[name])
    }
    section.tell(
        "told by", ", ".join(f"{name}={value}" for name, value in pinned.items()) or "no variable", environment=pinned
    )
    complaints = world.gather_text(blas_complaint() or "")
    for complaint in dict.fromkeys(filter(None, complaints)):
        section.warnings.append(f"{_who(complaints, complaint)}: {complaint}")
    if "OpenMP" not in host.kernels.name:
        section.warnings.append(
            "no compiled kernels: install a C compiler and then mpi_parallel again, it will be faster"
        )
    return section


def same_versions(world: Communicator) -> Section:
    """Versions of everything that can change a result, and ranks that have others."""
    mine = versions() | {"kernels": Host().kernels.name}
    return judge_versions([json.loads(text) for text in world.gather_text(json.dumps(mine))])


def judge_versions(found: list[dict[str, str]]) -> Section:
    """The section of these ranks' versions."""
    section = Section("versions", facts=dict(found[0]))
    section.rows.append(("of all ranks", ", ".join(f"{name} {version}" for name, version in found[0].items())))
    for name in found[0]:
        theirs = [versions_[name] for versions_ in found]
        if len(set(theirs)) > 1:
            told = "; ".join(f"{version} on {_who(theirs, version)}" for version, _ in Counter(theirs).most_common())
            section.problems.append(f"ranks have different versions of {name}: {told}")
    section.facts["mpio"] = h5py.get_config().mpi
    return section


def _who(values: list[str], value: str) -> str:
    """rank 3, or ranks 0, 1, 2, …, that have this value."""
    ranks = [rank for rank, theirs in enumerate(values) if theirs == value]
    if len(ranks) == len(values) > 1:
        return "all ranks"
    return f"rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks[:8]))}{', …' * (len(ranks) > 8)}"
