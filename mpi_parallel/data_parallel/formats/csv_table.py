"""CSV, plain or .gz: a row an image, one column its label. Any rank starts anywhere, at the next line's beginning.

A plain file is cut into ranges of bytes, and a line belongs to the range in which it begins. A .gz can only be unpacked
from its start: every rank does, which costs less than one rank unpacking and sending, and parses its part of the lines.
Line breaks within quotes are not supported, as nobody who starts in the middle can tell them.
"""

from __future__ import annotations

import csv
import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
from numpy.typing import NDArray

from mpi_parallel.data_parallel.formats import numbers
from mpi_parallel.data_parallel.formats.csv_layout import csv_layout, fields
from mpi_parallel.data_parallel.formats.source import UNIT, Piece, SourceOptions, Units
from mpi_parallel.options import InputError

LONGEST_LINE = 1 << 26
SAMPLE = 1 << 18  # bytes behind the first line that tell of what kind the labels are
MISSING = ("", "na", "n/a", "nan", "null", "none", "?")


class CsvSource:
    """A CSV file (the protocol is that of formats.source); raises InputError for what is no table."""

    names: tuple[str, ...] = ()
    written = True

    def __init__(self, path: Path, options: SourceOptions, split: str | None = None) -> None:
        self.path, self.split = path, split
        with path.open("rb") as file:
            self._packed = file.read(2) == b"\x1f\x8b"
        with self._open() as file:
            first = self._line(file, b"")
            head = [first, *file.read(SAMPLE).splitlines(keepends=True)]
        if complaint := _complaint(first, b"".join(head)):
            raise InputError(f"{path}: {complaint}")
        text = [line.decode("utf-8-sig", "surrogateescape") for line in head if line.strip()]
        self.layout = csv_layout(path, text[: max(2, len(text) - 1)], options)  # the last line may be cut
        self.shape, self.named = self.layout.shape, self.layout.named
        self._header = len(first) if self.layout.names else 3 * first.startswith(b"\xef\xbb\xbf")
        self._size = path.stat().st_size
        self.units = None if self._packed else -(-(self._size - self._header) // UNIT)

    def pieces(self, mine: Units) -> Iterator[tuple[int, Piece]]:
        """Number and rows of each of the units that are mine; rows count all lines, blank ones too."""
        with self._open() as file:
            if self.units is None:
                for unit, text in enumerate(self._stream(file)):
                    if unit in mine:
                        yield unit, self.parse(text)
            else:
                for unit in mine:
                    yield unit, self.parse(self._range(file, unit))

    def where(self, row: int) -> str:
        """The line's number, from 1 as editors count."""
        return f"{self.path} line {row + 1 + bool(self.layout.names)}"

    # Bytes

    @contextmanager
    def _open(self) -> Iterator[IO[bytes]]:
        """The text, unpacked. Raises InputError where it cannot be."""
        try:
            with gzip.open(self.path) if self._packed else self.path.open("rb") as file:
                yield cast(IO[bytes], file)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise InputError(f"{self.path}: damaged gzip file: {error}") from error

    def _range(self, file: IO[bytes], unit: int) -> bytes:
        """The lines that begin in the unit's range of bytes."""
        start = self._header + unit * UNIT
        before = 1 if unit else 0  # a line begins where the byte before is a newline
        file.seek(start - before)
        text = file.read(min(UNIT, self._size - start) + before)
        if before:
            text = text[text.find(b"\n") + 1 or len(text) :]
        return text if not text or text.endswith(b"\n") else text + self._line(file, text)

    def _stream(self, file: IO[bytes]) -> Iterator[bytes]:
        """The lines of a stream, about a unit at a time."""
        file.read(self._header)
        while text := file.read(UNIT):
            yield text if text.endswith(b"\n") else text + self._line(file, text)

    def _line(self, file: IO[bytes], begun: bytes) -> bytes:
        """The rest of a line of which some is read."""
        rest = file.readline(LONGEST_LINE)
        if len(rest) == LONGEST_LINE and not rest.endswith(b"\n"):
            raise InputError(f"{self.path}: a line is longer than {LONGEST_LINE >> 20} MiB: not CSV ({begun[:20]!r}…)")
        return rest

    # Lines

    def parse(self, text: bytes) -> Piece:
        """The rows of some whole lines."""
        if b"\r" in text:
            text = text.replace(b"\r\n", b"\n")
        if text and not text.endswith(b"\n"):
            text += b"\n"
        taken, start = _Taken(self.layout.label, self.layout.ignored), 0
        while start < len(text):
            stop = text.rfind(b"\n", start, start + numbers.BLOCK) + 1 or text.find(b"\n", start) + 1
            self._parse_block(text[start:stop], taken)
            start = stop
        return taken.piece(self.layout.columns - 1 - len(self.layout.ignored), self.shape)

    def _parse_block(self, text: bytes, taken: _Taken) -> None:
        rows = text.count(b"\n")
        table = None
        if not self.named:
            table = numbers.parse_block(text, rows, self.layout.columns, self.layout.delimiter.encode())
        if table is not None:
            taken.add_whole(table, taken.total + np.arange(rows))
        else:
            self._parse_lines(text.split(b"\n")[:-1], taken)
        taken.total += rows

    def _parse_lines(self, lines: list[bytes], taken: _Taken) -> None:
        """Blocks of which something is not a number: names and what is ignored cut off, bad lines told and left out."""
        places = np.array([place for place, line in enumerate(lines) if line.strip()], np.int64)
        lines = [lines[place] for place in places]
        labels: list[str] = []
        if self.layout.cut:
            cut = [self._cut(line) for line in lines]
            good = [place for place, parts in enumerate(cut) if not isinstance(parts, str)]
            taken.bad += [
                (taken.total + int(at), why) for at, why in zip(places, cut, strict=True) if isinstance(why, str)
            ]
            lines, labels = [cut[place][1] for place in good], [cut[place][0] for place in good]  # type: ignore[misc]
            places = places[good]
        columns = self.layout.columns - len(self.layout.cut)
        tables, bad = numbers.parse_table([line + b"\n" for line in lines], columns, self.layout.delimiter.encode())
        keep = np.delete(np.arange(len(lines)), bad)
        if tables:
            named = [labels[place] for place in keep] if self.named else None
            taken.add(np.concatenate(tables), taken.total + places[keep], named)
        taken.bad += [(taken.total + int(places[place]), self._reason(lines[place])) for place in bad]

    def _cut(self, line: bytes) -> tuple[str, bytes] | str:
        """The label and the numbers of the line, of which the label is one unless it is a name; or what is wrong."""
        label, cut = self.layout.label, self.layout.cut
        try:
            parts = fields(line.decode("utf-8", "surrogateescape"), self.layout.delimiter)
        except csv.Error as error:
            return f"cannot be read: {error}"
        if len(parts) != self.layout.columns:
            return self._length(len(parts))
        if b'"' in line and (odd := self._two_in_one(parts)):
            return odd
        text = parts[label].strip()
        if self.named and text.lower() in MISSING:
            return f"{self.layout.column(label)} is missing"
        rest = self.layout.delimiter.join([part for place, part in enumerate(parts) if place not in cut])
        return text, rest.encode("utf-8", "surrogateescape")

    def _two_in_one(self, parts: list[str]) -> str:
        """What is wrong where quotes hold a delimiter: without them it would part a number in two."""
        for place, text in enumerate(parts):
            if self.layout.delimiter in text and place not in self.layout.cut:
                return f"{self.layout.column(place)} is {text.strip()[:40]!r}, not a number"
        return ""

    def _length(self, found: int) -> str:
        return f"has {found} fields, not {self.layout.columns}"

    def _reason(self, line: bytes) -> str:
        """Why a line is not a row of numbers."""
        try:
            parts = fields(line.decode("utf-8", "surrogateescape"), self.layout.delimiter)
        except csv.Error as error:
            return f"cannot be read: {error}"
        columns = [place for place in range(self.layout.columns) if place not in self.layout.cut]
        if len(parts) != len(columns):
            return self._length(len(parts) + len(self.layout.cut))
        for place, text in zip(columns, parts, strict=True):
            value = numbers.number(text)
            if text.strip().lower() in MISSING:
                return f"{self.layout.column(place)} is missing"
            if value is None or not np.isfinite(value):
                return (
                    f"{self.layout.column(place)} is {text.strip()[:40]!r}, not a "
                    + ("finite " * (value is not None))
                    + "number"
                )
        return "is not written as numbers are"


def _complaint(first: bytes, start: bytes) -> str:
    """Why what starts like this is no table; nothing where it may be one."""
    if first.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "is UTF-16: save it as UTF-8"
    if b"\0" in start:
        return "holds binary data: neither CSV, IDX, NPZ nor HDF5"
    if b"\r" in first.rstrip(b"\r\n"):
        return "its lines end with a carriage return alone: save it with newlines"
    return "" if first.strip() else "its first line is empty: not CSV"


class _Taken:
    """What has been read of a unit."""

    def __init__(self, label: int, ignored: tuple[int, ...]) -> None:
        self.tables: list[NDArray[Any]] = []
        self.labels: list[NDArray[Any]] = []
        self.rows: list[NDArray[np.int64]] = []
        self.bad: list[tuple[int, str]] = []
        self.total = 0
        self._ignored, self._label = ignored, label - sum(place < label for place in ignored)

    def add_whole(self, table: NDArray[Any], rows: NDArray[np.int64]) -> None:
        """Rows of numbers, what is ignored among them."""
        self.add(np.delete(table, self._ignored, axis=1) if self._ignored else table, rows)

    def add(self, table: NDArray[Any], rows: NDArray[np.int64], names: list[str] | None = None) -> None:
        """Rows of numbers, the label in its column where no names are given."""
        if names is None:
            self.labels.append(table[:, self._label].astype(np.float64))
            table = np.delete(table, self._label, axis=1)
        else:
            self.labels.append(np.array(names, object))
        self.tables.append(table if table.dtype == np.uint8 else numbers.narrow(table))
        self.rows.append(rows)

    def piece(self, features: int, shape: tuple[int, ...]) -> Piece:
        """All of it; images uint8, uint16 or float64, the smallest that holds them."""
        if not self.tables:
            empty = np.empty((0, features), np.uint8)
            self.tables, self.labels, self.rows = [empty], [np.empty(0)], [np.empty(0, np.int64)]
        images, rows = np.concatenate(self.tables), np.concatenate(self.rows)
        return Piece(images.reshape(len(rows), *shape), np.concatenate(self.labels), rows, self.total, sorted(self.bad))
