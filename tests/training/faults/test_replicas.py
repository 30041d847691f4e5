"""Copies of the weights that differ are noticed, and the rank named."""

import json
import platform

import pytest
from mpi4py import MPI

from mpi_parallel.device import Host
from mpi_parallel.mpi.communicator import Communicator
from mpi_parallel.nn.optimizers import Adam
from mpi_parallel.nn.store import ParameterStore
from mpi_parallel.training.faults.replicas import differing
from tests.faulty import flip
from tests.launch import launch
from tests.samples import write_image_set

world = Communicator(MPI.COMM_WORLD)
rank, size = world.rank, world.size


@pytest.fixture
def copy():
    store = ParameterStore(Host(), [("W0", (5, 4)), ("b0", (4,))])
    store.weights[:] = 0.5
    return store, Adam(store), slice(0, store.size)


@pytest.mark.parallel([1, 2, 3, 4])
def test_copies_that_agree(copy):
    assert differing(*copy, world, rank) == ""


@pytest.mark.parallel([1, 2, 3, 4])
def test_one_flipped_bit(copy):
    if rank == size - 1:
        flip(copy[0])
    told = differing(*copy, world, rank)
    assert told.startswith({1: "", 2: "rank 0 on"}.get(size, f"rank {size - 1} on {platform.node()} differs from"))
    assert ("no majority" in told) == (size == 2)


@pytest.mark.parallel([1, 2, 3, 4])
def test_the_state_counts_where_all_have_it(copy):
    store, optimizer, owned = copy
    optimizer.state["m"][3] = rank
    assert (differing(store, optimizer, owned, world, rank) == "") == (size == 1)
    assert differing(store, optimizer, slice(0, 3), world, rank) == ""


@pytest.mark.parametrize("merge", ["flat", "exact"])
def test_a_run_with_a_flipped_bit_ends(tmp_path, merge):
    write_image_set(tmp_path / "set.h5")
    options = ["--data", tmp_path / "set.h5", "--batch-size", "16", "--out", tmp_path / "run", "--merge", merge]
    job = launch(3, "-m", "tests.faulty", "1", "forward:6", "flip", *options, "--check-replicas", "4")
    assert job.returncode == 1
    told = f"step 8: the copies of the weights are not the same any more: rank 1 on {platform.node()} differs"
    assert job.stderr.count(told) == 1
    end = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert (end["event"], end["reason"], end["step"]) == ("end", "replicas-differ", 8)
