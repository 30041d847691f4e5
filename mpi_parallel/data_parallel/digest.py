"""What rows are, in 64 letters: so that a run does not go on with other data than it began with."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpi_parallel.data_parallel.split import LABELS_AT_ONCE, Split, native, open_file
from mpi_parallel.mpi.communicator import Communicator

SIZE = hashlib.sha256().digest_size
SEEN = 8  # images of a streamed shard, at each of its ends, that are looked at


def digest_of_rows(*arrays: NDArray[Any]) -> bytes:
    """SHA-256 of these arrays, their types and shapes included."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype.newbyteorder('=').str} {array.shape}".encode())
        digest.update(_bytes(array))
    return digest.digest()


def digest_of_streamed(split: Split, parts: Mapping[int, range]) -> dict[int, bytes]:
    """Digests of parts that are too large to be read for this: of all labels, and some images of each."""
    found = {}
    with open_file(split.path) as file:
        source = split.datasets(file)
        assert source[1] is not None, "rows that are trained on have labels"
        for number, part in parts.items():
            digest = hashlib.sha256(str(len(part)).encode())
            for start in range(part.start, part.stop, LABELS_AT_ONCE):
                piece = range(start, min(start + LABELS_AT_ONCE, part.stop))
                digest.update(_bytes(native(source[1][split.row(piece[0]) : split.row(piece[-1]) + 1])))
            for piece in _ends(part):
                images, labels = split.empty(split.span(piece)), np.empty(split.span(piece), np.int32)
                digest.update(_bytes(images[split.load(source, piece, images, labels)]))
            found[number] = digest.digest()
    return found


def _ends(part: range) -> Iterator[range]:
    """The first and the last rows of a part."""
    if part:
        yield part[:SEEN]
        yield part[-SEEN:]


def digest_of_parts(mine: Mapping[int, bytes], parts: int, comm: Communicator) -> str:
    """One digest from those of all parts, whoever has them; the same on all ranks, for any number of ranks."""
    table = np.zeros((parts, SIZE), np.uint8)
    for number, digest in mine.items():
        table[number] = np.frombuffer(digest, np.uint8)
    comm.on_host().largest(table)  # each part is one rank's, the others have zeros there
    return hashlib.sha256(table.data).hexdigest()


def _bytes(array: NDArray[Any]) -> memoryview:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
