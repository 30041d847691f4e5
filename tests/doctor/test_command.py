"""`python -m mpi_parallel.doctor` as a batch script runs it."""

import json

import pytest

from mpi_parallel.device.host import cpu_flags
from tests.launch import launch
from tests.samples import write_image_set

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
    grids = [each["grid"] for each in told["memory"]["forecasts"]]
    assert {"data": 2, "pipe": 1, "tensor": 1} in grids
    assert len(grids) == 3
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


def test_a_gpu_that_is_asked_for_and_missing_is_a_problem(tmp_path):
    hidden = {"CUDA_VISIBLE_DEVICES": ""}
    ended = launch(None, *DOCTOR, "--folder", tmp_path, "--no-speed", "--device", "cuda", env=hidden)
    assert ended.returncode == 1
    assert "problem: rank 0: --device cuda: " in ended.stdout
    assert ended.stdout.splitlines()[-1].startswith("not ready: 1 problem")


@pytest.mark.skipif("avx2" not in cpu_flags(), reason="no kernels of OpenBLAS are too old for this CPU")
def test_blas_kernels_below_the_cpu_are_a_warning_and_strictly_a_problem(tmp_path):
    older = "Haswell" if "avx512f" in cpu_flags() else "Nehalem"
    pinned = {"OPENBLAS_CORETYPE": older}
    ended = launch(None, *DOCTOR, "--folder", tmp_path, "--no-speed", "--strict", env=pinned)
    assert ended.returncode == 1
    assert f"OPENBLAS_CORETYPE={older} asks for them: unset it" in ended.stdout


def test_a_network_that_no_rank_has_the_memory_for_is_a_problem(tmp_path):
    """And nothing of its size is allocated to find that out."""
    data = write_image_set(tmp_path / "set.h5")
    ended = launch(None, *DOCTOR, "--data", data, "--no-speed", "--hidden", "3000000", "3000000")
    assert ended.returncode == 1
    assert "problem: no grid of 1 ranks has the memory for 12 - 3000000 - 3000000 - 3" in ended.stdout


def test_the_grid_for_some_data_is_proposed(tmp_path):
    data = write_image_set(tmp_path / "set.h5")
    ended = launch(2, *DOCTOR, "--data", data, "--no-speed", "--json")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert json.loads(ended.stdout)["memory"]["layout"] == {"data": 2, "pipe": 1, "tensor": 1}


def test_a_folder_that_cannot_be_written_is_a_problem():
    ended = launch(None, *DOCTOR, "--folder", "/proc", "--no-speed")
    assert ended.returncode == 1
    assert "problem: /proc: cannot be written" in ended.stdout


def test_a_folder_that_is_not_there():
    ended = launch(None, *DOCTOR, "--folder", "/nowhere")
    assert ended.returncode == 2
    assert "--folder /nowhere: there is no such folder" in ended.stderr
