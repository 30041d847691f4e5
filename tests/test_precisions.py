"""Every precision on every layout: the training of one rank, one decision to skip a step, the same bits when asked."""

import numpy as np
import pytest

from mpi_parallel.nn.precision import FIRST, FORMATS
from mpi_parallel.training.step import train_step
from tests.assembly import ALONE, assemble, world
from tests.samples import write_image_set

LAYOUTS = {1: [(1, 1)], 2: [(1, 1), (2, 1), (1, 2)], 3: [(3, 1)], 4: [(2, 2), (1, 2)]}  # (pipe, tensor)
HARD = {"micro_batch": 3, "dropout": 0.3, "batch_size": 14, "optimizer": "momentum"}


@pytest.fixture
def path(shared_path):
    return write_image_set(shared_path / f"set-{world().rank}.h5", train=61)


def largest_gap(one, other):
    return np.abs(one.whole() - other.whole()).max()


@pytest.mark.parallel([1, 2, 3, 4])
@pytest.mark.parametrize("precision", FORMATS[1:])
def test_every_layout_trains_as_one_rank(path, precision):
    alone = assemble(path, ALONE, precision=precision, **HARD)
    expected = alone.train(9, 0.02, clip_norm=0.3)
    exact = assemble(path, ALONE, **HARD)
    exact.train(9, 0.02, clip_norm=0.3)
    assert largest_gap(alone, exact) > 1e-6, "nothing was rounded"
    for pipe, tensor in LAYOUTS[world().size]:
        run = assemble(path, world(), pipe=pipe, tensor=tensor, precision=precision, **HARD)
        totals = run.train(9, 0.02, clip_norm=0.3)
        # A sum in another order may round an activation to its neighbour.
        assert largest_gap(run, alone) < 1e-3
        np.testing.assert_allclose([t.loss for t in totals], [t.loss for t in expected], rtol=1e-3)
        np.testing.assert_allclose(run.score(run.test).loss, alone.score(alone.test).loss, rtol=2e-3)


@pytest.mark.parallel([2, 3])
@pytest.mark.parametrize("merge", ["flat", "window", "buckets", "sharded"])
def test_every_merger_merges_scaled_gradients(path, merge):
    settings = {"precision": "float16", "optimizer": "lamb", "weight_decay": 0.01}
    alone, run = assemble(path, ALONE, **settings), assemble(path, world(), merge=merge, **settings)
    alone.train(6, 0.003, clip_norm=0.3), run.train(6, 0.003, clip_norm=0.3)
    assert largest_gap(run, alone) < 1e-3
    run.merger.close()


@pytest.mark.parallel([2, 3, 4])
@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_reproducible_runs_have_the_bits_of_one_rank(path, precision):
    settings = {"groups": 4, "precision": precision, "dropout": 0.2}
    alone, run = (assemble(path, comm, **settings) for comm in (ALONE, world()))
    assert alone.train(8, clip_norm=0.3) == run.train(8, clip_norm=0.3)
    np.testing.assert_array_equal(run.whole(), alone.whole())


@pytest.mark.parallel([1, 2, 4])
def test_an_overflow_is_skipped_by_all_ranks_and_halves_the_scale(path):
    for pipe, tensor in LAYOUTS[world().size]:
        run = assemble(path, world(), pipe=pipe, tensor=tensor, precision="float16")
        scale = run.model.store.loss_scale
        scale.value = 2.0**20  # a gradient of the logits has no place in float16
        before, batches = run.whole(), run.training.epoch(0, run.batch_size)
        with np.errstate(all="ignore"):
            totals = train_step(run.engine, next(batches), run.merger, run.optimizer, 0.1)
        assert (totals.finite, totals.skipped, totals.count) == (False, True, run.batch_size)
        assert (scale.value, scale.skipped, run.optimizer.steps) == (2.0**19, 1, 0)
        np.testing.assert_array_equal(run.whole(), before)
        scale.value = FIRST
        totals = train_step(run.engine, next(batches), run.merger, run.optimizer, 0.1)
        assert (totals.finite, totals.skipped, run.optimizer.steps) == (True, False, 1)


@pytest.mark.parallel([1, 2])
def test_a_loss_that_is_not_finite_is_no_matter_of_the_scale(path):
    run = assemble(path, world(), precision="float16")
    run.model.store.weights[...] = 1e4  # activations beyond 65504
    with np.errstate(all="ignore"):
        totals = train_step(run.engine, next(run.training.epoch(0, run.batch_size)), run.merger, run.optimizer, 0.1)
    assert (totals.finite, totals.skipped, run.model.store.loss_scale.value) == (False, False, FIRST / 2)
