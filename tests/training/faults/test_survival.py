"""Ranks that die: the others go on from memory where the MPI can; where it cannot, the job ends soon, with a report."""

import json
import platform
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from mpi4py import MPI

from mpi_parallel.config import TrainConfig
from mpi_parallel.options import InputError
from mpi_parallel.options.command_line import parse
from mpi_parallel.training.checkpoints.checkpoint import read_checkpoint
from mpi_parallel.training.faults.legacy import cover
from tests.launch import launch
from tests.samples import write_image_set

tolerant = pytest.mark.skipif("MPICH" in MPI.Get_library_version(), reason="needs an MPI with fault tolerance")
FAULTS = {  # ranks, who dies, where, how ranks are merged, what is left at the end
    "one, then rank 0": (4, "1,0", "forward:9,merge:20", "exact", 2),
    "two at once": (4, "0,2", "publish:9,publish:9", "exact", 2),
    "in an evaluation": (2, "0", "evaluation:2", "flat", 1),
    "in the first message": (3, "2", "reading:1", "exact", 2),
    "with a neighbour's share": (3, "1", "publish:9", "sharded", 2),
}


def options(folder, name):
    """Of a run of 24 steps in 3 epochs."""
    return ["--data", folder / "set.h5", "--batch-size", "8", "--epochs", "3", "--out", folder / name.replace(" ", "-")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("survival")
    write_image_set(folder / "set.h5", train=64, validation=20)
    return folder


@pytest.fixture(scope="module")
def ended(folder):
    """How the runs with these faults ended, and the undisturbed one."""

    def job(name):
        if name == "undisturbed":
            return launch(2, "-m", "mpi_parallel.train", *options(folder, name), "--merge", "exact")
        ranks, who, where, merge, _ = FAULTS[name]
        fault = [who, where, ",".join(["kill"] * len(who.split(",")))]
        tail = ["--merge", merge, "--survive", "--threads", "1", "--checkpoint-every", "5"]
        return launch(ranks, "-m", "tests.faulty", *fault, *options(folder, name), *tail, mpirun=["--with-ft", "ulfm"])

    names = [*FAULTS, "undisturbed"]
    with ThreadPoolExecutor(2) as pool:
        return dict(zip(names, pool.map(job, names), strict=True))


@tolerant
@pytest.mark.parametrize("name", FAULTS)
def test_the_others_go_on(ended, folder, name):
    job = ended[name]
    assert job.returncode == 0, job.stderr
    assert f"rank {FAULTS[name][1].split(',')[0]} on {platform.node()}" in job.stderr, "the lost are named"
    events, undisturbed = (
        [json.loads(line) for line in (folder / run.replace(" ", "-") / "metrics.jsonl").read_text().splitlines()]
        for run in (name, "undisturbed")
    )
    assert [event["ranks"] for event in events if event["event"] == "start"][-1] == FAULTS[name][4]
    end = events[-1]
    assert (end["event"], end["reason"], end["step"], end["epochs"]) == ("end", "finished", 24, 3)
    if FAULTS[name][3] == "exact":
        assert end["weights_sha256"] == undisturbed[-1]["weights_sha256"]
        losses = {event["epoch"]: event["validation_loss"] for event in events if event["event"] == "epoch"}
        assert losses == {
            event["epoch"]: event["validation_loss"] for event in undisturbed if event["event"] == "epoch"
        }
        return
    mine, theirs = (
        read_checkpoint(folder / run.replace(" ", "-") / "checkpoints" / "step-00000024.h5").weights
        for run in (name, "undisturbed")
    )
    for array in mine:
        np.testing.assert_allclose(mine[array], theirs[array], atol=2e-5)


@tolerant
def test_who_hangs_when_ranks_0_and_1_are_dead_ends_the_job_with_a_status(folder):
    """By an abort it might be 0."""
    fault = ["0,1,2", "forward:5,forward:5,forward:12", "kill,kill,hang"]
    tail = ["--survive", "--threads", "1", "--hang-timeout", "3s", "--epochs", "50", "--merge", "flat"]
    job = launch(4, "-m", "tests.faulty", *fault, *options(folder, "hung"), *tail, mpirun=["--with-ft", "ulfm"])
    assert job.returncode == 1, job.stderr
    assert "lost rank 0" in job.stderr and "(--hang-timeout): ending the job" in job.stderr


def test_it_is_refused_without_fault_tolerance(folder):
    job = launch(2, "-m", "mpi_parallel.train", *options(folder, "refused"), "--survive")
    assert job.returncode == 2
    assert (
        "--survive needs an MPI that outlives its ranks: Open MPI 5 or newer, started by mpirun --with-ft" in job.stderr
    )


@pytest.mark.parametrize("wrong", [["--merge", "window"], ["--tensor", "2"], ["--pipe", "2"]])
def test_what_cannot_survive_is_refused(wrong):
    with pytest.raises(InputError, match="--survive"):
        parse(TrainConfig, ["--data", "set.h5", "--survive", *wrong], "train", "")


@pytest.mark.parametrize("rank", [0, 1])
def test_without_it_the_job_ends_soon_and_tells_what_died(folder, rank):
    fault = [str(rank), "merge:9", "kill"]
    began = time.monotonic()
    job = launch(3, "-m", "tests.faulty", *fault, *options(folder, f"killed {rank}"), "--epochs", "50")
    assert job.returncode not in (0, 2, 3, 75)
    assert time.monotonic() - began < 30, "seconds, with the start of three ranks on a busy machine"
    assert "signal 9" in job.stderr + job.stdout


class TestCover:
    def test_whoever_has_all_is_enough(self):
        assert cover([[], [[0, 10]], [[0, 10]]], 10) == [(1, 0, slice(0, 10))]

    def test_a_neighbour_fills_the_gap(self):
        offers = [[[0, 4], [7, 10]], [], [[7, 10], [4, 7]]]
        assert cover(offers, 10) == [(0, 0, slice(0, 4)), (2, 1, slice(4, 7)), (0, 1, slice(7, 10))]

    def test_overlaps_are_taken_once(self):
        assert cover([[[0, 6]], [[4, 10]]], 10) == [(0, 0, slice(0, 6)), (1, 0, slice(6, 10))]

    def test_what_nobody_has(self):
        assert cover([[[0, 4]], [[7, 10]]], 10) is None
        assert cover([[], []], 10) is None
