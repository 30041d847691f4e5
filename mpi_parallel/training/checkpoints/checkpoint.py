"""A checkpoint: one HDF5 file with whole arrays, which loads on any number of ranks and any grid, or on none.

    weights/W0 (in, out), weights/b0 (out,), …   float32, layer by layer
    optimizer/m/W0, …                            the optimizer's state, array by array, in the same shapes
    scaling/mean, scaling/std                    float64: what turns an image into the network's input
    facts                                        JSON: how far the run is, options, data, versions, where it ran
    checksums/…                                  names of these arrays, pieces of them, the SHA-256 of each piece

All arrays are contiguous, so their bytes can be written and read in place, by many ranks at once. HDF5 itself has
checksums over everything else. The file is made under another name and renamed when it is whole on the disk.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from mpi_parallel.mpi.pulse import PULSE
from mpi_parallel.options import InputError
from mpi_parallel.training.checkpoints.slices import Piece

FORMAT = "mpi_parallel checkpoint 1"
ARRAYS, PIECES, DIGESTS, FACTS = "checksums/arrays", "checksums/pieces", "checksums/sha256", "facts"
COLUMNS = 5  # of a piece in the file: array, start, run, stride, count
NAME = np.dtype("S64")  # of an array
# Facts that a reader relies on.
TOLD = (
    "widths", "classes", "image_shape", "config", "step", "epochs", "samples", "sums", "bad_steps", "loss_scale",
    "optimizer_steps", "patience", "data", "holding", "total_steps", "groups", "arithmetic", "grid",
)  # fmt: skip


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds, in memory: enough to predict, and to see where the weights came from."""

    path: Path
    weights: dict[str, NDArray[np.float32]]  # W0 (in, out), b0 (out,), W1, …
    mean: NDArray[np.float64]  # (1,) or (features,): the network's input is (image - mean) / std
    std: NDArray[np.float64]
    facts: dict[str, Any]  # step, epochs, config, versions, …

    @property
    def widths(self) -> tuple[int, ...]:
        """Features, hidden widths, number of classes."""
        return tuple(self.facts["widths"])

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Their names, where the data file had names."""
        names = self.facts["classes"]
        return None if names is None else tuple(names)

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Of one image of the data it was trained on."""
        return tuple(self.facts["image_shape"])

    @property
    def config(self) -> dict[str, dict[str, Any]]:
        """All options of the run, in tables as in its config.toml."""
        config: dict[str, dict[str, Any]] = self.facts["config"]
        return config


def read_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Read and verify a checkpoint, without MPI. Raises InputError for what is none, or is damaged."""
    with CheckpointFile(path) as file:
        file.verify()
        weights = {name.split("/")[1]: file.read(name) for name in file.arrays if name.startswith("weights/")}
        return Checkpoint(file.path, weights, file.read("scaling/mean"), file.read("scaling/std"), file.facts)


@dataclass(frozen=True)
class Stored:
    """Where an array lies in the file."""

    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape, dtype=object)) * self.dtype.itemsize


class CheckpointFile:
    """An open checkpoint. Its structure has been looked through; `verify` compares the checksums."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Raises InputError, naming the file, for what is no checkpoint or not a whole one."""
        self.path = Path(path)
        try:
            self.arrays = _look_through(self.path)
            self._file = os.open(self.path, os.O_RDONLY)
        except InputError:
            raise
        except FileNotFoundError:
            raise InputError(f"{path}: there is no such checkpoint") from None
        except Exception as error:  # HDF5 and h5py answer damage with all kinds of them
            raise InputError(f"{path}: this is no checkpoint, or a damaged one ({error})") from None
        try:
            self.pieces, self.digests = self._table(), self.read(DIGESTS)
            self._check_cover()
            self.facts: dict[str, Any] = json.loads(bytes(bytes_of(self.read(FACTS))).rstrip(b"\0"))
            self._check_facts()
        except (ValueError, KeyError, TypeError, OSError, MemoryError, RecursionError) as error:
            self.close()
            raise InputError(f"{path}: a damaged checkpoint ({type(error).__name__}: {error})") from None

    def __enter__(self) -> CheckpointFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        os.close(self._file)

    def read(self, name: str) -> NDArray[Any]:
        """The whole array of this name."""
        stored = self.arrays[name]
        values = np.empty(stored.shape, stored.dtype)
        self.fill(Piece(0, 0, stored.nbytes, stored.nbytes, 1), name, bytes_of(values))
        return values

    def fill(self, piece: Piece, name: str, to: memoryview) -> None:
        """Read the piece of this array, whatever number it has, into these bytes. Raises OSError."""
        offset = self.arrays[name].offset + piece.start
        for number in range(piece.count):
            part = to[number * piece.run : (number + 1) * piece.run]
            _read(self._file, part, offset + number * piece.stride)

    def verify(self, first: int = 0, step: int = 1) -> None:
        """Compare the checksums of every step-th piece from `first` on. Raises InputError that names the array."""
        names = list(self.arrays)
        for piece, digest in zip(self.pieces[first::step], self.digests[first::step], strict=True):
            PULSE.beat()
            buffer = memoryview(bytearray(piece.size))
            try:
                self.fill(piece, names[piece.array], buffer)
            except OSError as error:
                raise InputError(f"{self.path}: {names[piece.array]} cannot be read ({error})") from None
            if hashlib.sha256(buffer).digest() != digest.tobytes():
                raise InputError(f"{self.path}: damaged: {names[piece.array]} is not what was written (SHA-256)")

    def _table(self) -> list[Piece]:
        return [Piece(*row) for row in self.read(PIECES).tolist()]

    def _check_facts(self) -> None:
        """The arrays are those of a network of the widths that the facts tell, and nothing is left untold."""
        if missing := [name for name in TOLD if name not in self.facts]:
            raise ValueError(f"facts without {', '.join(missing)}")
        kinds = {name.rpartition("/")[0] for name in self.arrays if name.startswith(("weights/", "optimizer/"))}
        for name, shape in parameter_shapes(self.facts["widths"]).items():
            for kind in sorted(kinds | {"weights"}):
                stored = self.arrays[f"{kind}/{name}"]
                if stored.shape != shape or stored.dtype != np.dtype("<f4"):
                    raise ValueError(f"{kind}/{name} is {stored.shape} {stored.dtype}, not {shape} float32")

    def _check_cover(self) -> None:
        """Each array has exactly as many bytes with a checksum as it has, and no piece leads out of it."""
        stored = list(self.arrays.values())
        left = [array.nbytes for array in stored]
        left[list(self.arrays).index(DIGESTS)] = 0  # the checksums themselves have none
        for piece in self.pieces:
            numbers = (piece.array, piece.start, piece.run, piece.stride, piece.count)
            if min(numbers) < 0 or piece.array >= len(stored):
                raise ValueError("impossible pieces")
            if piece.start + (piece.count - 1) * piece.stride + piece.run > stored[piece.array].nbytes:
                raise ValueError("pieces that lead out of their arrays")
            left[piece.array] -= piece.size
        if any(left) or len(self.digests) != len(self.pieces):
            raise ValueError("checksums do not cover all arrays")


