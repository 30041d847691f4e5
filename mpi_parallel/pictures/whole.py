"""Files that are whole or not there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mpi_parallel.options import InputError


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Yield the name to write under; after the block the file gets its own. A missing folder is made.

    Raises InputError where it cannot be written; then, and with any other error, nothing is left behind.
    """
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        part.replace(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error}") from error
    finally:
        with suppress(OSError):
            part.unlink()
