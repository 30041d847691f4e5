"""Keras: the `.weights.h5` of a Sequential of Dense layers, written and read without Keras."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from mpi_parallel.exchange.safetensors_file import natural
from mpi_parallel.exchange.trained import Dense, Trained, chained
from mpi_parallel.options import InputError

OURS = "mpi_parallel"  # a group that Keras passes over


def write(trained: Trained, path: Path) -> None:
    """Write what `Sequential.load_weights` of Keras 3 reads, and our standardisation besides.

    Keras finds layers by the names of their classes, numbered: dense, dense_1, dense_2, whatever their own names are.
    """
    with h5py.File(path, "w") as file:
        file.create_group("vars").attrs["name"] = "sequential"
        for number, arrays in enumerate(trained.layers):
            name = f"dense_{number}" if number else "dense"
            held = file.create_group(f"layers/{name}/vars")
            held.attrs["name"] = name
            for place, array in enumerate(arrays):
                held[str(place)] = array
        ours = file.create_group(OURS)
        ours.attrs.update(trained.facts)
        if trained.shape:
            ours.attrs["shape"] = trained.shape
        if trained.classes:
            ours.attrs["classes"] = trained.classes
        if trained.mean is not None and trained.std is not None:
            ours["mean"], ours["std"] = trained.mean, trained.std


def read(path: Path) -> Trained:
    """The dense layers of a `.weights.h5` or `.keras` file of Keras 3, or of an `.h5` file of weights of Keras 2.

    Raises InputError where there is anything else in it that has weights.
    """
    try:
        with _opened(path) as file:
            return _read(file, path)
    except (OSError, zipfile.BadZipFile, KeyError) as error:
        raise InputError(f"{path}: not a file of Keras weights that can be read ({error})") from None


def _opened(path: Path) -> h5py.File:
    if path.suffix != ".keras":
        return h5py.File(path, "r", locking=False)
    with zipfile.ZipFile(path) as archive:
        return h5py.File(io.BytesIO(archive.read("model.weights.h5")), "r")


def _read(file: h5py.File, path: Path) -> Trained:
    groups: dict[str, list[h5py.Dataset]] = {}

    def visit(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and name.split("/")[0] not in (OURS, "optimizer"):
            groups.setdefault(name.rpartition("/")[0], []).append(item)

    file.visititems(visit)
    layers = [_layer(name, groups[name], path) for name in sorted(groups, key=natural)]
    ours = file.get(OURS)
    if ours is None:
        return Trained(chained(layers, str(path)))
    mean, std = (ours[name][:] if name in ours else None for name in ("mean", "std"))
    shape, classes = (ours.attrs.get(name) for name in ("shape", "classes"))
    return Trained(
        chained(layers, str(path)), mean, std, None if shape is None else tuple(map(int, shape)),
        None if classes is None else tuple(map(str, classes)),
    )  # fmt: skip


def _layer(name: str, held: list[h5py.Dataset], path: Path) -> Dense:
    """Kernel (in, out) and bias (out,), in whichever order."""
    arrays = sorted((np.asarray(item) for item in held), key=lambda array: -array.ndim)
    if [array.ndim for array in arrays] != [2, 1]:
        shapes = ", ".join(str(array.shape) for array in arrays)
        raise InputError(f"{path}: {name} holds arrays {shapes}: only Dense layers with a bias can be taken")
    return arrays[0], arrays[1]
