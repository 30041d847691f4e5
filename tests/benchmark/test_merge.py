"""What `benchmark merge` measures is the work that it names."""

import numpy as np
import pytest

from mpi_parallel.benchmark.merge import BASELINE, NumpyAdam, Steps, measure_size
from mpi_parallel.device import Host
from mpi_parallel.nn.optimizers import Adam
from mpi_parallel.nn.store import ParameterStore
from mpi_parallel.result_merging.flat import Flat
from mpi_parallel.result_merging.registry import MERGERS
from tests.assembly import world


@pytest.mark.parallel([1, 2, 3])
def test_the_baseline_is_adam():
    comm, store = world(), ParameterStore(Host(), [("w", (500,))])
    plain, ours = NumpyAdam(500, comm), Steps(Flat(store, comm), Adam(store))
    for step in range(5):
        gradient = np.random.default_rng([comm.rank, step]).normal(size=500).astype(np.float32)
        for candidate in (plain, ours):
            candidate.prepare(gradient)
            candidate.call()
    np.testing.assert_allclose(plain.w, store.weights, rtol=1e-4, atol=1e-6)


@pytest.mark.parallel([1, 2])
def test_every_merger_has_its_time():
    seconds = measure_size(2000, "adam", 0.05, Host(), world())
    assert list(seconds) == [BASELINE, *MERGERS]
    assert all(0 < value < 1 for value in seconds.values())
