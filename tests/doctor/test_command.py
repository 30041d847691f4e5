"""`python -m mpi_parallel.doctor` as a batch script runs it."""

import json
from pathlib import Path

import pytest

from mpi_parallel.device.host import cpu_flags
from tests.launch import launch

DOCTOR = ("-m", "mpi_parallel.doctor")


def test_two_ranks_as_json(tmp_path):
    ended = launch(2, *DOCTOR, "--folder", tmp_path, "--json")
    assert ended.stderr == ""
    told = json.loads(ended.stdout)
    assert (ended.returncode, told["status"], told["problems"]) == (0, 0, [])
    assert told["mpi"]["thread_level"] in ("single", "funneled", "serialized", "multiple")
    assert [rank["rank"] for rank in told["ranks"]["ranks"]] == [0, 1]
    assert told["choices"]["merge"] == min(told["choices"]["merge_seconds"], key=told["choices"]["merge_seconds"].get)
    assert abs(told["clocks"]["skew"]) < 0.1
    speeds = ("memory_bytes_per_second", "sgemm_flops", "latency_in_a_node", "bytes_per_second_in_a_node",
              "allreduce_seconds", "disk_write_bytes_per_second", "disk_read_bytes_per_second")  # fmt: skip
    assert all(told["speed"][name] > 0 for name in speeds)
    assert list(tmp_path.iterdir()) == []


def test_alone_as_a_table_with_json_beside_it(tmp_path):
    ended = launch(None, *DOCTOR, "--folder", tmp_path, "--no-speed", "--json", tmp_path / "told.json")
    assert (ended.returncode, ended.stderr) == (0, "")
    lines = ended.stdout.splitlines()
    assert lines[-1].startswith("ready")
    assert {"mpi", "ranks", "arithmetic", "versions", "storage", "clocks", "choices"} <= set(lines)
    assert json.loads((tmp_path / "told.json").read_text())["choices"]["merge"] == "flat"


@pytest.mark.skipif(Path("/dev/nvidia0").exists(), reason="there is a GPU")
def test_a_gpu_that_is_asked_for_and_missing_is_a_problem(tmp_path):
    ended = launch(None, *DOCTOR, "--folder", tmp_path, "--no-speed", "--device", "cuda")
    assert ended.returncode == 1
    assert "problem: rank 0: --device cuda: " in ended.stdout
    assert ended.stdout.splitlines()[-1].startswith("not ready: 1 problem")


@pytest.mark.skipif("avx512f" not in cpu_flags(), reason="Haswell's kernels are right for this CPU")
def test_blas_kernels_below_the_cpu_are_a_warning_and_strictly_a_problem(tmp_path):
    pinned = {"OPENBLAS_CORETYPE": "Haswell"}
    ended = launch(None, *DOCTOR, "--folder", tmp_path, "--no-speed", "--strict", env=pinned)
    assert ended.returncode == 1
    assert "OPENBLAS_CORETYPE=Haswell asks for them: unset it" in ended.stdout


def test_a_folder_that_cannot_be_written_is_a_problem():
    ended = launch(None, *DOCTOR, "--folder", "/proc", "--no-speed")
    assert ended.returncode == 1
    assert "problem: /proc: cannot be written" in ended.stdout


def test_a_folder_that_is_not_there():
    ended = launch(None, *DOCTOR, "--folder", "/nowhere")
    assert ended.returncode == 2
    assert "--folder /nowhere: there is no such folder" in ended.stderr
