"""benchmarks/parity.py on an emulated GPU: what it takes for agreement."""

import sys
from pathlib import Path

import pytest

from tests.device.emulated import installed
from tests.device.opened import opened
from tests.once import once

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import parity

pytestmark = once


@pytest.fixture(autouse=True)
def small(monkeypatch):
    for name, value in {"ROWS": 64, "FEATURES": 40, "BATCH": 16}.items():
        monkeypatch.setattr(parity, name, value)


@pytest.mark.parametrize(("way", "at_once"), [("float32", False), ("float16", False), ("at-once", True)])
def test_replayed_steps_agree(monkeypatch, way, at_once):
    opened(monkeypatch, installed(monkeypatch))
    told = parity.compare("cuda", way, 5)
    assert told["agrees"], told
    assert (told["replays"], told["at_once"]) == (True, at_once)


def test_steps_that_are_not_replayed_prove_nothing(monkeypatch):
    """Where cublasLt is missing, CuPy multiplies, as well as any, but not in a graph."""
    opened(monkeypatch, installed(monkeypatch), lt=False)
    told = parity.compare("cuda", "float32", 5)
    assert told["replay_is_eager"]
    assert not told["replays"]
    assert not told["agrees"]


def test_nor_do_those_that_go_layer_by_layer_where_they_should_not(monkeypatch):
    opened(monkeypatch, installed(monkeypatch))
    monkeypatch.setattr("mpi_parallel.device.cuda_small.MOST_ROWS", 8)
    told = parity.compare("cuda", "at-once", 5)
    assert not told["at_once"]
    assert not told["agrees"]
