"""One cluster for all tests, and a folder to submit from for each."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster, missing

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    if lacking := missing():
        pytest.skip(f"no Slurm on this machine, as these are missing: {', '.join(lacking)}")
    with Cluster() as cluster:
        yield cluster


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder to submit from, with what the root of the repository has for it."""
    return _like_the_root(tmp_path)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Such a folder for all tests of a module."""
    return _like_the_root(tmp_path_factory.mktemp("root"))


def _like_the_root(folder: Path) -> Path:
    (folder / "jobs").symlink_to(ROOT / "jobs")
    (folder / ".venv").symlink_to(sys.prefix)
    return folder
