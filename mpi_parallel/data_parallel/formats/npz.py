"""NPZ, the archives of numpy.savez, compressed or not: read a piece at a time, nothing unpickled."""

from __future__ import annotations

import zipfile
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from mpi_parallel.data_parallel.formats.array_source import ArrayFile, ArraySource
from mpi_parallel.data_parallel.formats.idx import GZIP_RATIO
from mpi_parallel.data_parallel.formats.source import Source, SourceOptions
from mpi_parallel.options import InputError

PAIRS = (  # images, labels and the split that they are
    ("x_train", "y_train", "train"), ("x_val", "y_val", "validation"), ("x_valid", "y_valid", "validation"),
    ("x_test", "y_test", "test"), ("train_images", "train_labels", "train"), ("val_images", "val_labels", "validation"),
    ("test_images", "test_labels", "test"),
)  # fmt: skip
PILES = (("images", "labels"), ("x", "y"), ("X", "y"), ("X", "Y"), ("data", "target"), ("data", "labels"))


def npz_sources(path: Path, options: SourceOptions, split: str | None = None) -> list[Source]:
    """The sources of an archive: the arrays that the options name, or those of the usual names. Raises InputError."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = {name.removesuffix(".npy"): archive.getinfo(name) for name in archive.namelist()}
    except (zipfile.BadZipFile, OSError) as error:
        raise InputError(f"{path}: not an NPZ archive that can be read: {error}") from error
    return [
        ArraySource(path, _array(path, members[images]), _labels(path, members[labels], members[images]), part)
        for images, labels, part in _pairs(path, members, options, split)
    ]


def _pairs(
    path: Path, members: dict[str, zipfile.ZipInfo], options: SourceOptions, split: str | None
) -> list[tuple[str, str, str | None]]:
    if (options.images is None) != (options.labels is None):
        raise InputError("--images and --labels name the two arrays of an NPZ file: give both or none")
    if options.images and options.labels:
        pairs: list[tuple[str, str, str | None]] = [(options.images, options.labels, split)]
    else:
        known = [pair for pair in PAIRS if pair[0] in members and pair[1] in members]
        several = len(known) > 1
        pairs = [(images, labels, split or (part if several else None)) for images, labels, part in known]
        pairs = pairs or [(*pair, split) for pair in PILES if pair[0] in members and pair[1] in members][:1]
    missing = [name for pair in pairs for name in pair[:2] if name not in members]
    if missing or not pairs:
        lacks = f"no array {missing[0]}" if missing else "arrays that nobody knows the meaning of"
        raise InputError(
            f"{path} has {lacks}; it has {', '.join(list(members)[:8])}: name two with --images and --labels"
        )
    return pairs


def _array(path: Path, member: zipfile.ZipInfo) -> ArrayFile:
    """An array of the archive, its header read and compared with the sizes that the archive states."""
    name = f"{path}: {member.filename.removesuffix('.npy')}"
    try:
        with zipfile.ZipFile(path) as archive, archive.open(member) as stream:
            version = npy.read_magic(stream)
            read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
            shape, fortran, dtype = read(stream)
            offset = stream.tell()
    except (ValueError, OSError, zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        raise InputError(f"{name} cannot be read: {error}") from error
    if dtype.hasobject:
        raise InputError(f"{name} holds Python objects, which are programs to be run; save plain numbers")
    if fortran and len(shape) > 1:
        raise InputError(f"{name} is in Fortran order; save numpy.ascontiguousarray of it")
    size = offset + prod(shape) * dtype.itemsize
    if size != member.file_size or member.file_size > member.compress_size * GZIP_RATIO + offset:
        raise InputError(
            f"{name} promises {shape} of {dtype}, {size:,} bytes, but {member.file_size:,} are declared and "
            f"{member.compress_size:,} stored"
        )
    return ArrayFile(name, shape, dtype, offset, lambda: zipfile.ZipFile(path).open(member))


def _labels(path: Path, member: zipfile.ZipInfo, images: zipfile.ZipInfo) -> NDArray[Any]:
    array = _array(path, member)
    if array.dtype.kind not in "uifSU" or not array.shape or prod(array.shape) != array.shape[0]:
        raise InputError(f"{array.name} is {array.dtype} {array.shape}; labels are (N,), of one-hot ones their argmax")
    if array.shape[0] != _array(path, images).shape[0]:
        raise InputError(f"{path}: {_array(path, images).shape[0]} images, but {array.shape[0]} labels")
    with zipfile.ZipFile(path) as archive, archive.open(member) as stream:
        labels = npy.read_array(stream, allow_pickle=False).reshape(-1)
    if labels.dtype.kind == "S":
        return np.array([name.decode("utf-8", "surrogateescape") for name in labels.tolist()], object)
    return labels.astype(object) if labels.dtype.kind == "U" else labels
