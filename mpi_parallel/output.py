"""What a program prints. A reader that goes away, as `| head -1` does, ends nothing, and every text can be printed.

A rank that raised in the middle of a print would leave the others waiting, and a training is not to be lost with its
reader: whatever nobody reads any more goes nowhere, and the program goes on to its end.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from typing import Any, TextIO


def be_patient() -> None:
    """Let stdout and stderr outlive their readers; for programs, once they have started."""
    sys.stdout, sys.stderr = _patient(sys.stdout), _patient(sys.stderr)


def _patient(stream: TextIO) -> TextIO:
    try:
        number = stream.fileno()
    except (AttributeError, OSError):  # closed, or none: pythonw, or somebody has put something else there
        return stream
    stream.flush()
    buffered, lines = io.BufferedWriter(_Descriptor(number, "wb", closefd=False)), bool(stream.line_buffering)
    # What is no text, such as a name of bytes that are none, is shown escaped and does not end the program.
    return io.TextIOWrapper(buffered, stream.encoding, "backslashreplace", line_buffering=lines)


class _Descriptor(io.FileIO):
    """A pipe, file or terminal that becomes /dev/null when nobody reads the other end."""

    def write(self, data: Any) -> int | None:  # type: ignore[override]
        try:
            return super().write(data)
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.EIO):  # EIO: a terminal that was closed
                raise
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.fileno())  # also for what C prints there
        os.close(nowhere)
        return len(data)
