"""A file that all ranks write parts of at once, past the page cache as far as that can be.

Through the page cache each byte costs a processor room in the cache, a copy and its writing back, and training has the
processors. Direct writing (O_DIRECT) leaves that to the disk, but takes whole pages only, from memory that begins
with one. So a large part is written directly but for its ends, out of a buffer, and the ends go through the cache. A
file system that knows nothing of it gets everything through the cache.
"""

from __future__ import annotations

import errno
import mmap
import os
from pathlib import Path

import numpy as np

PAGE = 4096  # bytes that direct writing takes a multiple of, on all disks and file systems that we know
BUFFER = 1 << 22  # bytes that are written at a time
LEAST = 1 << 18  # bytes below which the ends cost more than is spared


class Output:
    """The open file."""

    def __init__(self, path: Path, size: int) -> None:
        """Open the file of `size` bytes, make it where no other rank has yet. Raises OSError."""
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT, 0o666)
        self._direct: int | None = None
        try:
            # All ranks alike: a file that grew while they write would make them take turns.
            os.ftruncate(self._file, size)
            self._direct = _open_direct(path)
        except OSError:
            self.close()
            raise
        self._buffer = mmap.mmap(-1, BUFFER) if self._direct is not None else None

    def write(self, data: memoryview, offset: int) -> None:
        """Put these bytes at an offset. Raises OSError, also when only a part of them found room."""
        start, stop = -(-offset // PAGE) * PAGE - offset, (offset + len(data)) // PAGE * PAGE - offset
        if self._direct is None or stop - start < LEAST:
            put(self._file, data, offset)
            return
        put(self._file, data[:start], offset)
        for at in range(start, stop, BUFFER):
            self._write_pages(data[at : min(at + BUFFER, stop)], offset + at)
        put(self._file, data[stop:], offset + stop)

    def _write_pages(self, data: memoryview, offset: int) -> None:
        """Put whole pages at a page's offset, through the cache where they are refused."""
        if self._direct is not None and self._buffer is not None:
            pages = np.frombuffer(self._buffer, np.uint8, len(data))
            np.copyto(pages, np.frombuffer(data, np.uint8))  # lets other threads run meanwhile
            try:
                put(self._direct, pages.data, offset)
                return
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
            os.close(self._direct)
            self._direct = None
        put(self._file, data, offset)

    def sync(self) -> None:
        """All that was written here is on the disk. Raises OSError."""
        os.fsync(self._file)

    def close(self) -> None:
        """Done with it."""
        for file in (self._file, self._direct):
            if file is not None:
                os.close(file)


def _open_direct(path: Path) -> int | None:
    """The file for direct writing; None where there is none. Raises OSError."""
    try:
        return os.open(path, os.O_WRONLY | os.O_DIRECT)
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.EOPNOTSUPP):
            return None
        raise


def put(file: int, data: memoryview, offset: int) -> None:
    """Put these bytes at an offset. Raises OSError, also when only a part of them found room."""
    while len(data):
        written = os.pwrite(file, data, offset)
        data, offset = data[written:], offset + written
