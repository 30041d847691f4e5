"""Which algorithm was fastest for each product on this GPU, kept from one process to the next.

A file for each kind of GPU, driver and cublasLt, in XDG_CACHE_HOME or ~/.cache: JSON, from a product's description to
the bytes of its algorithm. It is only ever a hint: what the library does not propose by itself is not taken from it,
and without the file, or with a broken one, algorithms are measured as if there had never been one.
"""

from __future__ import annotations

import json
import os
import re
import socket
from contextlib import suppress
from pathlib import Path

FORMAT = 1  # raised when what stands in the files changes its meaning


class Tuning:
    """The choices of one kind of GPU. Reads the file once; writes it, as a whole, at each new choice."""

    def __init__(self, path: Path | None, writes: bool = True) -> None:
        """One process of a node `writes`: the others measured the same GPUs."""
        self.path, self.writes = path, writes
        self.known = {} if path is None else _read(path)

    def of(self, product: str) -> str | None:
        """The algorithm that was fastest, as hexadecimal digits; None where it was not measured."""
        return self.known.get(product)

    def keep(self, product: str, algorithm: str) -> None:
        """From now on, and in later processes, it is this one. A full disk or a folder of others' costs no run."""
        self.known[product] = algorithm
        if self.path is None or not self.writes:
            return
        unfinished = self.path.with_suffix(f".{socket.gethostname()}.{os.getpid()}")  # homes are shared
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.known = {**_read(self.path), **self.known}  # of processes that were at it meanwhile
            unfinished.write_text(json.dumps({"format": FORMAT, "algorithms": self.known}, indent=0, sort_keys=True))
            unfinished.replace(self.path)
        except OSError:
            self.writes = False
            with suppress(OSError):
                unfinished.unlink(missing_ok=True)


def tuning_file(gpu: str, driver: int, library: int) -> Path | None:
    """Where the choices of this kind of GPU, driver and version of cublasLt are; None where there is no place."""
    folder = cache_folder()
    name = re.sub(r"[^A-Za-z0-9]+", "-", gpu)
    return None if folder is None else folder / f"cublaslt-{name}-driver-{driver}-version-{library}.json"


def cache_folder() -> Path | None:
    """As the XDG base directory specification has it; None where there is no home."""
    given = Path(os.environ.get("XDG_CACHE_HOME", ""))
    with suppress(RuntimeError):
        return (given if given.is_absolute() else Path.home() / ".cache") / "mpi_parallel"
    return None


def _read(path: Path) -> dict[str, str]:
    """What the file holds; nothing where it is missing, broken or of another format."""
    try:
        held = json.loads(path.read_text())
        if held["format"] == FORMAT:
            return {str(product): str(algorithm) for product, algorithm in held["algorithms"].items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        pass
    return {}
