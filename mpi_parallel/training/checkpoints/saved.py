"""What a run has learnt, from whatever file it is in: a checkpoint, a run's folder, or a format of another program."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import count, takewhile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpi_parallel.exchange.registry import READERS, reader_of
from mpi_parallel.exchange.trained import About, Trained
from mpi_parallel.mpi.communicator import Communicator
from mpi_parallel.nn.mlp import Network, weights_sha256
from mpi_parallel.options import InputError
from mpi_parallel.training.checkpoints.checkpoint import Checkpoint, CheckpointFile, read_checkpoint
from mpi_parallel.training.checkpoints.job import BEST, checkpoints
from mpi_parallel.training.checkpoints.reading import fill, open_together
from mpi_parallel.training.checkpoints.state import WEIGHTS


@dataclass(frozen=True)
class Saved:
    """A trained network in a file: what it is, and weights of which a rank takes its parts."""

    path: Path
    about: About
    facts: Mapping[str, Any]  # of the run, where it is a checkpoint
    source: CheckpointFile | Trained  # other programs' files are read whole

    def put_into(self, model: Network) -> dict[str, str]:
        """Give the network these weights, once; where they come from. Ranks that have its parts call this together."""
        store = model.store
        if isinstance(self.source, CheckpointFile):
            with self.source as file:
                fill(file, WEIGHTS, model, slice(0, store.size), store.weights, store.device)
        else:
            put(self.source, model)
        return _origin(self.path, model.pieces(), self.facts.get("step"))


def open_saved(path: str | Path, comm: Communicator, asked: str) -> Saved:
    """The network that the option `asked` names; all ranks together. Raises InputError."""
    found = find(Path(path))
    read = reader_of(found)
    if read is not None:
        trained = read(found)
        return Saved(found, trained.about, {}, trained)
    file = open_together(found, comm, asked)
    facts, classes = file.facts, file.facts["classes"]
    about = About(
        tuple(facts["widths"]), file.read("scaling/mean"), file.read("scaling/std"), tuple(facts["image_shape"]),
        None if classes is None else tuple(classes),
    )  # fmt: skip
    return Saved(found, about, facts, file)


def load(path: str | Path) -> Trained:
    """The whole network in this process's memory. Raises InputError."""
    found = find(Path(path))
    read = reader_of(found)
    if read is not None:
        trained = read(found)
        return replace(trained, facts=_origin(found, trained.weights()))
    return of_checkpoint(read_checkpoint(found))


def find(path: Path) -> Path:
    """The file itself, or of a run's folder its best checkpoint, else the newest. Raises InputError."""
    if not path.is_dir():
        if not path.exists():
            raise InputError(f"{path}: no such file or folder")
        return path
    folders = [path / "checkpoints", path]
    for folder in folders:
        candidates = [folder / BEST, *checkpoints(folder)]
        if (found := next((file for file in candidates if file.exists()), None)) is not None:
            return found
    raise InputError(
        f"{path}: there is neither {BEST} nor step-*.h5 in {folders[0]}; name a run's folder, a "
        f"checkpoint, or a file that ends in {', '.join(READERS)}"
    )


def of_checkpoint(checkpoint: Checkpoint) -> Trained:
    """The network in a checkpoint."""
    weights = checkpoint.weights
    layers = [(weights[f"W{n}"], weights[f"b{n}"]) for n in takewhile(lambda n: f"W{n}" in weights, count())]
    trained = Trained(layers, checkpoint.mean, checkpoint.std, checkpoint.image_shape, checkpoint.classes)
    return replace(trained, facts=_origin(checkpoint.path, trained.weights(), checkpoint.facts["step"]))


def _origin(path: Path, weights: Iterable[NDArray[np.float32]], step: int | None = None) -> dict[str, str]:
    """Where weights come from, as files that are made of them tell."""
    facts = {"checkpoint": str(path), "weights_sha256": weights_sha256(weights)}
    return facts if step is None else facts | {"step": str(step)}


def put(trained: Trained, model: Network) -> None:
    """Give the network these weights, or this rank's part of it its part of them."""
    for place in model.places():
        kind, number = place.name[0], int(place.name[1:])
        part = np.ascontiguousarray(trained.layers[number]["Wb".index(kind)][place.index])
        place.parameter.value[...] = model.store.device.to_device(part).reshape(place.parameter.value.shape)
