"""HDF5 files from anywhere: what is to be read is looked at first, as HDF5 itself believes all that a file says.

A file of a kilobyte may show other files of the machine as its own, by external links, external storage or virtual
sources, and may promise more than any memory holds. h5py has no switch against that.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import prod
from pathlib import Path
from typing import Any

import h5py

from mpi_parallel.options import InputError

OUR_NAMES = [f"{group}{name}" for group in ("train/", "validation/", "test/", "") for name in ("images", "labels")]
EXPANSION = 250  # times that stored images may grow when they are read; real ones stay far below
HARMLESS = 1 << 26  # bytes, up to which they may grow as they like
LARGEST_CHUNK = 1 << 30  # bytes that HDF5 unpacks at once, however little of them is wanted
DEEPEST = 8  # links that lead to links, virtual sources that are virtual
ALLOW = "--allow-external reads it all the same"
KNOWN = {32001: "blosc", 32004: "lz4", 32008: "bitshuffle", 32013: "zfp", 32015: "zstd", 32026: "blosc2"}


def check(file: h5py.File, names: Iterable[str], trusting: bool = False) -> None:
    """Raise InputError, naming file and dataset, for what is not to be read; names that are not there are passed over.

    `trusting` accepts data in other files and promises of any size. What cannot be read, a filter that is not installed
    or a part that is not there, is refused in any case.
    """
    for name in names:
        item = _resolve(file, name, trusting, DEEPEST)
        if isinstance(item, h5py.Dataset):
            check_dataset(item, trusting)


def check_dataset(dataset: h5py.Dataset, trusting: bool = False, depth: int = DEEPEST) -> int:
    """The same for one dataset; bytes that it takes on disk, those of its virtual sources included."""
    where = f"{dataset.file.filename}: {dataset.name}"
    if dataset.external and not trusting:
        raise InputError(f"{where} is stored in another file, {dataset.external[0][0]}; {ALLOW}")
    _check_filters(dataset, where)
    stored = dataset.id.get_storage_size()
    if dataset.is_virtual:
        needs = _distinct(dataset).items()
        stored = sum(_check_source(dataset, source, *need, trusting, depth) for source, need in needs)
    if not trusting and not dataset.external:
        _check_size(dataset, stored, where)
    return int(stored)


def _resolve(group: h5py.Group, name: str, trusting: bool, depth: int) -> Any:
    """The object of this name, reached without leaving the file; None where there is none."""
    if depth == 0:
        raise InputError(f"{group.file.filename}: {name} is a link to a link to a link, and so on")
    item: Any = group.file if name.startswith("/") else group
    for part in name.strip("/").split("/"):
        link = item.get(part, getlink=True) if isinstance(item, h5py.Group) else None
        if link is None:
            return None
        if isinstance(link, h5py.ExternalLink) and not trusting:
            raise InputError(
                f"{group.file.filename}: {name} is a link to another file, {link.filename} ({link.path}); {ALLOW}"
            )
        inside = isinstance(link, h5py.SoftLink)
        item = _resolve(item, link.path, trusting, depth - 1) if inside else item.get(part)
    return item


def _check_filters(dataset: h5py.Dataset, where: str) -> None:
    properties = dataset.id.get_create_plist()
    for place in range(properties.get_nfilters()):
        code, name = (properties.get_filter(place)[field] for field in (0, 3))
        if not h5py.h5z.filter_avail(code):
            title = KNOWN.get(code) or name.decode(errors="replace") or "a filter"
            raise InputError(
                f"{where} is packed with {title} (HDF5 filter {code}), which is not installed here; "
                "install hdf5plugin and set HDF5_PLUGIN_PATH to its plugins folder"
            )


def _check_size(dataset: h5py.Dataset, stored: int, where: str) -> None:
    promised = prod(dataset.shape or ()) * dataset.dtype.itemsize
    if promised > HARMLESS and promised > EXPANSION * stored:
        raise InputError(
            f"{where} promises {dataset.shape} of {dataset.dtype}, {promised:,} bytes, but {stored:,} are stored; "
            "--allow-external believes it"
        )
    chunk = prod(dataset.chunks or ()) * dataset.dtype.itemsize
    if dataset.chunks and chunk > LARGEST_CHUNK:
        raise InputError(f"{where} has chunks of {dataset.chunks}, {chunk:,} bytes each; --allow-external reads them")


def _distinct(dataset: h5py.Dataset) -> dict[tuple[str, str], tuple[tuple[int, ...], int]]:
    """Of each virtual source, by file and dataset, the least shape and size that it has to have."""
    sources: dict[tuple[str, str], tuple[tuple[int, ...], int]] = {}
    for source in dataset.virtual_sources():
        where = source.file_name, source.dset_name
        try:
            points = source.vspace.get_select_npoints()
        except RuntimeError:  # as many files, or rows, as there happen to be
            raise InputError(
                f"{dataset.file.filename}: {dataset.name} takes rows without end from {where[0]}: {where[1]}, and how "
                "many there are nobody can tell; make one file of them with h5repack"
            ) from None
        shape, size = sources.get(where, ((), 0))
        if source.src_space.get_select_type() != h5py.h5s.SEL_ALL:  # where all is taken, just its size is known
            last = source.src_space.get_select_bounds()[1]
            shape = tuple(max(have, place + 1) for have, place in zip(shape or last, last, strict=True))
        sources[where] = shape, max(size, points)
    return sources


def _check_source(
    dataset: h5py.Dataset, source: tuple[str, str], shape: tuple[int, ...], size: int, trusting: bool, depth: int
) -> int:
    """Bytes stored of a virtual source, which has to lie beside the file and be what the file says."""
    where = f"{dataset.file.filename}: {dataset.name}"
    if depth == 0:
        raise InputError(f"{where} is virtual, and so are its sources, and so on")
    path = Path(dataset.file.filename)
    if source[0] != ".":
        path = _beside(path, source[0], where, trusting)
    with _open(path, where) as file:
        found = _resolve(file, source[1], trusting, DEEPEST)
        if not isinstance(found, h5py.Dataset):
            raise InputError(f"{where} takes rows from {path}: {source[1]}, which is not there")
        fits = found.size >= size and (not shape or len(shape) == found.ndim)
        if not fits or any(have < want for have, want in zip(found.shape, shape, strict=False)):
            raise InputError(
                f"{where} takes {size} numbers of {shape or 'any shape'} from {path}: {source[1]}, "
                f"which is {found.shape}"
            )
        return check_dataset(found, trusting, depth - 1)


def _open(path: Path, where: str) -> h5py.File:
    try:
        return h5py.File(path, "r", locking=False)
    except OSError as error:
        raise InputError(f"{where} takes rows from {path}, which is no HDF5 file or damaged ({error})") from None


def _beside(path: Path, name: str, where: str, trusting: bool) -> Path:
    """The file of this name in the folder of the file that names it."""
    folders = [path.parent, path.resolve().parent]
    found = next((folder / name for folder in folders if (folder / name).is_file()), None)
    within = Path(name).name == name and (found is None or found.resolve().parent in {f.resolve() for f in folders})
    if not within and not trusting:
        raise InputError(f"{where} takes rows from {name}, which is not beside the file; {ALLOW}")
    if found is None:
        raise InputError(f"{where} takes rows from {name}, which is not there; they would read as zeros")
    return found
