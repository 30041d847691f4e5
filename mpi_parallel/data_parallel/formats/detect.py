"""Which reader a source wants: its content tells, not its name."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Sequence
from pathlib import Path

import h5py

from mpi_parallel.data_parallel.formats.array_source import idx_source
from mpi_parallel.data_parallel.formats.csv_table import CsvSource
from mpi_parallel.data_parallel.formats.hdf5 import hdf5_sources
from mpi_parallel.data_parallel.formats.npz import npz_sources
from mpi_parallel.data_parallel.formats.pictures import picture_sources
from mpi_parallel.data_parallel.formats.source import Source, SourceOptions
from mpi_parallel.options import InputError

ZIP, GZIP = b"PK\x03\x04", b"\x1f\x8b"
TABLE, PICTURES, ARRAYS = (
    {"csv": "CSV files"},
    {"pictures": "folders of pictures"},
    {"npz": "NPZ", "hdf5": "HDF5 files"},
)
USERS = {  # of options: who reads them, and what a person calls those
    "images": ARRAYS, "labels": TABLE | ARRAYS, "ignore": TABLE, "header": TABLE, "delimiter": TABLE, "shape": TABLE,
    "size": PICTURES, "greyscale": PICTURES, "colour": PICTURES,
}  # fmt: skip
BY_NAME = {".h5": "hdf5", ".hdf5": "hdf5", ".npz": "npz"}  # of damaged ones, whose content does not tell


def open_sources(names: Sequence[str], options: SourceOptions, split: str | None = None) -> list[Source]:
    """Readers of the sources, in their order; IDX files are taken in pairs. Raises InputError for what nobody reads."""
    sources: list[Source] = []
    idx: list[tuple[Path, int]] = []
    for name in names:
        path = Path(name)
        kind = _kind(path)
        if kind == "idx":
            idx.append((path, _dimensions(path)))
        else:
            sources += _READERS[kind](path, options, split)
    return sources + _idx_pairs(idx, split)


def refuse_unused(names: Sequence[str], options: SourceOptions) -> None:
    """Raise InputError for an option that none of these sources reads: it would be passed over in silence."""
    kinds, default = {_kind(Path(name)) for name in names}, SourceOptions()
    for option, users in USERS.items():
        if getattr(options, option) != getattr(default, option) and not kinds & users.keys():
            raise InputError(f"--{option} is for {' and '.join(users.values())}, and no source is one")


def _csv(path: Path, options: SourceOptions, split: str | None) -> list[Source]:
    return [CsvSource(path, options, split)]


_READERS = {"csv": _csv, "pictures": picture_sources, "npz": npz_sources, "hdf5": hdf5_sources}


def _kind(path: Path) -> str:
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{path}: no such file or folder") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    if path.is_dir():
        return "pictures"
    if not path.is_file():
        raise InputError(f"{path}: not a regular file")
    start = _start(path)
    if not start:
        raise InputError(f"{path}: is empty")
    if h5py.is_hdf5(path):  # anywhere that HDF5 looks for its mark: MATLAB puts a text before it
        return "hdf5"
    if start.startswith(ZIP):
        return "npz"
    return BY_NAME.get(path.suffix.lower()) or ("idx" if start.startswith(b"\0\0") else "csv")


def _start(path: Path) -> bytes:
    """The first bytes, unpacked."""
    try:
        with path.open("rb") as file:
            start = file.read(8)
        if start.startswith(GZIP):
            with gzip.open(path) as unpacked:
                return unpacked.read(8)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: cannot be read: {error}") from error
    return start


def _dimensions(path: Path) -> int:
    start = _start(path)
    return start[3] if len(start) > 3 else 0


def _idx_pairs(files: list[tuple[Path, int]], split: str | None) -> list[Source]:
    """Images with the labels in the same place of their order; files called t10k or test are the test split."""
    images = [path for path, dimensions in files if dimensions != 1]
    labels = [path for path, dimensions in files if dimensions == 1]
    if len(images) != len(labels):
        raise InputError(
            f"IDX files go in pairs: {len(images)} with images ({', '.join(map(str, images)) or 'none'}), "
            f"{len(labels)} with labels ({', '.join(map(str, labels)) or 'none'})"
        )
    return [
        idx_source(picture, label, split or _split_of(picture)) for picture, label in zip(images, labels, strict=True)
    ]


def _split_of(path: Path) -> str | None:
    return "test" if path.name.startswith(("t10k", "test")) else None
