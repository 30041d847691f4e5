"""The pipeline engine: messages in order, memory by stages, flags and scores that reach all ranks."""

import numpy as np
import pytest

from mpi_parallel.mpi.link import IN_FLIGHT, Link
from mpi_parallel.training.step import train_step
from tests.assembly import ALONE, assemble, world
from tests.samples import write_image_set


@pytest.fixture
def path(shared_path):
    return shared_path / f"set-{world().rank}.h5"


def grids(ranks):
    """(pipe, tensor) with more than one stage."""
    return [(p, t) for p in (2, 3) for t in (1, 2) if ranks % (p * t) == 0]


@pytest.mark.parallel([2, 3])
@pytest.mark.parametrize("shapes", [[(3, 4)] * 5, [(0, 4), (2, 4), (5, 4), (0, 4)], [(300, 1000)] * 4])
def test_arrays_arrive_as_they_were_when_they_were_sent_and_in_order(shapes):
    comm = world()
    if comm.rank > 1:
        return
    link, arrays = Link(comm, 1 - comm.rank), [np.full(shape, n, np.float32) for n, shape in enumerate(shapes)]
    if comm.rank == 0:
        for array in arrays:
            link.send(array)
            array[...] = -1  # only a copy is on its way
        link.settle()
        return
    expected = [link.expect(np.empty_like(array)) for array in arrays]
    assert len(shapes) > IN_FLIGHT
    assert all(np.array_equal(one.wait(), array) for one, array in zip(expected, arrays, strict=True))


@pytest.mark.parallel([1, 2, 3, 4])
@pytest.mark.parametrize("settings", [{}, {"dropout": 0.3, "optimizer": "adam"}, {"optimizer": "lamb"}], ids=str)
def test_reproducible_grids_of_data_and_pipe_give_the_same_bits(path, settings):
    write_image_set(path, 61)
    alone = assemble(path, ALONE, groups=4, **settings)
    alone_totals = alone.train(9, 0.01, clip_norm=0.3)
    for pipe, schedule in [(p, s) for p in (1, 2, 3) if world().size % p == 0 for s in ("gpipe", "1f1b")]:
        run = assemble(path, world(), groups=4, pipe=pipe, schedule=schedule, **settings)
        assert run.train(9, 0.01, clip_norm=0.3) == alone_totals
        np.testing.assert_array_equal(run.whole(), alone.whole())
        assert run.score(run.test) == alone.score(alone.test)


@pytest.mark.parallel([2, 3, 4])
@pytest.mark.parametrize("rank", [0, 1])
def test_a_gradient_that_is_not_finite_on_one_rank_stops_all(path, rank):
    write_image_set(path, 64)
    for pipe, tensor in [*grids(world().size), (1, world().size if world().size < 4 else 2)]:
        run = assemble(path, world(), pipe=pipe, tensor=tensor)
        if run.comm.rank == rank:
            run.model.store.weights[0] = np.nan
        before = run.weights()
        (totals,) = run.train(1)
        assert not totals.finite
        assert np.array_equal(run.weights(), before, equal_nan=True)


@pytest.mark.parallel([2, 3, 4])
def test_the_ranks_are_told_of_one_that_is_asked_to_stop(path):
    write_image_set(path, 64)
    for pipe, tensor in grids(world().size):
        run = assemble(path, world(), pipe=pipe, tensor=tensor)
        for asked in [None, *range(run.comm.size)]:
            batch = next(run.training.epoch(0, run.batch_size))
            stop = run.comm.rank == asked
            totals = train_step(run.engine, batch, run.merger, run.optimizer, 0.01, stop=stop)
            assert totals.stop == (asked is not None)
            assert totals.count == run.batch_size


@pytest.mark.parallel([2, 3, 4])
@pytest.mark.parametrize("rows", [1, 513, 1600])
def test_the_score_is_that_of_one_rank(path, rows):
    write_image_set(path, 64, test=rows)
    alone = assemble(path, ALONE)
    expected = alone.score(alone.test)
    for pipe, tensor in grids(world().size):
        run = assemble(path, world(), pipe=pipe, tensor=tensor)
        ours = run.score(run.test)
        assert (ours.count, ours.accuracy) == (rows, expected.accuracy)
        np.testing.assert_allclose(ours.loss, expected.loss, rtol=1e-6)


@pytest.mark.parallel([2, 3])
def test_memory_under_1f1b_does_not_grow_with_the_micro_batches(path):
    """Of a stage s of S the activations of S - s micro-batches are held, under gpipe those of all."""
    write_image_set(path, 512)
    taken = {(name, count): arenas(path, name, count) for name in ("gpipe", "1f1b") for count in (4, 16)}
    each = (taken["gpipe", 16] - taken["gpipe", 4]) / 12  # what one more micro-batch takes
    assert each > 0
    assert taken["1f1b", 16] == taken["1f1b", 4]
    fewer = (taken["gpipe", 16] - taken["1f1b", 16]) / each
    assert fewer == pytest.approx(16 - (world().size - world().rank), abs=1)  # one more input may be on its way


def arenas(path, schedule, count, rows=16):
    """Bytes of activations that this rank holds for so many micro-batches of 16 rows."""
    run = assemble(
        path, world(), pipe=world().size, schedule=schedule, batch_size=rows * count, micro_batch=rows,
        hidden=(200, 200, 200),
    )  # fmt: skip
    run.train(3)
    return run.model.workspace.nbytes


@pytest.mark.parallel([2, 3, 4])
@pytest.mark.parametrize("merge", ["auto", "flat", "buckets", "window", "sharded"])
@pytest.mark.parametrize("optimizer", ["adam", "lamb"])
def test_every_merger_serves_on_every_grid(shared_path, merge, optimizer):
    path = shared_path / "data.h5"
    if world().rank == 0:
        write_image_set(path, 61)
    world().meet()
    settings = {"optimizer": optimizer, "weight_decay": 0.01, "micro_batch": 5}
    alone = assemble(path, ALONE, **settings)
    expected = alone.train(7, 0.003, 0.3)
    for pipe, tensor in [*grids(world().size), (1, 2 if world().size % 2 == 0 else 3)]:
        run = assemble(path, world(), merge=merge, pipe=pipe, tensor=tensor, **settings)
        for ours, theirs in zip(run.train(7, 0.003, 0.3), expected, strict=True):
            assert (ours.count, ours.correct, ours.finite) == (theirs.count, theirs.correct, True)
            np.testing.assert_allclose(ours.loss, theirs.loss, rtol=1e-5)
        np.testing.assert_allclose(run.whole(), alone.whole(), rtol=0, atol=5e-5)
        run.merger.close()
