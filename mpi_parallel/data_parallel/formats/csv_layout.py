"""What a CSV file's first lines tell: delimiter, header, which column is the label, the images' shape."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from mpi_parallel.data_parallel.formats.numbers import number
from mpi_parallel.data_parallel.formats.source import SourceOptions
from mpi_parallel.options import InputError

LABEL_NAMES = ("label", "labels", "class", "target", "y", "category")
DELIMITERS = (",", ";", "\t")
PIXEL = re.compile(r"(pixel|px|p)[_ ]?\d+|\d+x\d+", re.IGNORECASE)


@dataclass(frozen=True)
class CsvLayout:
    """How the lines of a CSV file are to be read."""

    delimiter: str
    columns: int
    label: int  # its column
    ignored: tuple[int, ...]  # columns that nobody wants, in their order
    names: tuple[str, ...]  # of the columns, where there is a header
    named: bool  # whether labels are names
    shape: tuple[int, ...]

    @property
    def cut(self) -> tuple[int, ...]:
        """The columns that are taken out of a line before the others are read as numbers."""
        return tuple(sorted((*self.ignored, self.label))) if self.named else self.ignored

    def column(self, place: int) -> str:
        """What a person calls a column."""
        return f"field {place + 1}" + (f" ({self.names[place]})" if self.names and self.names[place] else "")


def csv_layout(path: Path, head: Sequence[str], options: SourceOptions) -> CsvLayout:
    """The layout that the first lines and the options tell. Raises InputError when they do not fit each other."""
    delimiter = _delimiter(head[0], options.delimiter)
    try:
        first = fields(head[0], delimiter)
    except csv.Error as error:
        raise InputError(f"{path}: its first line cannot be read: {error}") from None
    if len(first) < 2:
        raise InputError(f"{path}: the first line has one field; name what parts the fields with --delimiter")
    names = tuple(name.strip() for name in first) if _is_header(first, options.header) else ()
    label = _label_column(path, names, len(first), options.labels)
    ignored = {_place(path, names, len(first), "--ignore", asked) for asked in options.ignore}
    if label in ignored:
        raise InputError(f"--ignore {' '.join(options.ignore)}: one of these is the labels' column of {path}")
    labels = [row[label].strip() for row in _sample(head[bool(names) :], delimiter) if len(row) == len(first)]
    words = sum(number(text) is None for text in labels if text)
    pixels = [place for place in range(len(first)) if place != label and place not in ignored]
    shape = _shape(path, [names[place] for place in pixels] if names else [], len(pixels), options.shape)
    return CsvLayout(delimiter, len(first), label, tuple(sorted(ignored)), names, 2 * words > len(labels), shape)


def fields(line: str, delimiter: str) -> list[str]:
    """The fields of a line, without their quotes. Raises csv.Error where these do not fit each other."""
    if '"' not in line:
        return line.rstrip("\r\n").split(delimiter)
    if line.count('"') % 2:
        raise csv.Error("it has a quote that is not closed on its line")
    return next(csv.reader([line.rstrip("\r\n")], delimiter=delimiter, strict=True))


def _sample(lines: Sequence[str], delimiter: str) -> Iterator[list[str]]:
    for line in lines:
        with suppress(csv.Error):
            yield fields(line, delimiter)


def _delimiter(line: str, asked: str) -> str:
    if asked == "auto":
        return max(DELIMITERS, key=line.count)
    word = {"tab": "\t", "\\t": "\t"}.get(asked, asked)
    if len(word) != 1 or not word.isascii() or word.isalnum() or word in '".+-\r\n':
        raise InputError(f"--delimiter {asked}: one character that no number has, or tab")
    return word


def _is_header(first: list[str], asked: str) -> bool:
    if asked != "auto":
        return asked == "yes"
    words = [text.strip().lower() for text in first if text.strip() and number(text) is None]
    return 2 * len(words) > len(first) or any(word in LABEL_NAMES for word in words)


def _label_column(path: Path, names: tuple[str, ...], columns: int, asked: str | None) -> int:
    known = [name.lower() for name in names]
    if asked is None:
        found = [known.index(name) for name in LABEL_NAMES if name in known]
        if names and not found:
            raise InputError(
                f"{path}: no column is called {' or '.join(LABEL_NAMES[:4])}; its columns are {_some(names)}: "
                "name the labels' one with --labels"
            )
        return found[0] if found else 0
    return _place(path, names, columns, "--labels", asked)


def _place(path: Path, names: tuple[str, ...], columns: int, option: str, asked: str) -> int:
    """The column of this name, or at this position."""
    if asked in names:
        if names.count(asked) > 1:
            raise InputError(f"{option} {asked}: {path} has {names.count(asked)} such columns: give a position from 0")
        return names.index(asked)
    if asked.removeprefix("-").isdecimal() and -columns <= int(asked) < columns:
        return int(asked) % columns
    raise InputError(f"{option} {asked}: {path} has no such column; it has {columns}: {_some(names) or 'no names'}")


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(names[:6]) + (f", … {names[-1]}" if len(names) > 6 else "")


def _shape(path: Path, names: Sequence[str], features: int, asked: tuple[int, ...]) -> tuple[int, ...]:
    """Of an image of so many numbers, with these names where there are any."""
    if not features:
        raise InputError(f"{path}: --ignore leaves no column for images")
    if asked:
        if math.prod(asked) != features:
            raise InputError(
                f"--shape {' '.join(map(str, asked))} is {math.prod(asked)} numbers, but {path} has {features} a row"
            )
        return asked
    side = math.isqrt(features)
    pixels = names and all(map(PIXEL.fullmatch, names))
    return (side, side) if pixels and side * side == features else (features,)
