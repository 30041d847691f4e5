"""An HDF5 file of images and labels: what it holds, checked before anything is read.

Our layout is the groups train, validation and test, each with `images` and `labels` (see DESIGN and data/README.md). A
file with one pile of images, ours or foreign, is split 0.7 / 0.1 / 0.2.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from mpi_parallel.config.learning import DataOptions
from mpi_parallel.data_parallel import trust
from mpi_parallel.data_parallel.labels import class_names
from mpi_parallel.data_parallel.split import Split, native, open_file
from mpi_parallel.data_parallel.splits import stratified
from mpi_parallel.mpi.communicator import Communicator
from mpi_parallel.options import InputError

SPLITS = ("train", "validation", "test")
SHARES = (0.7, 0.1, 0.2)  # where the file has no splits


@dataclass(frozen=True)
class ImageSet:
    """The splits of a file and what it says of them."""

    path: str
    train: Split
    validation: Split | None
    test: Split | None
    shape: tuple[int, ...]  # of one image
    dtype: np.dtype[Any]
    classes: tuple[str, ...] | None
    mean: NDArray[np.float64] | None
    std: NDArray[np.float64] | None

    @property
    def features(self) -> int:
        """Numbers in one image."""
        return prod(self.shape)


def open_image_set(options: DataOptions, seed: int, comm: Communicator) -> ImageSet:
    """What `--data` holds. Every rank looks at the header; one reads the labels where a split has to be made.

    Raises InputError, naming file and dataset, for a file that cannot be opened or is not an image set.
    """
    if (options.images is None) != (options.labels is None):
        raise InputError("--images and --labels name the two datasets of a file of another layout: give both or none")
    with open_file(options.data) as file:
        named = [options.images, options.labels] if options.images and options.labels else trust.OUR_NAMES
        trust.check(file, named, options.allow_external)
        pairs = _pairs(file, options)
        splits = {name: _split(file, options.data, images, labels) for name, (images, labels) in pairs.items()}
        first = file[next(iter(splits.values())).images]
        shape, dtype = first.shape[1:], first.dtype.newbyteorder("=")
        for split in splits.values():
            _same_kind(file[split.images], first, options.data)
        attributes = _attributes(file, prod(shape))
        if (names := attributes[0]) is not None:
            splits = {name: replace(split, classes=len(names)) for name, split in splits.items()}
    if "all" in splits:
        if options.validation:
            raise InputError(
                f"--validation {options.validation}: {options.data} has no splits and is shared out "
                f"{' / '.join(map(str, SHARES))} as it is; convert --split makes other shares"
            )
        splits = _share_out(splits["all"], dict(zip(SPLITS, SHARES, strict=True)), seed, comm)
    elif options.validation and "validation" not in splits:
        held = options.validation
        splits |= _share_out(splits["train"], {"train": 1 - held, "validation": held}, seed, comm)
    train, validation, test = (splits.get(name) or None for name in SPLITS)
    if train is None:
        raise InputError(f"{options.data}: there are no training rows")
    return ImageSet(options.data, train, validation, test, shape, dtype, *attributes)


@dataclass(frozen=True)
class Selection:
    """Rows to be looked at by a trained network, and what the file says of them."""

    split: Split
    classes: tuple[str, ...] | None
    mean: NDArray[np.float64] | None
    std: NDArray[np.float64] | None


def open_labelled(options: DataOptions, name: str, seed: int, comm: Communicator) -> Selection:
    """The rows of a split, made as in training where the file has none, or "all" of a file without splits.

    Raises InputError, naming the splits that are there.
    """
    if name == "all":
        return open_images(options, None, labelled=True)
    data = open_image_set(options, seed, comm)
    split = getattr(data, name)
    if split is None:
        there = ", ".join(name for name in SPLITS if getattr(data, name) is not None)
        raise InputError(f"{options.data} has no {name} split; it has {there}: name one with --split")
    return Selection(split, data.classes, data.mean, data.std)


def open_images(options: DataOptions, name: str | None, labelled: bool = False) -> Selection:
    """Images with or without labels: of a split, or by default all of a file without splits, else its test split.

    Raises InputError where they are not there.
    """
    with open_file(options.data) as file:
        groups = [name] if name else ["", "test"]
        paths = [options.images] if options.images else [f"{group}/images".lstrip("/") for group in groups]
        trust.check(file, [*paths, *trust.OUR_NAMES], options.allow_external)
        images = next((path for path in paths if isinstance(file.get(path), h5py.Dataset)), None)
        if images is None or (labelled and images == "test/images"):
            raise InputError(
                f"{options.data}: there are no images at {' or '.join(paths)}; it has {_datasets(file)}: "
                "name them with --split or --images"
            )
        pixels = _pixels(file, options.data, images)
        chunk = pixels.chunks[0] if pixels.chunks else 1
        split = Split(options.data, images, None, len(pixels), pixels.shape[1:], pixels.dtype.newbyteorder("="), chunk)
        if labelled:
            split = _split(file, options.data, images, options.labels or "labels")
        classes, mean, std = _attributes(file, prod(split.shape))
    return Selection(split if classes is None else replace(split, classes=len(classes)), classes, mean, std)


def _pairs(file: h5py.File, options: DataOptions) -> dict[str, tuple[str, str]]:
    """The paths of images and labels of each split, or of "all" rows."""
    if options.images and options.labels:
        return {"all": (options.images, options.labels)}
    if "train" in file:
        return {name: (f"{name}/images", f"{name}/labels") for name in SPLITS if name in file}
    if "images" in file and "labels" in file:
        return {"all": ("images", "labels")}
    raise InputError(
        f"{options.data} has neither train/images nor images; it has {_datasets(file)}: "
        "name them with --images and --labels"
    )


def _datasets(file: h5py.File) -> str:
    names: list[str] = []
    file.visititems(lambda name, item: names.append(f"/{name}") if isinstance(item, h5py.Dataset) else None)
    return ", ".join(names[:8]) + (", …" if len(names) > 8 else "") if names else "no datasets"


def _split(file: h5py.File, path: str, images: str, labels: str) -> Split:
    """A split whose two datasets are there and fit each other."""
    for name in (images, labels):
        if not isinstance(file.get(name), h5py.Dataset):
            raise InputError(f"{path}: there is no dataset {name}; it has {_datasets(file)}")
    pixels, targets = _pixels(file, path, images), file[labels]
    if targets.ndim != 1 or targets.dtype.kind not in "ui":
        raise InputError(f"{path}: {labels} is {targets.dtype} {targets.shape}; labels are whole numbers (N,)")
    if len(pixels) != len(targets):
        raise InputError(f"{path}: {len(pixels)} rows in {images}, but {len(targets)} in {labels}")
    chunk = pixels.chunks[0] if pixels.chunks else 1
    return Split(path, images, labels, len(pixels), pixels.shape[1:], pixels.dtype.newbyteorder("="), chunk)


def _pixels(file: h5py.File, path: str, images: str) -> h5py.Dataset:
    """The dataset of images, whose type and shape are such."""
    pixels = file[images]
    if pixels.ndim < 2 or 0 in pixels.shape[1:] or pixels.dtype.kind not in "uif":
        raise InputError(
            f"{path}: {images} is {pixels.dtype} {pixels.shape}; images are numbers (N, H, W[, C]) or (N, features)"
        )
    return pixels


def _same_kind(images: h5py.Dataset, first: h5py.Dataset, path: str) -> None:
    """Raise InputError for splits that one network, or one standardisation, cannot serve."""
    if images.shape[1:] != first.shape[1:]:
        raise InputError(
            f"{path}: images of {images.name} are {images.shape[1:]}, those of {first.name} {first.shape[1:]}"
        )
    kinds = {dtype.kind if dtype.kind == "f" else dtype.str[1:] for dtype in (images.dtype, first.dtype)}
    if len(kinds) > 1:  # such as 0 to 255 beside 0 to 1
        raise InputError(
            f"{path}: images of {images.name} are {images.dtype}, those of {first.name} {first.dtype}, and one "
            "standardisation cannot serve both: convert makes splits alike"
        )


def _attributes(file: h5py.File, features: int) -> tuple[tuple[str, ...] | None, Any, Any]:
    """Class names, mean and std, each None where the file says nothing."""
    classes = class_names(file)
    if "mean" not in file.attrs or "std" not in file.attrs:
        return classes, None, None
    both = [_numbers(file.attrs[name]) for name in ("mean", "std")]
    for name, values in zip(("mean", "std"), both, strict=True):
        if values.size not in (1, features) or not np.isfinite(values).all() or (name == "std" and (values < 0).any()):
            raise InputError(
                f"{file.filename}: attribute {name} holds {values.size} numbers; expected 1 or {features}, all finite"
                f"{' and not negative' * (name == 'std')}"
            )
    return classes, both[0], both[1]


def _numbers(value: Any) -> NDArray[np.float64]:
    """An attribute as a flat array; nothing where it holds no numbers."""
    try:
        return np.asarray(value, np.float64).reshape(-1)
    except (TypeError, ValueError):
        return np.zeros(0)


def _share_out(pile: Split, shares: dict[str, float], seed: int, comm: Communicator) -> dict[str, Split]:
    """The pile's rows in stratified parts."""
    labels = None
    if comm.rank == 0:
        with open_file(pile.path) as file:
            labels = native(file[pile.labels][:])
    parts = stratified(comm.broadcast(labels), list(shares.values()), seed)
    return {name: replace(pile, rows=rows, length=len(rows)) for name, rows in zip(shares, parts, strict=True)}
