"""Is this machine ready? `mpirun -n 4 python -m mpi_parallel.doctor`, under srun, or alone.

The status is 0 when it is, 1 when there is a problem (with --strict also when there is a warning), 2 for wrong usage.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mpi_parallel.config import ModelOptions
from mpi_parallel.doctor import choices, places, software, speed, storage
from mpi_parallel.doctor.report import deliver, status
from mpi_parallel.mpi.communicator import Communicator
from mpi_parallel.mpi.session import launch
from mpi_parallel.options import InputError, at_least, option, parse
from mpi_parallel.training.banner import settle_threads

SENTENCE = "Look whether this machine is ready: MPI, ranks to cores and GPUs, BLAS, HDF5, locks, clocks, speeds."
ASSUMED = (784, 10)  # features and classes where no data are named: those of the article's images


@dataclass(frozen=True, kw_only=True)
class DoctorOptions:
    """what to look at"""

    folder: str = option(".", "where runs and data are to be: locks, MPI-IO and the disk are tried there", name="PATH")
    device: str = option(
        "auto", "as in train; cuda makes it a problem where there is no GPU", choices=("auto", "cpu", "cuda")
    )
    threads: int | None = option(None, "threads of a rank, as in train", check=at_least(1))
    optimizer: str = option(
        "adam", "update rule that goes with --merge auto", choices=("adam", "adamw", "sgd", "momentum", "lamb")
    )
    speed: bool = option(True, "measure memory, products, messages and the disk, in some seconds")
    strict: bool = option(False, "a warning, too, makes the status 1")
    json: str | None = option(
        None, "print JSON instead of the table, or write it to a file besides", name="FILE", alone="-"
    )


@dataclass(frozen=True, kw_only=True)
class DoctorConfig:
    """All options of `doctor`."""

    doctor: DoctorOptions
    model: ModelOptions


def main(world: Communicator, arguments: list[str]) -> int:
    """Look at everything and tell; the exit status."""
    config = parse(DoctorConfig, arguments, "mpi_parallel.doctor", SENTENCE, speaks=world.rank == 0)
    options = config.doctor
    folder = Path(options.folder)
    if not folder.is_dir():
        raise InputError(f"--folder {folder}: there is no such folder")
    node = world.node()
    threads = settle_threads(options.threads, node)
    device, why, complaint = choices.device_of(options.device, node.rank)
    node.free()
    widths = (ASSUMED[0], *config.model.hidden, ASSUMED[1])
    sections = [
        software.messages(world),
        places.check(world, threads, device),
        software.arithmetic(world, device, threads),
        software.same_versions(world),
        storage.check(folder, world),
        speed.clocks(world),
        choices.check(device, why, complaint, widths, options.optimizer, world),
    ]
    if options.speed:
        sections.append(speed.check(folder if not sections[4].problems else None, world))
    if world.rank == 0:
        deliver(sections, options.strict, options.json)
    return status(sections, options.strict)


if __name__ == "__main__":
    launch(main)
