"""safetensors: the weights by the names and in the shapes of PyTorch's `Sequential(Linear, ReLU, Linear, ...)`."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpi_parallel.exchange.trained import Dense, Trained, chained
from mpi_parallel.options import InputError

NEEDED = "safetensors needs a package: pip install 'mpi_parallel[export]'"


def write(trained: Trained, path: Path) -> None:
    """Write `0.weight` (out, in), `0.bias` (out,), `2.weight`, ..., and `mean` and `std` (features,) float32.

    Raises InputError where the package safetensors is not installed.
    """
    try:
        from safetensors.numpy import save_file  # here, because only who exports needs it
    except ImportError:
        raise InputError(f"--to {path}: {NEEDED}") from None
    tensors: dict[str, NDArray[Any]] = {}
    for number, (W_IO, b_O) in enumerate(trained.layers):
        tensors |= {f"{2 * number}.weight": np.ascontiguousarray(W_IO.T), f"{2 * number}.bias": b_O}
    if trained.mean is not None and trained.std is not None:
        tensors |= {"mean": trained.mean.astype(np.float32), "std": trained.std.astype(np.float32)}
    facts = {"format": "pt", "shape": json.dumps(trained.image_shape), **trained.facts}
    save_file(tensors, path, {**facts, **({"classes": json.dumps(trained.classes)} if trained.classes else {})})


def read(path: Path) -> Trained:
    """The dense layers of a file, ours or another program's: pairs of `….weight` (out, in) and `….bias` (out,).

    Layers come in the order of the numbers in their names. Raises InputError for anything else.
    """
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError:
        raise InputError(f"{path}: {NEEDED}") from None
    try:
        with safe_open(path, "numpy") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it is no dict
            facts = file.metadata() or {}
        shape, classes = (json.loads(facts.get(name, "null")) for name in ("shape", "classes"))
    except (OSError, SafetensorError, TypeError, ValueError) as error:  # TypeError: a type that NumPy does not have
        raise InputError(f"{path}: not a safetensors file that can be read ({error})") from None
    mean, std = (_flat(tensors.pop(name, None)) for name in ("mean", "std"))
    matrices = sorted((name for name in tensors if tensors[name].ndim == 2), key=natural)
    if others := tensors.keys() - set(matrices) - {_stem(name) + "bias" for name in matrices}:
        raise InputError(f"{path}: {', '.join(sorted(others)[:4])}: only dense layers can be taken")
    layers = [_layer(tensors, name, path) for name in matrices]
    return Trained(
        chained(_either_way(layers), str(path)), mean, std, tuple(shape) if shape else None,
        tuple(classes) if classes else None,
    )  # fmt: skip


def _layer(tensors: dict[str, NDArray[Any]], name: str, path: Path) -> Dense:
    """W (in, out), as PyTorch keeps it transposed, and b beside it."""
    stem = _stem(name)
    bias = tensors.get(stem + "bias")
    if stem == name or bias is None or bias.ndim != 1:
        raise InputError(f"{path}: {name} {tensors[name].shape} has no {stem}bias: it is no dense layer")
    return tensors[name].T, bias


def _stem(name: str) -> str:
    return name.removesuffix("weight").removesuffix("kernel")


def _either_way(layers: list[Dense]) -> list[Dense]:
    """The layers, turned round where only that makes their weights fit their biases."""
    if all(W_IO.shape[1:] == b_O.shape for W_IO, b_O in layers):
        return layers
    return [(W_OI.T, b_O) for W_OI, b_O in layers]


def _flat(values: NDArray[Any] | None) -> NDArray[np.float64] | None:
    return None if values is None else np.asarray(values, np.float64).reshape(-1)


def natural(name: str) -> list[tuple[int, str]]:
    """A key that sorts layer 10 behind layer 9, and dense before dense_1."""
    return [(int(part) if part.isdigit() else -1, part) for part in re.split(r"(\d+)", name)]
