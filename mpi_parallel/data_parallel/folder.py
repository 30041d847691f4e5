"""A folder of pictures as a network wants them, without classes: `predict --data FOLDER`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpi_parallel.data_parallel.dataset import Selection
from mpi_parallel.data_parallel.formats.pictures import ENDINGS, Decoder, Undecodable, pictures_below
from mpi_parallel.data_parallel.split import Split
from mpi_parallel.options import InputError


@dataclass(frozen=True, eq=False)
class PictureSplit(Split):
    """Pictures that are decoded when they are read."""

    files: tuple[Path, ...] = ()
    decoder: Decoder | None = None

    def read(self, part: range, images: NDArray[Any] | None = None) -> tuple[NDArray[Any], NDArray[np.int32]]:
        """The part's pictures (n, features), and zeros. Raises InputError for what cannot be decoded."""
        if not self.features:
            return self.empty(len(part)), np.zeros(len(part), np.int32)
        assert self.decoder is not None
        mode = "RGB" if len(self.shape) == 3 else None
        decoded = []
        for file in self.files[part.start : part.stop]:
            try:
                pixels, _ = self.decoder.decode(file, mode)
            except Undecodable as error:
                raise InputError(f"{file} {error}; move it out of the folder") from None
            decoded.append(pixels.reshape(-1))
        stack = np.stack(decoded) if decoded else self.empty(0)
        if images is not None:
            images[...] = stack
        return stack, np.zeros(len(part), np.int32)


def open_folder(path: Path, shape: tuple[int, ...]) -> Selection:
    """All pictures in a folder and those below it, by their paths; made as large as `shape`, and grey if it is (H, W).

    Raises InputError where there are none, or where `shape` is not that of a picture.
    """
    if len(shape) not in (2, 3) or shape[2:] not in ((), (3,)):
        raise InputError(
            f"--data {path} is a folder of pictures, but the network takes images {' x '.join(map(str, shape))}, "
            "which pictures are not: give an HDF5 file"
        )
    files = tuple(sorted(file for file in pictures_below(path) if file.is_file()))
    if not files:
        raise InputError(f"--data {path}: there are no pictures ({', '.join(ENDINGS)}) in this folder")
    decoder = Decoder(len(shape) == 2, (shape[0], shape[1]))
    byte = np.dtype(np.uint8)
    split = PictureSplit(str(path), "pictures", None, len(files), shape, byte, files=files, decoder=decoder)
    return Selection(split, None, None, None)
