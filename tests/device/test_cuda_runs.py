"""Whole programs on emulated GPUs, under mpirun: which rank has which, what they tell, and how they end."""

import json
import shutil
import sys
from pathlib import Path

import pytest

from tests.device.shim import BUILT, build
from tests.launch import launch
from tests.once import once
from tests.samples import write_image_set

PRETEND = Path(__file__).parent / "pretend"


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> Path:
    """The kernels, built once for all programs."""
    return build(tmp_path_factory.mktemp("kernels"))


@pytest.fixture
def path(tmp_path, library, monkeypatch) -> Path:
    monkeypatch.setenv(BUILT, str(library))
    return write_image_set(tmp_path / "set.h5", train=90, validation=20)


def train(path: Path, ranks: int, *options: str, **pretend: int):
    env = {f"PRETEND_{name.upper()}": str(value) for name, value in pretend.items()}
    env["PYTHONPATH"] = f"{PRETEND.parents[2]}:{PRETEND}"
    common = [
        "--data",
        path,
        "--out",
        path.parent / "run",
        "--progress",
        "none",
        "--no-report",
        "--batch-size",
        "30",
        "--seed",
        "1",
    ]
    return launch(ranks, "-m", "mpi_parallel.train", *common, *options, env=env)


def events(path: Path, kind: str) -> list[dict]:
    lines = (path.parent / "run" / "metrics.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["event"] == kind]


@once
class TestRuns:
    def test_ranks_with_a_gpu_each_train_and_tell_who_has_which(self, path):
        done = train(
            path, 2, "--device", "cuda", "--precision", "bfloat16", "--epochs", "8", "--lr", "0.01", gpus=2, late=1
        )
        assert done.returncode == 0, done.stderr
        shown = (path.parent / "run" / "log.txt").read_text()
        assert "rank 0: Emulated GPU at 0000:00:00.0 on " in shown
        assert "rank 1: Emulated GPU at 0000:01:00.0 on " in shown
        assert "share one GPU" not in shown
        (start,) = events(path, "start")
        assert (start["device"], start["precision"]) == ("cuda", "bfloat16")
        assert events(path, "end")[0]["test_accuracy"] > 0.7

    def test_ranks_that_share_a_gpu_are_warned_and_stream_what_does_not_fit(self, path):
        done = train(path, 2, "--holding", "streaming", "--epochs", "2", gpus=1)  # auto takes the GPU
        assert done.returncode == 0, done.stderr
        shown = (path.parent / "run" / "log.txt").read_text()
        assert "ranks 0, 1 share one GPU, Emulated GPU at 0000:00:00.0" in shown
        assert events(path, "start")[0]["device"] == "cuda"
        assert "no CUDA graphs" not in shown

    def test_reproducible_runs_end_with_the_same_weights_on_any_number_of_ranks(self, path):
        common = ("--reproducible", "--groups", "8", "--epochs", "2", "--shift", "1", "--dropout", "0.1")
        digests = set()
        ways = [(1, "exact", 0, "1"), (2, "sharded", 1, "1"), (3, "auto", 0, "1"), (2, "exact", 0, "2")]
        for ranks, merge, late, pipe in ways:
            layout = ("--merge", merge, "--pipe", pipe, "--clip-norm", "0.5")
            done = train(path, ranks, *common, *layout, gpus=ranks, late=late)
            assert done.returncode == 0, done.stderr
            assert ("no CUDA graphs" in (path.parent / "run" / "log.txt").read_text()) == (pipe == "2")
            (start,), (end,) = events(path, "start"), events(path, "end")
            assert start["device"] == "cuda"
            assert start["config"]["parallel"]["merge"] in ("exact", "sharded")
            digests.add(end["weights_sha256"])
            shutil.rmtree(path.parent / "run")
        assert len(digests) == 1
        refused = train(path, 1, *common, "--merge", "window", gpus=1)
        assert refused.returncode == 2
        assert "choose --merge auto" in refused.stderr

    def test_a_gpu_that_is_lost_ends_the_job_and_tells_what_to_do(self, path):
        done = train(path, 2, "--epochs", "100", gpus=1, launches=200, late=1, rank=1)
        assert done.returncode not in (0, 2, 3, 75)
        assert "the GPU failed: cudaErrorECCUncorrectable" in done.stderr
        assert "rank 1 on " in done.stderr
        assert "--resume auto" in done.stderr
        assert "Traceback" not in done.stderr

    def test_a_rank_without_a_gpu_among_others_is_refused_with_the_reason(self, path):
        done = train(path, 2, gpus=0, rank=1)
        assert done.returncode == 2, done.stderr
        assert "--device auto finds a GPU for 1 of 2 ranks, such as rank 0 on" in done.stderr
        assert "(CuPy finds no GPU (CUDA_VISIBLE_DEVICES hides all of them?))" in done.stderr

    def test_too_little_memory_is_the_users_to_mend(self, path):
        done = train(path, 1, "--hidden", "4000", "4000", memory=40 << 20)
        assert done.returncode == 2, done.stderr
        assert "the GPU's memory does not suffice: Out of memory allocating" in done.stderr
        assert "--micro-batch" in done.stderr
        assert "Traceback" not in done.stderr


def test_the_pretended_cupy_is_found_by_nobody_else():
    assert str(PRETEND) not in sys.path
