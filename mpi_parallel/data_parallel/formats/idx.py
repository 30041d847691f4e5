"""IDX, the format of MNIST and its relatives.

An IDX file is two zero bytes, a type code, the number of dimensions, each dimension as a big-endian uint32,
then the items in C order, big-endian (documented at the foot of http://yann.lecun.com/exdb/mnist/).
A file may come from anywhere, so nothing that it declares is believed before it is compared with what is there.
"""

from __future__ import annotations

import gzip
import math
import os
import zlib
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

_DTYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
GZIP_MAGIC = b"\x1f\x8b"
GZIP_RATIO = 1032  # deflate cannot expand more: a 258-byte match takes two bits at least
_PIECE = 1 << 20


def read_idx(path: str | os.PathLike[str], ndim: int | None = None) -> NDArray[Any]:
    """Read a whole IDX file, gzip-compressed or not (the content tells, not the name).

    Returns an array of the declared shape in native byte order; uint8, int8, int16, int32, float32 or float64.
    `ndim` is the number of dimensions that the caller wants: 3 for grey images, 1 for labels.
    Raises ValueError, naming the file, when it is not IDX or when its size is not the declared one, and OSError when
    it can't be read. Memory grows with the bytes that arrive and not with what the header promises.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        raise ValueError(f"{path}: not a regular file")
    with path.open("rb") as file:
        compressed = file.read(2) == GZIP_MAGIC
        file.seek(0)
        at_most = os.fstat(file.fileno()).st_size * (GZIP_RATIO if compressed else 1)
        if not compressed:
            return _parse(file, at_most, ndim, path)
        try:
            with gzip.GzipFile(fileobj=file) as unpacked:
                return _parse(unpacked, at_most, ndim, path)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise ValueError(f"{path}: damaged gzip file: {error}") from error


def idx_header(array: NDArray[np.uint8]) -> bytes:
    """The header that an IDX file of this uint8 array starts with: header and array are the file, byte for byte."""
    return bytes([0, 0, 0x08, array.ndim]) + np.array(array.shape, ">u4").tobytes()


def _parse(stream: IO[bytes] | gzip.GzipFile, at_most: int, ndim: int | None, path: Path) -> NDArray[Any]:
    dtype, shape = read_header(stream, path)
    if ndim is not None and len(shape) != ndim:
        raise ValueError(f"{path}: {len(shape)} dimensions {shape}, but {ndim} wanted")
    size = math.prod(shape) * dtype.itemsize
    if size > at_most:
        raise ValueError(f"{path}: declares {shape} of {dtype.name}, {size:,} bytes, but holds {at_most:,} at most")
    items = np.frombuffer(_read_exactly(stream, size, path), dtype).reshape(shape)
    return items.astype(dtype.newbyteorder("="), copy=False)


def read_header(stream: IO[bytes] | gzip.GzipFile, path: Path) -> tuple[np.dtype[Any], tuple[int, ...]]:
    """Type and shape that the start of a stream declares; the items follow. Raises ValueError when it is not IDX."""
    magic = stream.read(4)
    if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in _DTYPES or not 1 <= magic[3] <= 4:
        raise ValueError(f"{path}: not an IDX file: it starts with {magic.hex(' ') or 'nothing'}")
    sizes = stream.read(4 * magic[3])
    if len(sizes) < 4 * magic[3]:
        raise ValueError(f"{path}: ends within the IDX header")
    shape = tuple(int(n) for n in np.frombuffer(sizes, ">u4"))
    if 0 in shape:
        raise ValueError(f"{path}: declares no items: {shape}")
    return np.dtype(_DTYPES[magic[2]]), shape


def _read_exactly(stream: IO[bytes] | gzip.GzipFile, size: int, path: Path) -> bytearray:
    """Read `size` bytes and the end of the file behind them."""
    data = bytearray()
    while piece := stream.read(min(_PIECE, size - len(data))):
        data += piece
    if len(data) < size:
        raise ValueError(f"{path}: truncated: declares {size:,} bytes of items, but holds {len(data):,}")
    if stream.read(1):
        raise ValueError(f"{path}: too long: bytes follow the {size:,} that its header declares")
    return data
