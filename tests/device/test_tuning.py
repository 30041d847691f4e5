"""Choices of algorithms that outlive a process: kept whole, never trusted, and no business of reproducible runs."""

import json
from itertools import cycle
from pathlib import Path

import numpy as np
import pytest

from mpi_parallel.device import cuda, tuning
from mpi_parallel.device.cublaslt import CublasLt
from mpi_parallel.device.cuda import Cuda
from mpi_parallel.device.cuda_products import CudaProducts
from mpi_parallel.device.tuning import Tuning, tuning_file
from tests.device.emulated import emulated, installed
from tests.device.fake_lt import FakeLt
from tests.device.operands import normal
from tests.device.shim import compiler
from tests.device.where import on
from tests.once import once

pytestmark = once

BROKEN = ["", "{", "[]", '{"format": 0, "algorithms": {"a": "b"}}', '{"format": 1, "algorithms": 3}', "\x00\xff"]


def multiplied(path, seconds, writes=True):
    """The algorithms that a process runs for one product, taken twice; those of its measuring are among them."""
    compiler()
    cupy, left = emulated(), cycle(seconds)  # all algorithms are measured in turn, and once more

    def time(launch):
        launch()
        return next(left)

    library = FakeLt(cupy.do)
    kernels = CudaProducts(cupy, CublasLt(library, 4096, 1001, time, Tuning(path, writes)))
    for _ in range(2):
        kernels.linear(on(normal(4, 8)), on(normal(8, 4)), None, on(np.zeros((4, 4), np.float32)), False)
    return library.run


def test_a_later_process_takes_the_fastest_without_measuring(tmp_path):
    path = tmp_path / "a" / "b.json"
    assert multiplied(path, [3.0, 1.0]) == [1, 2, 1, 2, 2, 2]
    assert multiplied(path, []) == [2, 2]
    assert [file.name for file in path.parent.iterdir()] == ["b.json"]  # and nothing unfinished


def test_only_one_process_of_a_node_writes(tmp_path):
    multiplied(tmp_path / "b.json", [3.0, 1.0], writes=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", BROKEN)
def test_a_broken_file_is_as_good_as_none(tmp_path, text):
    path = tmp_path / "b.json"
    path.write_text(text)
    assert multiplied(path, [3.0, 1.0]) == [1, 2, 1, 2, 2, 2]
    assert multiplied(path, []) == [2, 2]


def test_what_the_library_does_not_propose_is_measured_anew(tmp_path):
    path = tmp_path / "b.json"
    multiplied(path, [3.0, 1.0])
    held = json.loads(path.read_text())
    held["algorithms"] = dict.fromkeys(held["algorithms"], "77" * 64)
    path.write_text(json.dumps(held))
    assert multiplied(path, [1.0, 3.0]) == [1, 2, 1, 2, 1, 1]


def test_what_could_not_be_measured_is_not_kept(tmp_path):
    multiplied(tmp_path / "b.json", [0.0, 0.0])
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_to_costs_nothing(tmp_path):
    (tmp_path / "file").touch()
    assert multiplied(tmp_path / "file" / "b.json", [3.0, 1.0]) == [1, 2, 1, 2, 2, 2]


def test_processes_keep_what_others_have_found_meanwhile(tmp_path):
    one, other = Tuning(tmp_path / "b.json"), Tuning(tmp_path / "b.json")
    one.keep("p", "01")
    other.keep("q", "02")
    assert Tuning(tmp_path / "b.json").known == {"p": "01", "q": "02"}


def test_a_gpu_finds_the_file_of_its_kind_but_not_in_a_reproducible_run(tmp_path, monkeypatch):
    compiler()
    monkeypatch.setattr(tuning, "cache_folder", lambda: tmp_path)
    for rank, measure, files in ((1, True, 0), (0, False, 0), (0, True, 1)):
        cupy = installed(monkeypatch)
        library = FakeLt(cupy.do)
        monkeypatch.setattr(cuda, "load", lambda find, major, library=library: library)
        device = Cuda(rank, measure=measure)
        x, W = device.to_device(normal(4, 8)), device.to_device(normal(8, 4))
        device.kernels.linear(x, W, None, device.to_device(np.zeros((4, 4), np.float32)), False)
        assert len(list(tmp_path.iterdir())) == files
        assert (len(library.run) > 1) == measure
    assert next(tmp_path.iterdir()).name == "cublaslt-Emulated-GPU-driver-13000-version-120900.json"


def test_the_folder_is_that_of_the_specification(tmp_path, monkeypatch):
    monkeypatch.undo()  # what keeps other tests away from it
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert tuning.cache_folder() == tmp_path / "mpi_parallel"
    assert tuning_file("A/B 1", 2, 3) == tmp_path / "mpi_parallel" / "cublaslt-A-B-1-driver-2-version-3.json"
    monkeypatch.setenv("XDG_CACHE_HOME", "not/absolute")
    monkeypatch.setenv("HOME", "/home/me")
    assert tuning.cache_folder() == Path("/home/me/.cache/mpi_parallel")
