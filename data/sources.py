"""Where Fashion-MNIST can be had: three functions that return its four arrays, checked, or raise SourceError.

Whatever the source, what counts is the SHA-256 of the *uncompressed* IDX files: Debian leaves the name and time out
of the .gz headers, so its containers differ from the publisher's while all that they contain is the same.
"""

from __future__ import annotations

import hashlib
import http.client
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from mpi_parallel.data_parallel.formats import idx_header, read_idx

Arrays = dict[str, NDArray[np.uint8]]  # by dataset: .../images (N, 28, 28), .../labels (N,)

IDX_FILES = {
    "train/images": "train-images-idx3-ubyte",
    "train/labels": "train-labels-idx1-ubyte",
    "test/images": "t10k-images-idx3-ubyte",
    "test/labels": "t10k-labels-idx1-ubyte",
}
DIGESTS = {
    "train/images": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train/labels": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "test/images": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "test/labels": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
PACKAGE = "dataset-fashion-mnist"
SITES = (
    "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion",
    "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",
)
_LARGEST_DOWNLOAD = 64 << 20
_SILENCE_S = 30  # a server that says nothing for so long is given up
_APT_LIMIT_S = 600


class SourceError(Exception):
    """A source cannot be had; the message says why."""


def sha256(array: NDArray[np.uint8]) -> str:
    """The digest of the IDX file that holds this array."""
    return hashlib.sha256(idx_header(array) + array.tobytes()).hexdigest()


def from_idx(folder: Path) -> Arrays:
    """Read the four IDX files of a folder, each plain or .gz, and check them. Raises SourceError."""
    arrays: Arrays = {}
    for dataset, name in tqdm(IDX_FILES.items(), "read and check", unit="file", leave=False, disable=None):
        path = next((p for p in (folder / name, folder / f"{name}.gz") if p.exists()), None)
        if path is None:
            raise SourceError(f"{folder} has neither {name} nor {name}.gz")
        try:
            arrays[dataset] = read_idx(path, ndim=3 if dataset.endswith("images") else 1)
        except (ValueError, OSError) as error:
            raise SourceError(str(error)) from error
        if (found := sha256(arrays[dataset])) != DIGESTS[dataset]:
            raise SourceError(f"{path} is not Fashion-MNIST's: its SHA-256 is {found}, not {DIGESTS[dataset]}")
    return arrays


# ---------------------------------------------------------------- Debian's package


def from_debian(temporary: Path) -> Arrays:
    """Unpack Debian's package into a temporary folder, by the apt sources of this machine. Raises SourceError.

    Needs no root and installs nothing. A machine without package lists gets them in the temporary folder too.
    """
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        raise SourceError("no apt-get and dpkg-deb on this machine")
    try:
        package = _apt_download(temporary, [])
    except SourceError as first:  # the package lists are missing or too old
        try:
            package = _apt_download(temporary, _own_lists(temporary))
        except SourceError as second:
            raise SourceError(f"{first}; with new package lists: {second}") from second
    unpacked = temporary / "unpacked"
    done = subprocess.run(["dpkg-deb", "-x", package, unpacked], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SourceError(f"dpkg-deb: {done.stderr.strip()}")
    return from_idx(unpacked / "usr/share/datasets/fashion-mnist")


def _own_lists(folder: Path) -> list[str]:
    """Bring the package lists into this folder; return the options that make apt-get use them."""
    print("bringing new package lists, for this once ...", flush=True)
    lists, cache = folder / "lists", folder / "cache"
    for needed in (lists / "partial", cache / "archives/partial"):
        needed.mkdir(parents=True)
    options = [f"-oDir::State={folder}", f"-oDir::State::lists={lists}", f"-oDir::Cache={cache}"]
    lines = _apt([*options, "update"], folder)
    if not any(lists.glob("*_Packages*")):  # apt-get calls that a success
        warnings = [line[2:].strip() for line in lines if line.startswith("W: Failed")]
        raise SourceError(f"apt-get update: {' '.join(warnings[:1]) or 'no lists came'}")
    return options


def _apt_download(folder: Path, options: list[str]) -> Path:
    listed = _apt([*options, "--print-uris", "download", PACKAGE], folder)
    line = next((line for line in listed if line.startswith("'")), None)  # 'address' file size digest
    if line is None:
        raise SourceError(f"apt-get knows no package {PACKAGE}")
    name, size = line.split()[1:3]
    package = folder / Path(name).name
    with tqdm(desc=PACKAGE, total=int(size), unit="B", unit_scale=True, leave=False, disable=None) as bar:
        _apt(
            [*options, "download", PACKAGE],
            folder,
            lambda: bar.update(package.stat().st_size - bar.n if package.exists() else 0),
        )
    return package


def _apt(arguments: list[str], folder: Path, meanwhile: Callable[[], object] = lambda: None) -> list[str]:
    """Run apt-get in the folder, call `meanwhile` while it runs, return its lines."""
    log = folder / "apt.log"
    command = ["apt-get", "-q", "-oAcquire::Retries=1", *arguments]
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=folder, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    try:
        end = time.monotonic() + _APT_LIMIT_S
        while process.poll() is None and time.monotonic() < end:
            meanwhile()
            time.sleep(0.05)
    finally:
        process.kill()
        process.wait()
    lines = log.read_text(errors="replace").splitlines()
    if process.returncode:
        errors = [line[2:].strip() for line in lines if line.startswith("E:")]
        raise SourceError(f"apt-get: {' '.join(errors) or f'status {process.returncode}'}")
    return lines


# ---------------------------------------------------------------- the publisher's site


def from_publisher(temporary: Path) -> Arrays:
    """Download from the first of the publisher's addresses that has the right files. Raises SourceError."""
    reasons = []
    for number, site in enumerate(SITES):
        folder = temporary / f"site-{number}"
        folder.mkdir()
        try:
            for name in IDX_FILES.values():
                _download(f"{site}/{name}.gz", folder / f"{name}.gz")
            return from_idx(folder)
        except (OSError, http.client.HTTPException, SourceError) as error:
            reasons.append(f"{site}: {error}")
    raise SourceError("; ".join(reasons))


def _download(address: str, to: Path) -> None:
    with urllib.request.urlopen(address, timeout=_SILENCE_S) as answer, to.open("wb") as file:
        size = int(answer.headers.get("Content-Length") or 0)
        with tqdm(desc=to.name, total=size or None, unit="B", unit_scale=True, leave=False, disable=None) as bar:
            while piece := answer.read(1 << 16):
                file.write(piece)
                bar.update(len(piece))
                if bar.n > _LARGEST_DOWNLOAD:
                    raise SourceError(f"{to.name} is larger than {_LARGEST_DOWNLOAD:,} bytes")
