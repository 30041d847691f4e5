"""Bring the whole Fashion-MNIST into one HDF5 file, or cut the small set that is committed beside this script.

    python data/fashion_mnist.py                     # 60,000 + 10,000 images into data/fashion-mnist.h5
    python data/fashion_mnist.py --idx FOLDER        # the same from IDX files that are here already
    python data/fashion_mnist.py --small             # 12,000 + 2,000 of them into data/fashion-mnist-small.h5

Sources, in this order: the IDX files that the user names; Debian's package; the publisher's site. README.md, beside
this script, describes the files that it writes. Exit status: 0 the file is there, 2 it could not be made.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

HERE = Path(__file__).resolve().parent
WHOLE_FILE = HERE / "fashion-mnist.h5"
SMALL_FILE = HERE / "fashion-mnist-small.h5"
sys.path[:0] = [str(HERE), str(HERE.parent)]  # so that it runs in a checkout where nothing is installed

import sources  # noqa: E402
from sources import Arrays, SourceError, sha256  # noqa: E402

CLASSES = ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]
SMALL_PER_CLASS = {"train": 1200, "test": 200}
SMALL_SEED = 0
SMALL_DIGESTS = {  # of each array with an IDX header before it, as in sources.DIGESTS
    "train/images": "9ab93b64f7fcc61e957e78f8ecdd06bf7cc33463fda11e3efa970a6e9e389006",
    "train/labels": "27f745ade5411160091d9da6c16e697ae0c9db2d61253784d6ae77439ed60736",
    "test/images": "de96a67ffc630cea7e2869cdbbcd0311792d3ff021fcdeef90de1ab3cb18dc88",
    "test/labels": "ff598322307dae4ed125cfd1bafafe2dd0fbecaf39a9475e7b570f7372fb0423",
}
# Ranks read contiguous shards, 187 rows each with the default 64. Read shard by shard, chunks of 125 rows cost 1.2
# times the decoding of one pass and chunks of 1,000 five times; 125 also divides both splits.
SMALL_CHUNK = 125
LIBVER = ("v108", "v110")  # fixed for the same bytes from every HDF5; each one since 1.8 (2008) can read it
ATTRIBUTES = {"classes", "mean", "std", "seed", "source", "licence", "format_version"}
LARGEST = 60_000 * 28 * 28


def main() -> None:
    """Entry point."""
    options = parse_options()
    for number in (signal.SIGINT, signal.SIGTERM):  # leave by the way that removes the temporary files
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    try:
        if options.force or not is_there(options.to, SMALL_DIGESTS if options.small else sources.DIGESTS):
            make(options)
    except (SourceError, OSError) as error:
        print(f"fashion_mnist.py: {error}", file=sys.stderr)
        sys.exit(2)


def parse_options() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description="Bring Fashion-MNIST into one HDF5 file.")
    parser.add_argument("--to", type=Path, help="the file to write (default: data/fashion-mnist[-small].h5)")
    parser.add_argument("--idx", type=Path, metavar="FOLDER", help="take the four IDX files, plain or .gz, from here")
    parser.add_argument("--small", action="store_true", help="cut 12,000 + 2,000 images instead of writing all")
    parser.add_argument("--force", action="store_true", help="write the file even when there is one")
    options = parser.parse_args()
    options.to = options.to or (SMALL_FILE if options.small else WHOLE_FILE)
    return options


def is_there(to: Path, digests: dict[str, str]) -> bool:
    """Whether the right file is there already. Raises SourceError where something else is in its place."""
    if not to.exists():
        return False
    if not holds(to, digests):
        raise SourceError(f"{to} is there but is not this set: move it away, or replace it with --force")
    print(f"{to} is there already, and right")
    return True


def make(options: argparse.Namespace) -> None:
    """Write the file that the options ask for."""
    with renamed_when_whole(options.to) as temporary:
        arrays = whole(options)
        if options.small:
            arrays = cut(arrays, SMALL_PER_CLASS, SMALL_SEED)
        write(temporary, arrays, chunk=SMALL_CHUNK if options.small else None)
    rows = " + ".join(f"{len(arrays[f'{split}/labels']):,}" for split in ("train", "test"))
    print(f"{options.to}: {rows} images, {options.to.stat().st_size:,} bytes")


# ---------------------------------------------------------------- from the sources


def whole(options: argparse.Namespace) -> Arrays:
    """The whole set, from the first source that has it. Raises SourceError with every source's reason.

    The small set is cut from the whole file where that is beside it already.
    """
    if options.idx:  # named by the user, so nothing else is meant
        return sources.from_idx(options.idx)
    if options.small and holds(WHOLE_FILE, sources.DIGESTS):
        with h5py.File(WHOLE_FILE, "r", locking=False) as file:
            return {name: file[name][...] for name in sources.DIGESTS}
    tried = []
    with tempfile.TemporaryDirectory(prefix="fashion-mnist-") as temporary:
        for name, source in (("Debian's package", sources.from_debian), ("publisher's site", sources.from_publisher)):
            print(f"trying {name} ...", flush=True)
            try:
                return source(Path(temporary))
            except SourceError as error:
                tried.append(f"  {name}: {error}")
    raise SourceError(
        "Fashion-MNIST could not be had. Tried:\n"
        + "\n".join(tried)
        + "\nCopy these files, plain or .gz, from where they can be had and name their folder with --idx FOLDER:\n  "
        + " ".join(sources.IDX_FILES.values())
    )


def cut(arrays: Arrays, per_class: dict[str, int], seed: int) -> Arrays:
    """A stratified part of each split, in shuffled order.

    Row r of a split has the key SHA-256("seed split r"). A class gives the rows with the lowest first halves of their
    keys; the rows chosen are put in the order of the second halves. No random generator is involved, so the choice is
    the same in every version of every library.
    """
    small: Arrays = {}
    for split, count in per_class.items():
        images, labels = arrays[f"{split}/images"], arrays[f"{split}/labels"]
        keys = [hashlib.sha256(f"{seed} {split} {row}".encode()).digest() for row in range(len(labels))]
        chosen: list[int] = []
        for label in range(len(CLASSES)):
            rows = np.flatnonzero(labels == label).tolist()
            chosen += sorted(rows, key=lambda row: keys[row][:16])[:count]
        chosen.sort(key=lambda row: keys[row][16:])
        small[f"{split}/images"], small[f"{split}/labels"] = images[chosen], labels[chosen]
    return small


# ---------------------------------------------------------------- to the file


def write(path: Path, arrays: Arrays, chunk: int | None = None) -> None:
    """Write the data set.

    `chunk` compresses the images, so many rows a chunk; without it they are contiguous, which reads fastest.
    """
    compressed = {"chunks": (chunk, 28, 28), "compression": "gzip", "compression_opts": 9} if chunk else {}
    with h5py.File(path, "w", libver=LIBVER) as file:
        file.attrs.update(attributes(arrays))
        for name, array in arrays.items():
            layout = compressed if name.endswith("images") else {}
            dataset = file.create_dataset(name, array.shape, np.uint8, track_times=False, **layout)
            for rows in tqdm(blocks(len(array)), f"write {name}", leave=False, disable=None):
                dataset[rows] = array[rows]


def attributes(arrays: Arrays) -> dict[str, Any]:
    """The root attributes of the file."""
    mean, std = mean_and_std(arrays["train/images"])
    train, test = len(arrays["train/labels"]), len(arrays["test/labels"])
    parts = f"{train:,} of 60,000 training and {test:,} of 10,000 test images"
    return {
        "classes": CLASSES,
        "mean": mean,
        "std": std,
        "seed": SMALL_SEED,
        "source": f"Fashion-MNIST, https://github.com/zalandoresearch/fashion-mnist, {parts}",
        "licence": "MIT, Copyright (c) 2017 Zalando SE, https://tech.zalando.com",
        "format_version": 1,
    }


def mean_and_std(images: NDArray[np.uint8]) -> tuple[float, float]:
    """Mean and standard deviation of all pixels, in raw values 0..255, exact but for the last rounding."""
    histograms = [np.bincount(images[rows].ravel(), minlength=256) for rows in blocks(len(images))]
    counts = np.sum(histograms, axis=0).tolist()  # Python's integers from here on: they do not round or overflow
    total = sum(value * count for value, count in enumerate(counts))
    squares = sum(value * value * count for value, count in enumerate(counts))
    n = images.size
    return total / n, math.sqrt((n * squares - total * total) / n**2)


def holds(path: Path, digests: dict[str, str]) -> bool:
    """Whether the file is a data set of our layout with exactly these images and labels."""
    try:
        with h5py.File(path, "r", locking=False) as file:
            if file.attrs["format_version"] != 1 or not set(file.attrs) >= ATTRIBUTES:
                return False
            return all(_digest(file[name]) == digest for name, digest in digests.items())
    except (OSError, KeyError, TypeError, ValueError):
        return False


def _digest(dataset: h5py.Dataset) -> str:
    if dataset.dtype != np.uint8 or dataset.size > LARGEST:  # before anything is read
        return ""
    return sha256(dataset[...])


def blocks(rows: int, size: int = 1000) -> list[slice]:
    """Cut so many rows into blocks. A multiple of the chunk, so that no chunk is compressed twice."""
    return [slice(start, min(start + size, rows)) for start in range(0, rows, size)]


@contextmanager
def renamed_when_whole(to: Path) -> Iterator[Path]:
    """Give a temporary file beside `to`, so that `to` is whole or not there at all.

    It is renamed when the block ends well and removed when it does not. That the folder can be written to is known
    before the block, which may take long, begins.
    """
    to.parent.mkdir(parents=True, exist_ok=True)
    temporary = to.with_name(f"{to.stem}.unfinished-{os.getpid()}.h5")
    try:
        temporary.touch()
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(to)
    finally:
        temporary.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
