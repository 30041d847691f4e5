"""One synchronised step."""

import numpy as np
import pytest
from mpi4py import MPI

from mpi_parallel.training.step import train_step
from tests.assembly import assemble, world
from tests.samples import write_image_set


@pytest.fixture
def run(shared_path):
    return assemble(write_image_set(shared_path / f"set-{MPI.COMM_WORLD.rank}.h5"), world())


def step(run, **options):
    batch = next(run.training.epoch(0, run.batch_size))
    return train_step(run.engine, batch, run.merger, run.optimizer, **{"rate": 0.1, **options})


@pytest.mark.parallel([1, 2, 3])
@pytest.mark.parametrize("clip_norm", [0.01, 0.2])
def test_clipping_bounds_the_mean_gradient(run, clip_norm):
    before = run.weights()
    step(run, clip_norm=clip_norm)
    change = np.linalg.norm((run.weights() - before).astype(float))  # sgd: the rate times the gradient
    np.testing.assert_allclose(change, 0.1 * clip_norm, rtol=1e-4)


@pytest.mark.parallel([1, 2, 3])
def test_a_small_gradient_is_not_clipped(run):
    before = run.weights()
    step(run)
    free = run.weights() - before
    run.model.store.weights[...] = before
    step(run, clip_norm=100.0)
    assert np.array_equal(run.weights() - before, free)


@pytest.mark.parallel([1, 2, 3])
@pytest.mark.parametrize("bad", [np.nan, np.inf, 3e38])
def test_a_step_that_is_not_finite_is_not_taken(run, bad):
    store = run.model.store
    store.parameters["b0"].value[0] = bad
    store.parameters["W1"].value[...] = 3.0  # a float32 overflow where b0 is large
    before = run.weights()
    with np.errstate(all="ignore"):
        totals = step(run)
    assert not totals.finite
    assert np.array_equal(run.weights(), before, equal_nan=True)
    assert run.optimizer.steps == 0


@pytest.mark.parallel([1, 2, 3])
def test_what_the_step_before_left_does_not_count(run):
    first = step(run, rate=0.0)
    assert step(run, rate=0.0) == first
    assert first.count == run.batch_size


@pytest.mark.parallel([1, 2, 3])
def test_time_is_booked_to_its_phases(run):
    run.engine.clock.reset()
    for _ in range(3):
        step(run)
    total, seconds = run.engine.clock.total(), run.engine.clock.seconds
    assert all(seconds[phase] > 0 for phase in ("data", "compute", "merge", "update", "other"))
    np.testing.assert_allclose(sum(seconds.values()), total)
