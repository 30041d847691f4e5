"""Whole training runs by every merger on any number of ranks against one rank's by the flat one."""

import numpy as np
import pytest

from mpi_parallel.result_merging.registry import MERGERS
from tests.assembly import ALONE, assemble, world
from tests.samples import write_image_set

CASES = {
    "adam": ({"optimizer": "adam"}, 0.0),
    "unequal rows, a short last batch, clipped": ({"batch_size": 14}, 0.3),
    "fewer rows in a batch than ranks": ({"batch_size": 2}, 0.0),
    "clipped micro-batches with momentum": ({"optimizer": "momentum", "micro_batch": 3, "weight_decay": 0.01}, 0.3),
    "lamb": ({"optimizer": "lamb", "weight_decay": 0.01}, 0.3),
    "dropout with adamw": ({"optimizer": "adamw", "dropout": 0.3, "weight_decay": 0.1}, 0.0),
}


@pytest.mark.parallel([1, 2, 3, 4])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("merge", ["auto", *MERGERS])
def test_training_is_that_of_one_rank(merge, case, shared_path):
    comm = world()
    settings, clip_norm = CASES[case]
    path = shared_path / "data.h5"
    if comm.rank == 0:
        write_image_set(path, 61)
    comm.meet()
    alone, ours = assemble(path, ALONE, **settings), assemble(path, comm, merge=merge, **settings)
    expected = alone.train(9, 0.01, clip_norm)
    for told, other in zip(ours.train(9, 0.01, clip_norm), expected, strict=True):
        assert (told.count, told.correct, told.finite) == (other.count, other.correct, True)
        assert told.loss == pytest.approx(other.loss, rel=1e-4)
    np.testing.assert_allclose(ours.weights(), alone.weights(), rtol=1e-3, atol=2e-5)
    rows = comm.gather(ours.weights())
    assert all(np.array_equal(row, rows[0]) for row in rows)
    scores = ours.score(ours.test), alone.score(alone.test)
    assert scores[0].loss == pytest.approx(scores[1].loss, rel=1e-4)
    ours.merger.close()
