"""Gradients that travel in 16 bits: rounded twice and no more, the same on all ranks, and nothing hidden."""

import numpy as np
import pytest

from mpi_parallel.device import Host
from mpi_parallel.mpi import messages
from mpi_parallel.nn.store import COUNT, ParameterStore
from mpi_parallel.result_merging.flat import Flat
from mpi_parallel.result_merging.window import Window
from mpi_parallel.result_merging.wire import Wire
from tests.assembly import assemble, world
from tests.samples import write_image_set

NARROW = pytest.mark.parametrize("precision", ["bfloat16", "float16"])
ROUNDED = {"bfloat16": 2.0**-8, "float16": 2.0**-11}  # of a number, at the most
ALL = pytest.mark.parallel([1, 2, 3, 4])


def nodes_of_two(store, comm, wire):
    return Window(store, comm, comm.split(comm.rank // 2), wire)


def nodes_of_one(store, comm, wire):
    return Window(store, comm, comm.split(comm.rank), wire)


KINDS = {
    "flat": lambda store, comm, wire: Flat(store, comm, wire),
    "window": lambda store, comm, wire: Window(store, comm, wire=wire),
    "nodes of two": nodes_of_two,
    "nodes of one": nodes_of_one,
}
KIND = pytest.mark.parametrize("kind", KINDS)


def gradient(rank: int, size: int) -> np.ndarray:
    return np.random.default_rng(rank).normal(size=size).astype(np.float32)


@ALL
@NARROW
@pytest.mark.parametrize("size", [0, 1, 5, 333])
@pytest.mark.parametrize("limit", [1 << 30, 200])
def test_a_sum_is_rounded_once_a_rank_and_once_as_a_whole(precision, size, limit, monkeypatch):
    monkeypatch.setattr(messages, "MOST", limit)
    comm, array = world(), gradient(world().rank, size)
    Wire(comm, size, precision).sum(array)
    theirs = [gradient(rank, size).astype(float) for rank in range(comm.size)]
    error = ROUNDED[precision] * 1.01 * (sum(map(np.abs, theirs)) + np.abs(sum(theirs))) if comm.size > 1 else 0
    assert (np.abs(array - sum(theirs)) <= error + 1e-6).all()
    assert all(np.array_equal(array, row) for row in comm.gather(array))


def merge(kind: str, precision: str, value: float, rank: int):
    comm = world()
    store = ParameterStore(Host(), [("W", (40, 5)), ("b", (5,))])
    merger = KINDS[kind](store, comm, precision)
    for _ in range(2):
        store.zero_grad()
        store.gradients[:] = 1
        store.tail[COUNT] = 2**20 + comm.rank
        if comm.rank == rank:
            store.gradients[7] = value
        store.flag_bad()
        totals = merger.merge()
        merger.publish()
    merger.close()
    return totals


@ALL
@NARROW
@KIND
def test_what_is_not_finite_is_never_hidden_and_counts_are_exact(kind, precision):
    comm = world()
    for value in (np.nan, np.inf, 1.0):
        totals = merge(kind, precision, value, comm.size - 1)
        assert totals.finite == np.isfinite(value)
        assert totals.count == sum(2**20 + rank for rank in range(comm.size))


@pytest.mark.parallel([2, 3, 4])
@pytest.mark.parametrize("kind", ["flat", "nodes of one"])
def test_what_a_format_cannot_hold_is_flagged(kind):
    for rank in range(world().size):
        assert not merge(kind, "float16", 1e5, rank).finite
        assert merge(kind, "bfloat16", 1e5, rank).finite
    assert not merge(kind, "float16", 65500.0 + 64 * world().rank, world().rank).finite  # only the sum is too large


@pytest.mark.parallel([2, 4])
@NARROW
def test_training_with_it_stays_close(precision, tmp_path):
    path = tmp_path / "images.h5"  # of this rank
    write_image_set(path, 61)
    runs = [assemble(path, world(), merge="flat", wire=wire, optimizer="adam") for wire in ("float32", precision)]
    for run in runs:
        run.train(20)
    plain, rounded = (run.weights() for run in runs)
    assert 0 < np.abs(plain - rounded).max() < 0.05
    assert all(np.array_equal(rounded, row) for row in world().gather(rounded))
