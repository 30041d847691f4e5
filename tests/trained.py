"""A small trained network in a file, for what comes after training."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpi_parallel.data_parallel import evaluation, replica
from mpi_parallel.exchange import registry
from mpi_parallel.exchange.trained import Trained, chained
from mpi_parallel.training import applied
from tests.samples import CLASSES, SHAPE

FEATURES = int(np.prod(SHAPE))
NAMES = ("ant", "bee", "owl")


def some_network(widths: tuple[int, ...] = (FEATURES, 9, CLASSES), seed: int = 1) -> Trained:
    """Random weights."""
    rng = np.random.default_rng(seed)
    layers = [(rng.normal(0, 0.4, (i, o)), rng.normal(0, 0.4, o)) for i, o in pairwise(widths)]
    mean, std = rng.uniform(50, 150, widths[0]), rng.uniform(20, 60, widths[0])
    return Trained(chained(layers, "test"), mean.astype("f4"), std.astype("f4"), SHAPE, NAMES)


def write_network(path: Path, network: Trained | None = None) -> Path:
    """A file of its weights."""
    registry.write(network or some_network(), path)
    return path


def logits_of(network: Trained, images: NDArray[Any]) -> NDArray[np.float64]:
    """Of raw pixels, in float64."""
    x = images.reshape(len(images), -1).astype(np.float64)
    if network.mean is not None:
        x = (x - network.mean) / network.std
    for number, (W, b) in enumerate(network.layers):
        x = x @ W.astype(np.float64) + b
        x = np.maximum(x, 0) if number < len(network.layers) - 1 else x
    return x


def evaluate_by(monkeypatch: Any, rows: int) -> None:
    """Have so few rows in a block that is evaluated together, and dealt to a rank, that several ranks have some."""
    for module in (evaluation, replica, applied):
        monkeypatch.setattr(module, "EVALUATION_ROWS", rows)
