"""The reference of all mergers: one sum over the ranks."""

import numpy as np
import pytest

from mpi_parallel.device import Host
from mpi_parallel.nn.store import CORRECT, COUNT, LOSS, STOP, ParameterStore
from mpi_parallel.result_merging.flat import Flat
from mpi_parallel.result_merging.metrics import Totals
from tests.assembly import world

SHAPES = [("W1", (40, 7)), ("b1", (7,)), ("W0", (300, 40)), ("b0", (40,))]


def numbers(rank, n, dtype=np.float32):
    return np.random.default_rng(rank).normal(size=n).astype(dtype)


def merger_of(comm):
    """A merger over a store with each rank's own gradients and sums, and the same weights."""
    store = ParameterStore(Host(), SHAPES)
    store.weights[...] = numbers(99, store.size)
    store.gradients[...] = numbers(comm.rank, store.size)
    store.tail[[LOSS, CORRECT, COUNT]] = 0.5, comm.rank, 10 * comm.rank
    return Flat(store, comm)


@pytest.mark.parallel([1, 2, 3, 4])
def test_every_rank_gets_the_sums():
    merger = merger_of(comm := world())
    ranks = range(comm.size)
    assert merger.merge() == Totals(0.5 * comm.size, sum(ranks), 10 * sum(ranks), stop=False, finite=True)
    expected = sum(numbers(rank, merger.store.size, np.float64) for rank in ranks)
    np.testing.assert_allclose(merger.store.gradients, expected, rtol=0, atol=1e-6)
    everyone = comm.gather(merger.store.gradients)
    assert all(np.array_equal(gradients, everyone[0]) for gradients in everyone)


@pytest.mark.parallel([1, 2, 3, 4])
def test_every_rank_hears_of_one_that_is_asked_to_stop():
    comm = world()
    for asked in range(comm.size):
        merger = merger_of(comm)
        merger.store.tail[STOP] = comm.rank == asked
        assert merger.merge().stop


@pytest.mark.parallel([1, 2, 3, 4])
def test_every_rank_updates_all_weights_and_merging_none():
    merger = merger_of(world())
    merger.ready(list(merger.store.parameters.values()))
    merger.merge()
    merger.publish()
    assert merger.owned == slice(0, merger.store.size)
    assert np.array_equal(merger.store.weights, numbers(99, merger.store.size))


@pytest.mark.parallel([1, 2, 3, 4])
def test_norm_is_that_of_the_summed_gradient():
    merger = merger_of(world())
    merger.merge()
    np.testing.assert_allclose(merger.norm(), np.linalg.norm(merger.store.gradients.astype(float)), rtol=1e-6)
