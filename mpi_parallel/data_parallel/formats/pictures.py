"""Folders of pictures, a folder a class: PNG, JPEG, TIFF and what else Pillow reads."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from mpi_parallel.data_parallel.formats.source import Piece, Source, SourceOptions, Units
from mpi_parallel.options import InputError

ENDINGS = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".gif", ".webp", ".pgm", ".ppm")
A_UNIT = 64  # pictures
MOST_PIXELS = 1 << 26  # of one picture; a file of a kilobyte may promise many more
SPLIT_FOLDERS = {
    "train": "train", "val": "validation", "valid": "validation", "validation": "validation", "test": "test",
}  # fmt: skip
DEEP = ("I;16", "I;16L", "I;16B", "I;16N")  # Pillow's names of 16-bit grey


def picture_sources(path: Path, options: SourceOptions, split: str | None = None) -> list[Source]:
    """The source of a folder of class folders, or those of its splits where it has such: train, test and others."""
    folders = _folders(path)
    splits = {folder.name.lower() for folder in folders}
    if split or "train" not in splits or not splits <= SPLIT_FOLDERS.keys() or not any(map(_folders, folders)):
        return [PictureSource(path, options, split)]
    return [PictureSource(folder, options, SPLIT_FOLDERS[folder.name.lower()]) for folder in folders]


class PictureSource:
    """Class folders (the protocol is that of formats.source); labels are the folders' names."""

    named = True
    names: tuple[str, ...] = ()
    written = False

    def __init__(self, path: Path, options: SourceOptions, split: str | None = None) -> None:
        if options.greyscale and options.colour:
            raise InputError("--greyscale and --colour are two ways to make pictures alike: give one of them")
        self._decoder, self._asked = Decoder(options.greyscale, _size(options.size)), "RGB" if options.colour else None
        self.path, self.split = path, split
        self._files = _listed(path)
        self._mode, self.shape = self._first()
        self.units: int | None = -(-len(self._files) // A_UNIT)

    def pieces(self, mine: Units) -> Iterator[tuple[int, Piece]]:
        """Number and rows of each of the units that are mine."""
        for unit in mine:
            yield unit, self._piece(self._files[unit * A_UNIT : (unit + 1) * A_UNIT])

    def where(self, row: int) -> str:
        """The picture's file."""
        return str(self._files[row])

    def _first(self) -> tuple[str, tuple[int, ...]]:
        """The kind and shape of the first picture that can be read, which all others have to have."""
        for file in self._files:
            try:
                pixels, mode = self._decoder.decode(file, self._asked)
            except Undecodable:
                continue
            return mode, pixels.shape
        raise InputError(f"{self.path}: none of its {len(self._files)} pictures can be read")

    def _piece(self, files: list[Path]) -> Piece:
        images, labels, rows, bad = [], [], [], []
        for row, file in enumerate(files):
            try:
                pixels, _ = self._decoder.decode(file, self._mode)
            except Undecodable as error:
                bad.append((row, str(error)))
                continue
            if pixels.shape != self.shape:
                raise InputError(
                    f"{file} is {' x '.join(map(str, pixels.shape))}, but the first picture of {self.path} is "
                    f"{' x '.join(map(str, self.shape))}; --size HxW makes them alike"
                )
            images.append(pixels)
            labels.append(file.relative_to(self.path).parts[0])
            rows.append(row)
        stack = np.stack(images) if images else np.empty((0, *self.shape), np.uint8)
        return Piece(stack, np.array(labels, object), np.array(rows, np.int64), len(files), bad)


class Decoder:
    """Reads pictures, makes them grey where that is asked for and resizes them to `size` (height, width)."""

    def __init__(self, grey: bool, size: tuple[int, int] | None) -> None:
        """Raises InputError where Pillow is not installed."""
        _pillow()
        self._grey, self._size = grey, size

    def decode(self, file: Path, mode: str | None = None) -> tuple[NDArray[Any], str]:
        """Pixels (H, W) or (H, W, 3), of the mode that is asked for or else of the picture's own; and the mode.

        Raises Undecodable for a file that is none, InputError for one of another mode.
        """
        from PIL import Image

        if file.exists() and not file.is_file():  # reading from a pipe would wait for a writer
            raise Undecodable("is not a file")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of its size: that is looked at here
                with Image.open(file) as picture:
                    if picture.width * picture.height > MOST_PIXELS:
                        raise Undecodable(f"promises {picture.width} x {picture.height} pixels")
                    _refuse_deep_colours(picture, file)
                    mode = self._common(picture.mode, mode, file)
                    return self._pixels(picture, mode), mode
        except InputError:
            raise
        except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
            raise Undecodable(f"cannot be decoded: {error}") from error

    def _common(self, own: str, wanted: str | None, file: Path) -> str:
        kind = "I;16" if own in DEEP else own if own in ("I", "F") else "L" if own in ("1", "L", "LA") else "RGB"
        if self._grey:
            kind = "L" if kind == "RGB" else kind
        if wanted in (None, kind) or (wanted, kind) == ("RGB", "L"):
            return wanted or kind
        hint = "; --greyscale or --colour makes them alike" if (wanted, kind) == ("L", "RGB") else ""
        raise InputError(f"{file} is {kind}, but the first picture is {wanted}{hint}")

    def _pixels(self, picture: Any, mode: str) -> NDArray[Any]:
        if mode in ("L", "RGB"):
            picture = picture.convert(mode)
        if self._size:
            from PIL import Image

            picture = picture.resize(self._size[::-1], Image.Resampling.BILINEAR)
        pixels: NDArray[Any] = np.asarray(picture)
        return pixels.astype(pixels.dtype.newbyteorder("="), copy=False)


class Undecodable(Exception):
    """A picture cannot be had; the message says why."""


def _refuse_deep_colours(picture: Any, file: Path) -> None:
    """Raise InputError for colours and opacities of 16 bits, of which Pillow would read 8 without a word."""
    layouts = [tile[3] for tile in picture.tile]
    raw = [layout if isinstance(layout, str) else layout[0] for layout in layouts if layout]
    if picture.mode in ("RGB", "RGBA", "LA") and any(";16" in str(kind) for kind in raw):
        raise InputError(f"{file} has colours of 16 bits, of which Pillow reads 8: save 8 bits, or arrays (NPZ)")


def _listed(path: Path) -> list[Path]:
    """The pictures of all class folders and those below them, by folder and name."""
    files = [file for kind in _folders(path) for file in sorted(pictures_below(kind))]
    if not files:
        raise InputError(f"{path}: a folder of class folders with pictures is wanted, and there are no pictures")
    return files


def pictures_below(path: Path) -> Iterator[Path]:
    """The pictures in a folder and below, none that is hidden. Raises InputError for folders that cannot be read."""
    for folder, below, names in os.walk(path, onerror=_unreadable):  # follows no links: they may go in circles
        below[:] = [name for name in below if not name.startswith(".")]
        yield from (Path(folder) / name for name in names if _is_picture(name))


def _folders(path: Path) -> list[Path]:
    """The folders in a folder, by name; hidden ones are passed over."""
    try:
        return sorted(folder for folder in path.iterdir() if folder.is_dir() and not folder.name.startswith("."))
    except OSError as error:
        _unreadable(error)


def _is_picture(name: str) -> bool:
    """Whether a file of this name is taken: hidden ones, such as macOS puts beside pictures, are not."""
    return Path(name).suffix.lower() in ENDINGS and not name.startswith(".")


def _unreadable(error: OSError) -> NoReturn:
    raise InputError(f"{error.filename}: cannot be read: {error}") from None


def _size(asked: str | None) -> tuple[int, int] | None:
    if asked is None:
        return None
    found = re.fullmatch(r"(\d+)x(\d+)", asked)
    if not found or "0" in found.groups():
        raise InputError(f"--size {asked}: height x width in pixels, as 28x28")
    size = int(found[1]), int(found[2])
    if size[0] * size[1] > MOST_PIXELS:
        raise InputError(f"--size {asked}: more than {MOST_PIXELS:,} pixels of a picture")
    return size


def _pillow() -> None:
    try:
        import PIL.Image  # noqa: F401 - here, because only pictures need it
    except ImportError:
        raise InputError("pictures are read with Pillow: pip install 'mpi_parallel[pictures]'") from None
