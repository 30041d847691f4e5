"""Ranks on several hosts, and hosts that can no longer be reached."""

import json
import sys
import threading
import time
import uuid

import pytest
from mpi4py import MPI

from tests.hosts import hosts
from tests.launch import launch, processes
from tests.samples import write_image_set

MPI_NAME = "mpich" if "MPICH" in MPI.Get_library_version() else "openmpi"
OPTIONS = ("--reproducible", "--batch-size", "16", "--hidden", "8", "--checkpoint-every", "20")


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Two hosts, or none of the tests."""
    try:
        with hosts(2, tmp_path_factory.mktemp("hosts")) as made:
            yield made
    except OSError as error:
        pytest.skip(f"hosts need root and network namespaces: {error}")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the image set is, and where runs go."""
    made = tmp_path_factory.mktemp("runs")
    write_image_set(made / "set.h5", train=120, validation=30, test=40)
    return made


def train(ranks, out, *options, **how):
    """The job that trained on the image set beside `out`."""
    given = ["--data", out.parent / "set.h5", "--out", out, "--progress", "none", "--threads", "1", "--no-report"]
    return launch(ranks, "-m", "mpi_parallel.train", *given, *OPTIONS, *options, **how)


def events(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def digest(out):
    """What a run ended with."""
    return events(out)[-1]["weights_sha256"]


def test_ranks_on_two_hosts_end_with_the_bits_of_one(two, folder):
    how = {"within": two.within, "mpirun": two.options(MPI_NAME, 2), "env": two.env}
    job = train(4, folder / "two", "--steps", "60", "--merge", "window", **how)
    assert job.returncode == 0, job.stderr
    assert events(folder / "two")[0]["hosts"] == two.names
    assert train(1, folder / "one", "--steps", "60").returncode == 0
    assert digest(folder / "two") == digest(folder / "one")


class Cutter(threading.Thread):
    """Cuts a host off once there are checkpoints, until all ranks have ended by themselves."""

    def __init__(self, two, out):
        super().__init__(daemon=True)
        self.two, self.out, self.env, self.ended = two, out, {"MPI_PARALLEL_TEST_CUT": uuid.uuid4().hex}, False

    def run(self):
        until = time.monotonic() + 60
        while len(list(self.out.glob("checkpoints/step-*.h5"))) < 2:
            if time.monotonic() > until:
                return
            time.sleep(0.02)
        self.two.cut(1)
        until = time.monotonic() + 30
        while self.ranks() and time.monotonic() < until:
            time.sleep(0.2)
        self.ended = not self.ranks()
        self.two.mend(1)  # Open MPI's mpirun waits for what it has started there

    def ranks(self):
        commands = processes(self.env["MPI_PARALLEL_TEST_CUT"]).values()
        return [command for command in commands if command.startswith(f"{sys.executable} -m mpi_parallel.train")]


def test_a_host_that_cannot_be_reached_is_named_and_nothing_is_lost(two, folder):
    out, steps = folder / "cut", ("--steps", "600", "--merge", "exact")
    cutter = Cutter(two, out)
    cutter.start()
    how = {"within": two.within, "mpirun": two.options(MPI_NAME, 1), "env": two.env | cutter.env}
    job = train(2, out, *steps, "--hang-timeout", "5s", **how, deadline=90)
    cutter.join()
    assert cutter.ended, f"ranks were left until the link was mended, or it was never cut:\n{job.stderr}"
    assert job.returncode != 0
    assert f"did not arrive: rank 1 on {two.names[1]}" in job.stderr
    assert "does not answer" in job.stderr
    assert job.stderr.count("in train\n") >= 1, "a stack"
    job = train(2, out, *steps, "--resume", "auto")
    assert job.returncode == 0, job.stderr
    assert train(1, folder / "calm", *steps).returncode == 0
    assert digest(out) == digest(folder / "calm")
