"""The first half of a conversion: every rank reads its units, leaves out bad rows and keeps the rest for a while.

What is good is known only once all has been read, and where a row goes only once all labels are known. So rows wait: in
memory up to a budget, beyond it in a file without a name, which vanishes with the process however that ends.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from mpi_parallel.data_parallel.formats.source import Piece, Source, share
from mpi_parallel.data_parallel.labels import Labels
from mpi_parallel.data_parallel.rounding import Rounding
from mpi_parallel.mpi.communicator import Communicator
from mpi_parallel.options import InputError

BUDGET = 1 << 30  # bytes of images that a rank keeps in memory at most


@dataclass
class Batch:
    """The good rows of a unit, where they wait: codes (n,) int64 of their labels, rows (n,) int64 in the source."""

    source: int
    unit: int
    codes: NDArray[np.int64]
    rows: NDArray[np.int64]
    dtype: np.dtype[Any]
    images: NDArray[Any] | None
    offset: int


@dataclass(frozen=True)
class Bad:
    """A row that was left out."""

    source: int
    row: int
    reason: str


class Store:
    """Images that wait to be written; `folder` has the room for those that memory has not."""

    def __init__(self, folder: Path, budget: int) -> None:
        self._folder, self._left = folder, budget
        self._file: IO[bytes] | None = None
        self._end = 0

    def put(self, images: NDArray[Any]) -> tuple[NDArray[Any] | None, int]:
        """The images themselves, or None and their offset in the file."""
        self._left -= images.nbytes
        if self._left >= 0:
            return images, 0
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115
            self._file.write(np.ascontiguousarray(images).data)
        except OSError as error:
            raise InputError(f"{self._folder}: rows cannot wait there until they are written: {error}") from error
        offset, self._end = self._end, self._end + images.nbytes
        return None, offset

    def get(self, batch: Batch, shape: tuple[int, ...]) -> NDArray[Any]:
        """The images (n, *shape) of a batch."""
        if batch.images is not None:
            return batch.images
        assert self._file is not None
        self._file.seek(batch.offset)
        count = len(batch.codes)
        images = (
            np.fromfile(self._file, batch.dtype, count * int(np.prod(shape))) if count else np.empty(0, batch.dtype)
        )
        return images.reshape(count, *shape)

    def close(self) -> None:
        """Give the memory and the disk back."""
        if self._file is not None:
            self._file.close()


class Intake:
    """What all ranks together have read.

    `units` (U, 4) int64 has a line for every unit with (source, unit, good rows, all rows), in order; a rank's own
    `batches` are some of them. `labels` (N,) int32 are those of all good rows, in the sources' order.
    """

    def __init__(
        self, sources: list[Source], labels: Labels, store: Store, comm: Communicator, dtype: np.dtype[Any] | None
    ) -> None:
        """`dtype` is that of the file, where it is not to be the smallest that holds all."""
        self.sources, self.comm, self._asked = sources, comm, dtype
        self.shape = sources[0].shape
        self.store = store
        self.batches: list[Batch] = []
        self._labels, self._totals = labels, dict[tuple[int, int], int]()
        self._rounding = Rounding(prod(self.shape) if any(source.written for source in sources) else 0)
        self._bad: list[tuple[int, int, int, str]] = []

    def read(self, told: Callable[[], None]) -> None:
        """Read this rank's units; `told` hears of each when it is done."""
        for number, (source, mine) in enumerate(
            zip(self.sources, share(self.sources, self.comm.size, self.comm.rank), strict=True)
        ):
            for unit, piece in source.pieces(mine):
                self._take(number, unit, piece)
                told()

    def _take(self, source: int, unit: int, piece: Piece) -> None:
        codes, unknown = self._labels.encode(piece.labels)
        good = codes >= 0
        bad = piece.bad + [(int(piece.rows[place]), why) for place, why in unknown]
        fits, complaint = _fitting(piece.images.reshape(len(codes), prod(self.shape)), self._asked)
        bad += [(int(piece.rows[place]), complaint) for place in np.flatnonzero(good & ~fits)]
        good &= fits
        images = piece.images if good.all() else piece.images[good]
        if self.sources[source].written:
            self._rounding.see(images.reshape(len(images), prod(self.shape)))
        kept, offset = self.store.put(images)
        self.batches.append(Batch(source, unit, codes[good], piece.rows[good], images.dtype, kept, offset))
        self._totals[source, unit] = piece.total
        self._bad += [(source, unit, row, why) for row, why in sorted(bad)]

    def agree(self) -> None:
        """Tell each other what was read: every rank then knows all units, labels, classes and bad rows."""
        self.classes, table = self._labels.agree(self.comm)
        mine = [[b.source, b.unit, len(b.codes), self._totals[b.source, b.unit]] for b in self.batches]
        every = [unit for text in self.comm.gather_text(json.dumps(mine)) for unit in json.loads(text)]
        self.units = np.array(sorted(every), np.int64).reshape(-1, 4)
        self._place = {(int(s), int(u)): line for line, (s, u) in enumerate(self.units[:, :2])}
        self.starts = np.concatenate([[0], np.cumsum(self.units[:, 2])])
        self._rows_before = np.cumsum(self.units[:, 3]) - self.units[:, 3]
        self._first_row = _starts_within(self.units[:, 0], self.units[:, 3])
        self.labels = np.zeros(self.starts[-1], np.int32)
        for batch, where in self.placed():
            codes = table[batch.codes] if self.classes and self._labels.named else batch.codes
            self.labels[where.start : where.stop] = codes
        self.comm.sum(self.labels)
        self.bad = self._all_bad()
        self._kinds = self._all_kinds()

    @property
    def dtype(self) -> np.dtype[Any]:
        """That of all images in the file. Raises InputError where there are no good rows."""
        if not self._kinds:
            raise InputError(f"no good rows were found in {', '.join(str(source.path) for source in self.sources)}")
        return self._asked or common_dtype(self._kinds)

    def placed(self) -> Iterator[tuple[Batch, range]]:
        """This rank's batches and their places among all good rows."""
        for batch in self.batches:
            line = self.line(batch)
            yield batch, range(int(self.starts[line]), int(self.starts[line + 1]))

    def first_row(self, batch: Batch) -> int:
        """The row that a batch's rows are counted from, of all sources one after the other."""
        return int(self._rows_before[self.line(batch)])

    def first_rows(self) -> NDArray[np.int64]:
        """The same for each source."""
        totals = np.bincount(self.units[:, 0], self.units[:, 3], len(self.sources)).astype(np.int64)
        return np.cumsum(totals) - totals

    def line(self, batch: Batch) -> int:
        """The batch's line in `units`."""
        return self._place[batch.source, batch.unit]

    def _all_kinds(self) -> list[np.dtype[Any]]:
        """The dtypes in which all sources' images can be kept."""
        mine = {(b.dtype.str, self.sources[b.source].written) for b in self.batches if len(b.codes)}
        texts, short = self.comm.gather_text(json.dumps(sorted(mine))), self._rounding.harmless(self.comm)
        every = sorted({(kind, short and written) for text in texts for kind, written in json.loads(text)})
        kinds = [(np.dtype(kind), shortened) for kind, shortened in every]
        return [np.dtype(np.float32) if shortened and kind == np.float64 else kind for kind, shortened in kinds]

    def _all_bad(self) -> list[Bad]:
        texts = self.comm.gather_text(json.dumps(self._bad))
        every = sorted(tuple(bad) for text in texts for bad in json.loads(text))
        first = {unit: int(self._first_row[line]) for unit, line in self._place.items()}
        return [Bad(source, first[source, unit] + row, why) for source, unit, row, why in every]

    def describe(self, bad: Bad) -> str:
        """One line on a bad row: its file, its row, and why."""
        return f"{self.sources[bad.source].where(bad.row)}: {bad.reason}"