def parameter_shapes(widths: Sequence[int]) -> dict[str, tuple[int, ...]]:
    """The whole arrays of a network by name, layer by layer: W (in, out), b (out,)."""
    shapes: dict[str, tuple[int, ...]] = {}
    for number, (fan_in, fan_out) in enumerate(pairwise(widths)):
        shapes |= {f"W{number}": (fan_in, fan_out), f"b{number}": (fan_out,)}
    return shapes


def _look_through(path: Path) -> dict[str, Stored]:
    """Where each array is. Follows no link out of the file, and believes no size that the file has not."""
    with h5py.File(path, "r", locking=False) as file:
        if file.attrs.get("format") != FORMAT:
            raise InputError(f"{path}: this is no checkpoint of mpi_parallel, or one of another version")
        size = path.stat().st_size
        names = _dataset(file, ARRAYS)
        _stored(names, size)  # before it is read
        return {name.decode(): _stored(_dataset(file, name.decode()), size) for name in names[:].tolist()}


def _dataset(file: h5py.File, name: str) -> h5py.Dataset:
    """The dataset of this name, reached by plain links."""
    item: Any = file
    for part in name.split("/"):
        if not isinstance(item.get(part, getlink=True), h5py.HardLink):
            raise ValueError(f"{name} is not in the file itself")
        item = item[part]
    if not isinstance(item, h5py.Dataset):
        raise ValueError(f"{name} is no array")
    return item


def _stored(dataset: h5py.Dataset, size: int) -> Stored:
    """Where a plain, contiguous dataset lies in a file of `size` bytes."""
    properties, offset = dataset.id.get_create_plist(), dataset.id.get_offset()
    plain = properties.get_layout() == h5py.h5d.CONTIGUOUS and not properties.get_external_count()
    if not plain or offset is None:
        raise ValueError(f"{dataset.name} is not contiguous within the file")
    stored = Stored(offset, dataset.shape, dataset.dtype)
    if stored.dtype.hasobject or offset + stored.nbytes > size:
        raise ValueError(f"{dataset.name} leads beyond the end of the file: {size:,} bytes")
    return stored


def bytes_of(array: NDArray[Any]) -> memoryview:
    """The memory of a contiguous array."""
    return array.reshape(-1).view(np.uint8).data


def _read(file: int, to: memoryview, offset: int) -> None:
    """Fill these bytes from an offset on. Raises OSError at the end of the file."""
    while len(to):
        got = os.preadv(file, [to], offset)
        if not got:
            raise OSError("the file ends too early")
        to, offset = to[got:], offset + got
