"""What a run has learnt, from whatever file it is in: a checkpoint, a run's folder, or a format of another program."""

from __future__ import annotations

from dataclasses import replace
from itertools import count, takewhile
from pathlib import Path

import numpy as np

from mpi_parallel.device import Device
from mpi_parallel.exchange.registry import READERS, reader_of
from mpi_parallel.exchange.trained import Trained
from mpi_parallel.nn.mlp import MLP, weights_sha256
from mpi_parallel.options import InputError
from mpi_parallel.training.checkpoints.checkpoint import Checkpoint, read_checkpoint
from mpi_parallel.training.checkpoints.job import BEST, checkpoints


def load(path: str | Path) -> tuple[Trained, Checkpoint | None]:
    """The network, and the checkpoint where it came from one. Raises InputError."""
    found = find(Path(path))
    read = reader_of(found)
    if read is not None:
        trained = read(found)
        return replace(trained, facts=_origin(found, trained)), None
    checkpoint = read_checkpoint(found)
    return of_checkpoint(checkpoint), checkpoint


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
    return replace(trained, facts=_origin(checkpoint.path, trained) | {"step": str(checkpoint.facts["step"])})


def _origin(path: Path, trained: Trained) -> dict[str, str]:
    return {"checkpoint": str(path), "weights_sha256": weights_sha256(trained.weights())}


def network(trained: Trained, device: Device) -> MLP:
    """The network on a device."""
    model = MLP(device, trained.widths)
    for name, array in zip(names(trained), trained.weights(), strict=True):
        model.store.parameters[name].value[...] = device.to_device(np.ascontiguousarray(array))
    return model


def names(trained: Trained) -> list[str]:
    """W0, b0, W1, ... in the order of `Trained.weights`."""
    return [f"{kind}{number}" for number in range(len(trained.layers)) for kind in "Wb"]
