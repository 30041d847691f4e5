"""The batch scripts of jobs/, submitted to a real Slurm as a user submits them."""

from __future__ import annotations

import os
import signal
import sys
import uuid
from pathlib import Path

import pytest

from tests.launch import MARK
from tests.slurm.cluster import PATH, Cluster
from tests.slurm.evidence import DATA, MPICH, events, log, ranks

pytestmark = pytest.mark.slurm
TWO = ["--ntasks=2"]


@pytest.mark.parametrize("settings", [{}, MPICH, {"LAUNCHER": "mpirun"}], ids=["openmpi", "mpich", "mpirun"])
def test_the_cpu_job_runs_to_its_end(cluster: Cluster, folder: Path, settings: dict[str, str]):
    number = cluster.submit(folder, "cpu.sbatch", DATA, "--epochs", "2", **settings)
    ended = cluster.ended(number)
    assert (ended["JobState"], ended["ExitCode"]) == ("COMPLETED", "0:0"), log(folder)
    start, *_, end = events(folder, f"slurm-{number}")
    assert start["ranks"] == 4 and end["reason"] == "finished" and end["epochs"] == 2


def test_a_job_runs_in_the_environment_that_was_active(cluster: Cluster, folder: Path):
    """As after `pip install` into one's own: the folder that it is submitted from has none."""
    (folder / ".venv").unlink()
    active = {"VIRTUAL_ENV": sys.prefix, "PATH": f"{sys.prefix}/bin:{PATH}"}
    ended = cluster.ended(cluster.submit(folder, "cpu.sbatch", DATA, "--epochs", "1", **active))
    assert (ended["JobState"], ended["ExitCode"]) == ("COMPLETED", "0:0"), log(folder)


@pytest.mark.parametrize("settings", [{}, MPICH], ids=["openmpi", "mpich"])
def test_two_ranks_on_each_of_two_nodes_from_the_nodes_own_disk(cluster, folder, tmp_path, settings):
    number = cluster.submit(folder, "nodes.sbatch", DATA, "--epochs", "1", TMPDIR=str(tmp_path), **settings)
    ended = cluster.ended(number)
    assert (ended["JobState"], ended["NumNodes"]) == ("COMPLETED", "2"), log(folder)
    start = events(folder, f"slurm-{number}")[0]
    staged = tmp_path / f"mpi_parallel-{number}"
    assert start["ranks"] == 4 and start["config"]["data"]["data"] == str(staged / "data.h5")
    assert not staged.exists()


def test_an_array_trains_a_seed_a_job(cluster: Cluster, folder: Path):
    number = cluster.submit(folder, "seeds.sbatch", DATA, "--epochs", "1", options=["--array=0-1"])
    cluster.wait_for("end of the array", lambda: cluster.run("squeue", "-h", "-j", str(number), check=False) == "", 90)
    ends = [events(folder, f"seeds-{number}/seed-{seed}")[-1] for seed in (0, 1)]
    assert ends[0]["reason"] == ends[1]["reason"] == "finished"
    assert ends[0]["weights_sha256"] != ends[1]["weights_sha256"]


@pytest.mark.parametrize("settings", [{}, {"LAUNCHER": "mpirun"}], ids=["srun", "mpirun"])
def test_a_sweep_over_ranks_tells_how_it_scales(cluster: Cluster, folder: Path, settings: dict[str, str]):
    number = cluster.submit(folder, "scaling.sbatch", DATA, "--epochs", "1", options=TWO, **settings)
    assert cluster.ended(number)["JobState"] == "COMPLETED", log(folder)
    assert [events(folder, f"scaling-{number}/ranks-{n}")[0]["ranks"] for n in (1, 2)] == [1, 2]
    assert "ranks  samples/s  times" in log(folder)


def test_the_gpu_job_gives_each_rank_a_gpu_and_says_where_cupy_is_missing(cluster: Cluster, folder: Path):
    """The cluster's GPUs are device files of nothing: the script's part is right when only CuPy's is missing."""
    number = cluster.submit(folder, "gpu.sbatch", DATA, options=["--cpus-per-task=1"])
    ended = cluster.ended(number)
    assert ended["ExitCode"] == "2:0", log(folder)
    assert "--device cuda" in log(folder)


@pytest.mark.parametrize(
    ("settings", "seconds"),
    [({}, 8), (MPICH, 20), ({"LAUNCHER": "mpirun"}, 8)],
    ids=["openmpi", "mpich", "mpirun"],
)
def test_a_rank_that_is_killed_ends_the_job(cluster: Cluster, folder: Path, settings: dict[str, str], seconds: int):
    """Under PMIx at once; under PMI-2 it may be `srun --wait=10` that ends the others."""
    mark = uuid.uuid4().hex
    number = cluster.submit(folder, "cpu.sbatch", DATA, "--epochs", "100000", options=TWO, **settings, **{MARK: mark})
    cluster.wait_for("an epoch", lambda: len(events(folder, f"slurm-{number}")) > 1, 60)
    os.kill(ranks(mark)[1], signal.SIGKILL)
    ended = cluster.ended(number, seconds)
    assert ended["JobState"] == "FAILED" and ended["ExitCode"] != "75:0", log(folder)


def test_without_data_the_job_says_what_it_wants(cluster: Cluster, folder: Path):
    ended = cluster.ended(cluster.submit(folder, "cpu.sbatch"))
    assert ended["ExitCode"] == "2:0" and "which data?" in log(folder)
