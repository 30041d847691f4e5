"""Text to numbers: tables of pixels with array operations, all else with NumPy's own parser.

Of CSV parsers that would do, pandas', pyarrow's and polars' each take more of a core's time for a table of pixels than
NumPy does on whole blocks of bytes; this one gives rows rather than columns, and needs nothing more.
"""

from __future__ import annotations

import io
import re
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

BLOCK = 1 << 16  # bytes taken at once: what is made of them stays in the core's cache
ZERO, NEWLINE = np.uint8(ord("0")), np.uint8(ord("\n"))


def parse_table(lines: list[bytes], columns: int, delimiter: bytes) -> tuple[list[NDArray[Any]], list[int]]:
    """Tables (n, columns) of the lines that are `columns` numbers, in order, and the places of those that are not.

    Lines end with a newline. The dtype of a table is the smallest of uint8, uint16 and float64 that holds it.
    """
    table = parse_block(b"".join(lines), len(lines), columns, delimiter)
    if table is not None:
        return [table], []
    if len(lines) <= 1:
        return [], list(range(len(lines)))
    half = len(lines) // 2
    tables, bad = parse_table(lines[:half], columns, delimiter)
    more, worse = parse_table(lines[half:], columns, delimiter)
    return tables + more, bad + [half + place for place in worse]


def parse_block(text: bytes, rows: int, columns: int, delimiter: bytes) -> NDArray[Any] | None:
    """The table (rows, columns) of a text of that many lines, or None where one of them is anything else."""
    if b'"' in text:
        text = _quoted(delimiter).sub(rb"\1\2", text)
        if b'"' in text:
            return None
    pixels = parse_pixels(text, rows, columns, delimiter)
    return pixels if pixels is not None else _parse_any(text, rows, columns, delimiter)


@cache
def _quoted(delimiter: bytes) -> re.Pattern[bytes]:
    """A field that is a number in quotes, without a delimiter and closed on its line, and what is before it."""
    ends, around = re.escape(delimiter) + rb"\n", b"" if delimiter == b" " else b" *"
    return re.compile(rb'(^|[%b])%b"([-+.\w \t]*)"%b(?=[%b])' % (ends, around, around, ends))


def parse_pixels(text: bytes, rows: int, columns: int, delimiter: bytes) -> NDArray[np.uint8] | None:
    """The table (rows, columns) of a text that is whole numbers of 0 to 255 and nothing else, or None.

    The text is taken as an array of bytes. At every byte the number that would end here is computed from this digit and
    the two before it; the ends of the fields then say which of these are wanted.
    """
    byte = np.frombuffer(text, np.uint8)
    digit = byte - ZERO
    is_digit = digit < 10
    end = np.flatnonzero(~is_digit)
    if len(end) != rows * columns or not len(end):
        return None
    ends = byte.take(end).reshape(rows, columns)
    lengths = np.diff(end, prepend=-1)
    if (ends[:, -1] != NEWLINE).any() or (ends[:, :-1] != ord(delimiter)).any():
        return None
    if lengths.min() < 2 or lengths.max() > 4:
        return None
    one = is_digit.view(np.uint8)
    digit *= one
    low = digit.copy()
    low[1:] += digit[:-1] * np.uint8(10)
    hundreds = np.zeros_like(digit)
    hundreds[2:] = digit[:-2] * one[1:-1] * one[2:]
    if ((hundreds > 2) | ((hundreds == 2) & (low > 55))).any():
        return None
    low += hundreds * np.uint8(100)
    values: NDArray[np.uint8] = low.take(end - 1).reshape(rows, columns)
    return values


def _parse_any(text: bytes, rows: int, columns: int, delimiter: bytes) -> NDArray[Any] | None:
    if not text or text.isspace():
        return None  # loadtxt would warn
    try:
        table = np.loadtxt(io.BytesIO(text), delimiter=delimiter.decode(), comments=None, ndmin=2)
    except ValueError:
        return None
    return narrow(table) if table.shape == (rows, columns) and np.isfinite(table).all() else None


def narrow(table: NDArray[Any]) -> NDArray[Any]:
    """The table as uint8 or uint16 where that loses nothing."""
    if table.size and table.min() >= 0 and table.max() <= 65535:
        small = table.astype(np.uint8 if table.max() <= 255 else np.uint16)
        return small if (small == table).all() else table
    return table


def number(text: str) -> float | None:
    """The number that a field holds, None where it holds none; "nan" and "inf" are numbers here."""
    try:
        return float(text) if "_" not in text else None
    except ValueError:
        return None
