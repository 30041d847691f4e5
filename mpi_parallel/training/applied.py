"""A trained network brought to rows of a file, for `evaluate` and `predict`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpi_parallel.config.learning import DataOptions
from mpi_parallel.data_parallel.dataset import Selection, open_images, open_labelled
from mpi_parallel.data_parallel.evaluation import EVALUATION_ROWS, evaluation_part, evaluation_rows
from mpi_parallel.data_parallel.folder import PictureSplit, open_folder
from mpi_parallel.data_parallel.memory import budget_of
from mpi_parallel.data_parallel.rows import Rows
from mpi_parallel.data_parallel.scaling import Scaler
from mpi_parallel.data_parallel.split import Split
from mpi_parallel.exchange.trained import About
from mpi_parallel.mpi.communicator import Communicator
from mpi_parallel.mpi.process_grid import ProcessGrid, divided
from mpi_parallel.options import InputError, option
from mpi_parallel.options.values import at_least, memory_size
from mpi_parallel.training.banner import settle_threads
from mpi_parallel.training.checkpoints.saved import Saved, open_saved
from mpi_parallel.training.devices import settle_device
from mpi_parallel.training.layout import open_engine, open_model


@dataclass(frozen=True, kw_only=True)
class ApplyOptions:
    """which network, on what"""

    checkpoint: str = option(
        ..., "a run's folder (its best checkpoint, else the newest), a checkpoint, or weights of another program: "
        ".safetensors, .weights.h5 or .keras", name="RUN",
    )  # fmt: skip
    data: str = option(..., "HDF5 file of images; for predict also a folder of pictures", name="FILE.h5")
    images: str | None = option(None, "path of the images in a file of another layout", name="/PATH")
    allow_external: bool = option(
        False, "read also what the file takes from other files, and believe the sizes that it declares"
    )
    memory: str | None = option(
        None, "memory of a node for rows of the file, as in train; others are streamed", check=memory_size, name="SIZE"
    )
    device: str = option("auto", "auto takes a GPU where there is one for the rank", choices=("auto", "cpu", "cuda"))
    precision: str = option(
        "float32",
        "numbers in matrix products, as in train; what a run tells of itself is by those it was trained with",
        choices=("float32", "tf32", "bfloat16", "float16"),
    )
    tensor: int = option(
        1, "cut every layer into so many slices, a rank each: for a network that is too large for one rank",
        check=at_least(1), name="SLICES",
    )  # fmt: skip
    pipe: int = option(
        1, "put the layers on so many stages, a rank each; the ranks that are left divide the rows",
        check=at_least(1), name="STAGES",
    )  # fmt: skip
    threads: int = option(1, "threads of a rank; more may change the last bits of a probability", check=at_least(1))


class Applied:
    """A network and this rank's part of some rows; collective."""

    def __init__(
        self, options: ApplyOptions, split: str | None, world: Communicator, labels: str | None = None,
        labelled: bool = False,
    ) -> None:  # fmt: skip
        """Load, open and compare. Raises InputError where they do not fit one another."""
        divided(world.size, options.pipe, options.tensor)
        saved = open_saved(options.checkpoint, world, "--checkpoint")
        self.network = saved.about
        if labelled and Path(options.data).is_dir():
            raise InputError(f"--data {options.data} is a folder: convert it first, so that its classes are known")
        source = _source(options, labels, saved)
        seed = saved.facts["config"]["batch"]["seed"] if saved.facts else 0
        if Path(options.data).is_dir():
            chosen = open_folder(Path(options.data), self.network.image_shape)
        elif labelled:
            chosen = open_labelled(source, split or "test", seed, world)
        else:
            chosen = open_images(source, split)
        check(self.network, chosen, options)
        self.split: Split = replace(chosen.split, classes=self.network.widths[-1])
        self.classes, self.scaler = self.network.classes or chosen.classes, _scaler(self.network, chosen, options)
        self._build(options, source, world)
        self.facts = saved.put_into(self.model)

    def _build(self, options: ApplyOptions, source: DataOptions, world: Communicator) -> None:
        """This rank's part of the network, and of the rows."""
        node = world.node()
        settle_threads(options.threads, node)
        device = settle_device(options.device, node, world, options.precision)
        self.grid = ProcessGrid(world.on(device), options.pipe, options.tensor)
        self.model = open_model(device, self.network.widths, self.grid, 0.0, None, options.precision)
        comm, self._sees = self.grid.data.on_host(), self.grid.pipe.rank == 0  # later stages look at labels alone
        self.part = evaluation_part(self.split, comm)
        self._rows: Rows | None = None
        if not isinstance(self.split, PictureSplit):
            budget = budget_of(source, node, device)
            self._rows = evaluation_rows(self.split, self.scaler, comm, device, budget, self._sees)
        node.free()

    def logits(self) -> Iterator[tuple[NDArray[Any], NDArray[np.float32], NDArray[np.int32]]]:
        """(places in the split (B,), logits (B, classes), labels (B,)) of this rank, block by block, each good until
        the next; of the ranks that have a network together one gets them.
        """
        to_host = self.model.store.device.to_host
        for rows, begin in self._portions():
            for start, z_part, t in open_engine(self.model, rows, None).logits(rows):
                z = self.model.all_classes(z_part)
                if not np.isfinite(z).all():
                    raise InputError(
                        f"{self.split.path}: the network gives logits that are not finite: its training went bad"
                    )
                if self.grid.speaks:
                    yield np.arange(begin + start, begin + start + len(z)), z, to_host(t)
            rows.close()

    def close(self) -> None:
        """Give back what MPI lent; all ranks together."""
        self.grid.free()

    def _portions(self) -> Iterator[tuple[Rows, int]]:
        """Rows and the place in the split where they begin: this rank's part, of pictures block by block."""
        if self._rows is not None:
            yield self._rows, self.part.start
            return
        seen = self.split if self._sees else self.split.without_images()
        for start in range(self.part.start, self.part.stop, EVALUATION_ROWS):
            block = range(start, min(start + EVALUATION_ROWS, self.part.stop))
            yield Rows(*seen.read(block), self.scaler, self.model.store.device), start


