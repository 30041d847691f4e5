"""What a file holds and what reading it costs, in lines for people and in numbers for programs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import isqrt, prod
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from mpi_parallel.data_parallel.dataset import SPLITS, ImageSet
from mpi_parallel.data_parallel.split import MOST_CLASSES, Split, open_file
from mpi_parallel.data_parallel.streaming import IN_ORDER_WINDOW
from mpi_parallel.data_parallel.windows import cut_of
from mpi_parallel.data_parallel.writing import unfinished_name
from mpi_parallel.mpi.partition import block, dealt
from mpi_parallel.options import InputError

LABELS_AT_ONCE = 1 << 20
NAMES_SHOWN = 20  # classes that are told one by one
SHEET_COLUMNS, SHEET_ROWS, SHEET_SIDE = 10, 20, 48


@dataclass(frozen=True)
class EpochCost:
    """What one epoch of streaming reads, in whole chunks of the file, unpacked."""

    reads: int  # requests to HDF5
    bytes: int
    twice: int  # of these, read and unpacked before in the same epoch


def present(data: ImageSet) -> dict[str, Split]:
    """The splits that are there, by name."""
    return {name: split for name in SPLITS if (split := getattr(data, name)) is not None}


def storage(path: str, dataset: str) -> str:
    """How a dataset lies in the file: contiguous, in chunks and with which filters, or in which other files."""
    with open_file(path) as file:
        images = file[dataset]
        size, stored = images.size * images.dtype.itemsize, images.id.get_storage_size()
        if images.is_virtual:
            return f"virtual, in {len({source.file_name for source in images.virtual_sources()})} files"
        if images.external:
            return f"in another file, {images.external[0][0]}"
        if images.chunks is None:
            return f"contiguous, {stored:,} bytes"
        chunk = (
            f"chunks of {' x '.join(map(str, images.chunks))} ({prod(images.chunks) * images.dtype.itemsize:,} bytes)"
        )
        packed = f"; {stored:,} bytes for {size:,} ({size / max(1, stored):.2f}:1)" if _filters(images) else ""
        return f"{chunk}, {', '.join(_filters(images)) or 'no filter'}{packed}"


def _filters(images: h5py.Dataset) -> list[str]:
    properties = images.id.get_create_plist()
    return [properties.get_filter(place)[3].decode(errors="replace") for place in range(properties.get_nfilters())]


def balance(split: Split, classes: int) -> NDArray[np.int64]:
    """Rows of each class (classes,); as many classes as there are labels where the number is not known (0)."""
    counts = np.zeros(classes, np.int64)
    with open_file(split.path) as file:
        for start in range(0, len(split), LABELS_AT_ONCE):
            part = range(start, min(start + LABELS_AT_ONCE, len(split)))
            labels = file[split.labels][split.row(part[0]) : split.row(part[-1]) + 1]
            if split.rows is not None:
                labels = labels[split.rows[part.start : part.stop] - split.row(part[0])]
            lowest, highest = int(labels.min()), int(labels.max())
            if lowest < 0 or highest >= MOST_CLASSES:
                wrong = lowest if lowest < 0 else highest
                raise InputError(
                    f"{split.path}: {split.labels} has a label of {wrong}; labels are 0 to {MOST_CLASSES - 1}"
                )
            more = np.bincount(labels.astype(np.int64), minlength=len(counts))
            more[: len(counts)] += counts
            counts = more
    return counts


def epoch_cost(split: Split, parts: Sequence[range], window: int) -> EpochCost:
    """What streaming reads of a split in an epoch: its parts, which follow one another, in blocks of windows."""
    cut = cut_of(split, max(1, window))
    touched = reads = distinct = reached = 0
    for part in parts:
        for rows in split.blocks(part, cut.rows):
            first, last = split.row(rows[0]) // split.chunk, split.row(rows[-1]) // split.chunk
            touched, reads = touched + last + 1 - first, reads + 1
            distinct += last + 1 - max(first, reached)
            reached = last + 1
    size = split.chunk * split.dtype.itemsize * split.features
    return EpochCost(reads, touched * size, (touched - distinct) * size)


def _epoch(name: str, split: Split, shards: int, window: int, ranks: int) -> str:
    """The cost in words; training reads shards, evaluation a block for each rank."""
    training = name == "train"
    parts = [block(len(split), shards if training else ranks, part) for part in range(shards if training else ranks)]
    cost = epoch_cost(split, parts, window // shards if training else IN_ORDER_WINDOW)
    share = f"{cost.twice:,} of these twice ({cost.twice / cost.bytes:.1%})" if cost.twice else "none of these twice"
    most = max(sum(len(parts[part]) for part in dealt(len(parts), ranks, rank)) for rank in range(ranks))
    return (
        f"{'epoch':<11} of {name}, streamed: {cost.reads:,} reads, {cost.bytes:,} bytes, {share}; "
        f"up to {most:,} rows for each of {ranks} rank{'s' * (ranks > 1)}"
    )


def lines(data: ImageSet, shards: int, window: int, ranks: int) -> Iterator[str]:
    """All of it, for people."""
    shape = " x ".join(map(str, data.shape))
    yield f"{data.path}: images of {shape} {data.dtype}, {data.features:,} features"
    if len(data.shape) == 3 and data.shape[0] in (1, 3) and min(data.shape[1:]) > 4:
        yield "            its colours seem to come first; --shift, --flip and --erase want them last (H, W, C)"
    classes = len(data.classes or ())
    for name, split in present(data).items():
        drawn = "" if split.rows is None else f", rows drawn from {split.images}"
        yield f"{name:<11} {len(split):,} rows{drawn}; {storage(split.path, split.images)}"
        yield f"            classes: {_told(balance(split, classes), data.classes)}"
    yield f"{'moments':<11} {_moments(data)}"
    for name, split in present(data).items():
        yield _epoch(name, split, shards, window, ranks)


def _told(counts: NDArray[np.int64], names: tuple[str, ...] | None) -> str:
    if len(counts) > NAMES_SHOWN:
        return f"{len(counts)} classes of {counts.min():,} to {counts.max():,} rows, {counts.mean():,.1f} on average"
    known = names or tuple(map(str, range(len(counts))))
    called = (*known, *(f"{label} (which has no name)" for label in range(len(known), len(counts))))
    return ", ".join(f"{name} {count:,}" for name, count in zip(called, counts.tolist(), strict=False))


def _moments(data: ImageSet) -> str:
    if data.mean is None or data.std is None:
        return "none in the file: a run computes them at its start"
    if data.mean.size == 1:
        return f"mean {data.mean[0]:.6g}, deviation {data.std[0]:.6g}"
    return f"of each feature: means {data.mean.min():.6g} to {data.mean.max():.6g}"


def contact_sheet(data: ImageSet, path: Path) -> None:
    """Draw the first images of each class as one picture, a row a class.

    Raises InputError without Pillow, and where the picture cannot be written.
    """
    try:
        from PIL import Image  # here, because only this needs it
    except ImportError:
        raise InputError("contact sheets are drawn with Pillow: pip install 'mpi_parallel[pictures]'") from None
    rows = _first_of_each(data.train)
    sheet = Image.new("RGB", (SHEET_COLUMNS * SHEET_SIDE, max(1, len(rows)) * SHEET_SIDE))
    for line, places in enumerate(rows):
        for column, place in enumerate(places):
            pixels = _drawable(data.train.read(range(place, place + 1))[0][0], data.shape)
            picture = Image.fromarray(pixels).resize((SHEET_SIDE - 2, SHEET_SIDE - 2))
            sheet.paste(picture.convert("RGB"), (column * SHEET_SIDE + 1, line * SHEET_SIDE + 1))
    unfinished, ending = unfinished_name(path), path.suffix.lower()
    try:
        sheet.save(unfinished, Image.registered_extensions().get(ending, ending))
        unfinished.replace(path)
    except (OSError, ValueError, KeyError) as error:
        with suppress(OSError):
            unfinished.unlink()
        raise InputError(f"--contact-sheet {path}: cannot be written: {error}; name a .png or .jpg") from None


def _first_of_each(split: Split) -> list[list[int]]:
    """Places of the first SHEET_COLUMNS rows of each class, of SHEET_ROWS classes at most."""
    part = range(min(len(split), LABELS_AT_ONCE))
    with open_file(split.path) as file:
        rows = np.array([split.row(place) for place in part])
        labels = file[split.labels][rows[0] : rows[-1] + 1][rows - rows[0]]
    return [np.flatnonzero(labels == label)[:SHEET_COLUMNS].tolist() for label in np.unique(labels)[:SHEET_ROWS]]


def _drawable(row: NDArray[Any], shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """An image as grey values or colours of 0 to 255."""
    if len(shape) == 1:
        side = isqrt(shape[0])
        shape = (side, side) if side * side == shape[0] else (1, shape[0])
    pixels = row.reshape(shape)
    if len(shape) == 3 and shape[2] != 3:
        pixels = pixels[:, :, 0]
    if pixels.dtype == np.uint8:
        return pixels
    low, high = float(pixels.min()), float(pixels.max())
    scaled: NDArray[np.uint8] = (255 * (pixels.astype(np.float64) - low) / (high - low or 1)).astype(np.uint8)
    return scaled
