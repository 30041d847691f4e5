"""What all tests share."""

import pytest
from hypothesis import settings

from mpi_parallel.device import tuning

pytest_plugins = ["tests.ranks"]

# Every rank must draw the same examples, so nothing may depend on chance, on the clock or on what a rank has stored.
settings.register_profile("ranks", derandomize=True, database=None, deadline=None)
settings.load_profile("ranks")


@pytest.fixture(autouse=True)
def nothing_is_cached(monkeypatch):
    """What emulated GPUs are measured to do is kept nowhere."""
    monkeypatch.setattr(tuning, "cache_folder", lambda: None)
