"""Labels on their way into a file: what the source calls a class becomes a number, or a reason to leave a row out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from mpi_parallel.data_parallel.formats.source import Source
from mpi_parallel.mpi.communicator import Communicator
from mpi_parallel.options import InputError

HIGHEST = 2**20  # a number above is an identifier rather than a class


class Labels:
    """Numbers for labels. Names get one each as they come; `agree` then makes them the same on all ranks."""

    def __init__(self, named: bool, classes: Sequence[str] = ()) -> None:
        """Raises InputError where names do not tell the classes apart."""
        self.named, self.known = named, tuple(classes)
        self._codes = {name: code for code, name in enumerate(classes)}
        if named and len(self._codes) < len(self.known):
            twice = next(name for name in classes if self.known.count(name) > 1)
            raise InputError(f"{twice!r} is the name of two classes: labels that are names need one for each")

    def encode(self, labels: NDArray[Any]) -> tuple[NDArray[np.int64], list[tuple[int, str]]]:
        """Codes (n,), -1 for those that are no class, and the places of these with the reason."""
        if self.named:
            codes = np.array([self._code(name) for name in labels.tolist()], np.int64)
        else:
            values = labels.astype(np.float64)
            limit = len(self.known) or HIGHEST
            with np.errstate(invalid="ignore"):
                good = (values >= 0) & (values < limit) & (values == np.floor(values))
            codes = np.where(good, values, -1).astype(np.int64)
        return codes, [(int(place), self._complaint(labels[place])) for place in np.flatnonzero(codes < 0)]

    def agree(self, comm: Communicator) -> tuple[tuple[str, ...] | None, NDArray[np.int64]]:
        """The classes' names, sorted unless they were given, and what each code of this rank becomes."""
        if not self.named or self.known:
            return self.known or None, np.arange(len(self._codes))
        everyone = comm.gather_text(json.dumps(list(self._codes)))
        names = sorted({name for text in everyone for name in json.loads(text)})
        place = {name: number for number, name in enumerate(names)}
        return tuple(names), np.array([place[name] for name in self._codes], np.int64)

    def _code(self, name: Any) -> int:
        if not _is_text(name):
            return -1
        if self.known:
            return self._codes.get(name, -1)
        return self._codes.setdefault(name, len(self._codes))

    def _complaint(self, label: Any) -> str:
        if self.named:
            return f"label {str(label)[:40]!r} is {'unknown' if _is_text(label) else 'no text in UTF-8'}"
        if not np.isfinite(label):
            return "label is missing"
        shown = int(label) if label == int(label) else label
        return f"label {shown} is unknown: a whole number from 0 to {(len(self.known) or HIGHEST) - 1} is wanted"


def _is_text(name: str) -> bool:
    """Whether HDF5 takes this name: readers leave bytes that are no UTF-8 as surrogates, which are no characters."""
    return "\0" not in name and not any("\ud800" <= letter <= "\udfff" for letter in name)


def class_names(file: h5py.File) -> tuple[str, ...] | None:
    """The names that a file gives to its classes; None where its attribute `classes` is missing or no text."""
    names = np.ravel(np.asarray(file.attrs.get("classes", ()), object)).tolist()
    if not names or not all(isinstance(name, str | bytes) for name in names):
        return None
    given = [name if isinstance(name, bytes) else name.encode("utf-8", "surrogateescape") for name in names]
    return tuple(name.decode("utf-8", "backslashreplace") for name in given)


def common_names(sources: Sequence[Source]) -> tuple[str, ...]:
    """The names that the sources give to their classes, nothing where none or several do so for labels that are names.

    Raises InputError where the same number is another class in another source.
    """
    first = next((source for source in sources if source.names), sources[0])
    for other in sources:
        if other.names and other.names != first.names:
            if other.named:
                return ()
            raise InputError(
                f"the classes 0, 1, … are {', '.join(first.names)} in {first.path}, but {', '.join(other.names)} in "
                f"{other.path}: convert them apart, or give the labels as names"
            )
    return first.names
