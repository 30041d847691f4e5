"""Is this machine ready? `mpirun -n 4 python -m mpi_parallel.doctor`, under srun, or alone.

The status is 0 when it is, 1 when there is a problem (with --strict also when there is a warning), 2 for wrong usage.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mpi_parallel.config import TrainConfig
from mpi_parallel.config.learning import DataOptions, ModelOptions
from mpi_parallel.data_parallel.dataset import ImageSet, open_image_set
from mpi_parallel.doctor import choices, memory, places, software, speed, storage
from mpi_parallel.doctor.report import agree, document, status, table
from mpi_parallel.mpi.communicator import Communicator
from mpi_parallel.mpi.session import launch
from mpi_parallel.nn.optimizers import RULES
from mpi_parallel.options import InputError, build, deliver, json_option, option
from mpi_parallel.options.command_line import parse
from mpi_parallel.options.values import at_least
from mpi_parallel.training.banner import settle_threads
from mpi_parallel.training.planning import classes_of

SENTENCE = "Look whether this machine is ready: MPI, ranks to cores and GPUs, BLAS, HDF5, locks, clocks, speeds."
ASSUMED = (784, 10)  # features and classes where no data are named: those of the article's images


@dataclass(frozen=True, kw_only=True)
class DoctorOptions:
    """what to look at"""

    folder: str | None = option(
        None, "where runs are to be: locks, MPI-IO and the disk are tried there; by default where --data is, else here",
        name="FOLDER",
    )  # fmt: skip
    data: str | None = option(None, "file that is to be trained on, for the forecast of memory", name="FILE.h5")
    batch_size: int = option(256, "rows of a step over all ranks, for that forecast", check=at_least(1))
    device: str = option(
        "auto", "as in train; cuda makes it a problem where there is no GPU", choices=("auto", "cpu", "cuda")
    )
    threads: int | None = option(None, "threads of a rank, as in train", check=at_least(1))
    optimizer: str = option("adam", "update rule that goes with --merge auto", choices=tuple(RULES))
    speed: bool = option(True, "measure memory, products, messages and the disk, in some seconds")
    strict: bool = option(False, "a warning, too, makes the status 1")
    json: str | None = json_option()


@dataclass(frozen=True, kw_only=True)
class DoctorConfig:
    """All options of `doctor`."""

    doctor: DoctorOptions
    model: ModelOptions


def main(world: Communicator, arguments: list[str]) -> int:
    """Look at everything and tell; the exit status."""
    config = parse(DoctorConfig, arguments, "mpi_parallel.doctor", SENTENCE, speaks=world.rank == 0)
    options = config.doctor
    folder = Path(options.folder or (Path(options.data).parent if options.data else "."))
    if not folder.is_dir():
        raise InputError(f"--folder {folder}: there is no such folder")
    node = world.node()
    threads = settle_threads(options.threads, node)
    device, why, complaint = choices.device_of(options.device, node.rank)
    data, widths = _network(config, world)
    sections = [
        software.messages(world),
        places.check(world, threads, device),
        software.arithmetic(world, device, threads),
        software.same_versions(world),
        storage.check(folder, world),
        speed.clocks(world),
        memory.check(_training(config), data, widths, world.on(device), node),
        choices.check(device, why, complaint, widths, options.optimizer, world),
    ]
    node.free()
    agree(sections, world)
    if options.speed:
        sections.append(speed.check(folder if not sections[4].problems else None, world))
        agree(sections[-1:], world)
    if world.rank == 0:
        deliver(document(sections, options.strict), table(sections), options.json)
    return status(sections, options.strict)


def _network(config: DoctorConfig, world: Communicator) -> tuple[ImageSet | None, tuple[int, ...]]:
    """The data, where they are named, and the widths of a network for them."""
    if config.doctor.data is None:
        return None, (ASSUMED[0], *config.model.hidden, ASSUMED[1])
    data = open_image_set(DataOptions(data=config.doctor.data), 0, world)
    return data, (data.features, *config.model.hidden, classes_of(data, world))


def _training(config: DoctorConfig) -> TrainConfig:
    """The run that is to be, on whatever grid is best."""
    options, model = config.doctor, config.model
    given = {"data": options.data or "FILE.h5", "batch_size": options.batch_size, "optimizer": options.optimizer}
    training: TrainConfig = build(
        TrainConfig, {**given, "hidden": model.hidden, "dropout": model.dropout, "layout": "auto"}
    )
    return training


if __name__ == "__main__":
    launch(main)