def _fitting(images: NDArray[Any], dtype: np.dtype[Any] | None) -> tuple[NDArray[np.bool_], str]:
    """Which rows (n,) hold numbers that a network takes and `dtype` holds, and what is wrong with the others."""
    if dtype is not None and dtype.kind == "u" and not np.can_cast(images.dtype, dtype):
        return np.asarray(holds(images, dtype).all(axis=1)), f"has a pixel that {dtype} does not hold"
    with np.errstate(over="ignore"):
        kept = images if dtype is None else images.astype(dtype, copy=False)
    if kept.dtype.kind == "f":
        within = f" in {dtype}" if dtype else ""
        return np.asarray(np.isfinite(kept).all(axis=1)), f"has a pixel that is not finite{within}"
    return np.ones(len(images), np.bool_), ""


def holds(values: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[np.bool_]:
    """Which of the values a type holds: an integer one as they are, a float one rounded but not as infinite."""
    kept: NDArray[np.bool_]
    with np.errstate(invalid="ignore"):
        if dtype.kind == "f":
            kept = ~(np.abs(values) > float(np.finfo(dtype).max))
        else:
            limits = np.iinfo(dtype)
            kept = (values >= limits.min) & (values <= limits.max) & (values == np.floor(values))
    return kept


def common_dtype(kinds: list[np.dtype[Any]]) -> np.dtype[Any]:
    """The smallest dtype that images of these all fit in."""
    kind = np.result_type(*kinds)
    mixed = len(set(kinds)) > 1 and kind == np.float64 and np.float64 not in kinds
    return np.dtype(np.float32) if mixed else kind


def _starts_within(groups: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """The sum of the counts before each, within its group; groups ascend."""
    before = np.cumsum(counts) - counts
    return before - before[np.searchsorted(groups, groups)]


def refuse_mixture(sources: list[Source]) -> None:
    """Raise InputError unless all sources have images of one shape and labels of one kind."""
    first = sources[0]
    for other in sources[1:]:
        if other.shape != first.shape:
            raise InputError(
                f"images are of one shape, but {other.where(0)} is {other.shape} and {first.where(0)} {first.shape}"
            )
        if other.named != first.named:
            words = {True: "names", False: "numbers"}
            raise InputError(
                f"labels are {words[other.named]} in {other.path}, but {words[first.named]} in {first.path}"
            )
