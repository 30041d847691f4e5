"""What every reader of foreign files offers: numbered units of rows, read in any order by any rank.

A unit is a share of the source that is fixed by the source alone (a range of rows, of bytes, some pictures), so what
comes out of it does not depend on who reads it, nor on how many read.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mpi_parallel.mpi.partition import block
from mpi_parallel.options import option
from mpi_parallel.options.values import at_least

UNIT = 1 << 20  # bytes of a unit, more or less: small enough to share out evenly, and for the cache


@dataclass(frozen=True, kw_only=True)
class SourceOptions:
    """where the images and labels are in the source, and what becomes of them"""

    images: str | None = option(None, "dataset of an HDF5 file, or array of an NPZ file, with the images", name="PATH")
    labels: str | None = option(
        None, "the same for the labels; for CSV the label's column, by name or by position from 0 (-1 is the last)",
        name="PATH|COLUMN",
    )  # fmt: skip
    ignore: tuple[str, ...] = option(
        (), "columns of a CSV file that are neither label nor image, such as a number of the row: names or positions",
        name="COLUMN",
    )  # fmt: skip
    header: str = option("auto", "whether a CSV file starts with names", choices=("auto", "yes", "no"))
    delimiter: str = option("auto", "what parts the fields of a CSV file; auto takes , ; or a tab", name="C")
    shape: tuple[int, ...] = option(
        (), "shape H W or H W C of a CSV file's images; rows of pixel1, pixel2, ... are squares without it",
        check=at_least(1), name="N",
    )  # fmt: skip
    size: str | None = option(None, "resize pictures to this height and width", name="HxW")
    greyscale: bool = option(False, "make pictures grey")
    colour: bool = option(False, "make pictures coloured, also where the first one is grey")
    classes: tuple[str, ...] = option(
        (), "names of all classes, in order; other labels are unknown. By default, the names that occur, sorted"
    )
    allow_external: bool = option(
        False, "read also what an HDF5 file takes from other files, and believe the sizes that it declares"
    )


@dataclass
class Piece:
    """The rows of one unit: images (n, *shape), labels (n,) int64 or str objects, rows (n,) int64.

    Rows are counted from the first one of the unit, bad ones included; `bad` tells row and reason of those left out,
    `total` is the count of all.
    """

    images: NDArray[Any]
    labels: NDArray[Any]
    rows: NDArray[np.int64]
    total: int
    bad: list[tuple[int, str]] = field(default_factory=list)


class Source(Protocol):
    """A file, or several that belong together, of images of one shape and their labels."""

    path: Path
    split: str | None  # the split that all of it belongs to, None for a pile to be split
    shape: tuple[int, ...]  # of one image
    named: bool  # whether labels are names rather than numbers
    written: bool  # whether images are text, of which float64 is made and float32 may do
    names: tuple[str, ...]  # of the classes, where the source knows them and its labels are numbers
    units: int | None  # None for a stream, which has to be read from its start to know

    def pieces(self, mine: Units) -> Iterator[tuple[int, Piece]]:
        """Number and rows of each of the units that are mine, in their order."""

    def where(self, row: int) -> str:
        """What a person calls the row with this number in the whole source: "train.csv line 7"."""


class Units:
    """Which units of a source are read here: a range of them, or of a stream every size-th."""

    def __init__(self, range_: range | None, size: int = 1, rank: int = 0) -> None:
        self._range, self._size, self._rank = range_, size, rank

    def __contains__(self, unit: int) -> bool:
        return unit % self._size == self._rank if self._range is None else unit in self._range

    def __iter__(self) -> Iterator[int]:
        assert self._range is not None, "nobody knows how many units a stream has"
        return iter(self._range)


def share(sources: list[Source], size: int, rank: int) -> list[Units]:
    """The units of each source that a rank reads: as many for each rank over all sources together."""
    mine, first = block(sum(source.units or 0 for source in sources), size, rank), 0
    shares = []
    for number, source in enumerate(sources):
        if source.units is None:
            shares.append(Units(None, size, (rank - number) % size))
        else:
            shares.append(Units(range(max(mine.start - first, 0), min(mine.stop - first, source.units))))
            first += source.units
    return shares