def check(trained: About, chosen: Selection, options: ApplyOptions) -> None:
    """Raise InputError, with both sides, where the rows are not what the network was made for."""
    takes, found = trained.widths[0], prod(chosen.split.shape)
    if takes != found:
        raise InputError(
            f"{options.data}: {chosen.split.images} are images {_by(chosen.split.shape)}, {found} numbers each, but "
            f"the network in {options.checkpoint} takes {takes} ({_by(trained.image_shape)})"
        )
    theirs, ours = chosen.classes, trained.classes
    if theirs and len(theirs) != trained.widths[-1]:
        raise InputError(
            f"{options.data} has {len(theirs)} classes, but the network in {options.checkpoint} tells "
            f"{trained.widths[-1]} apart"
        )
    if theirs and ours and theirs != ours:
        number = next(n for n, names in enumerate(zip(theirs, ours, strict=True)) if len(set(names)) > 1)
        raise InputError(
            f"class {number} is '{theirs[number]}' in {options.data} and '{ours[number]}' in {options.checkpoint}: "
            "convert the data with the same order of --classes"
        )


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def _source(options: ApplyOptions, labels: str | None, saved: Saved) -> DataOptions:
    """Where the rows are: of the file that was trained on, as they were then."""
    trained_on = saved.facts["config"]["data"] if saved.facts else {}
    if trained_on.get("data") != options.data:
        trained_on = {}
    images = options.images or (trained_on.get("images") if labels is None else None)
    return DataOptions(
        data=options.data,
        images=images,
        labels=labels or (trained_on.get("labels") if images else None),
        allow_external=options.allow_external,
        validation=trained_on.get("validation", 0.0),
        memory=options.memory,
    )


def _scaler(trained: About, chosen: Selection, options: ApplyOptions) -> Scaler:
    """The network's own standardisation, else that of the file."""
    mean, std = (trained.mean, trained.std) if trained.mean is not None else (chosen.mean, chosen.std)
    if mean is None or std is None:
        raise InputError(
            f"neither {options.checkpoint} nor {options.data} tells how images are standardised: "
            "give a file that convert has made, or one with attributes mean and std"
        )
    return Scaler.of(mean, std)
