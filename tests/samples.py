"""Small image sets, in memory and in HDF5 files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

SHAPE = (3, 4)  # of one image
CLASSES = 3


def images_and_labels(n: int, seed: int = 0, dtype: Any = np.uint8) -> tuple[NDArray[Any], NDArray[np.uint8]]:
    """Images (n, *SHAPE) of values 0..255 that a network can learn to tell apart, and labels (n,) in no order."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, n).astype(np.uint8)
    patterns = np.random.default_rng(0).integers(40, 216, (CLASSES, *SHAPE))
    return np.clip(patterns[labels] + rng.normal(0, 60, (n, *SHAPE)), 0, 255).astype(dtype), labels


def write_image_set(
    path: Path,
    train: int = 60,
    validation: int | None = None,
    test: int | None = 20,
    dtype: Any = np.uint8,
    attributes: Mapping[str, Any] | None = None,
) -> Path:
    """A file in our layout with that many rows in each split; None leaves a split out."""
    with h5py.File(path, "w") as file:
        for seed, (name, rows) in enumerate({"train": train, "validation": validation, "test": test}.items()):
            if rows is not None:
                file[f"{name}/images"], file[f"{name}/labels"] = images_and_labels(rows, seed, dtype)
        file.attrs.update(attributes or {})
    return path


def spoil(path: Path, *rows: int) -> Path:
    """Make its images float32, and these rows of train such that they are finite, but not when standardised."""
    with h5py.File(path, "a") as file:
        for split in file.values():
            images = split["images"][...].astype(np.float32) / 255
            if split.name == "/train":
                images[list(rows)] = 3e38
            del split["images"]
            split["images"] = images
        file.attrs["mean"], file.attrs["std"] = np.zeros(SHAPE), np.full(SHAPE, 1e-3)
    return path


def write_pile(path: Path, rows: int = 60, images: str = "images", labels: str = "labels") -> Path:
    """A file with one pile of rows, without splits, under these paths."""
    with h5py.File(path, "w") as file:
        file[images], file[labels] = images_and_labels(rows)
    return path
