"""However the model and the data are divided, it is the same training: as that of one rank."""

from itertools import product

import numpy as np
import pytest

from mpi_parallel.model_parallel import part, placement
from mpi_parallel.model_parallel.schedules import SCHEDULES
from mpi_parallel.nn.mlp import weights_sha256
from tests.assembly import ALONE, assemble, world
from tests.samples import write_image_set
from tests.test_equivalence import ADAPTIVE, Case, agree

CASES = {
    "sgd": Case(),
    "adamw": Case(rate=ADAPTIVE, settings={"optimizer": "adamw", "weight_decay": 0.1}),
    "unequal rows and a short last batch": Case(train=61, settings={"batch_size": 14}),
    "fewer rows in a batch than ranks": Case(train=10, steps=12, settings={"batch_size": 2}),
    "clipped micro-batches with dropout": Case(clip_norm=0.3, settings={"micro_batch": 3, "dropout": 0.3}),
    "more shards than rows": Case(train=11, settings={"shards": 64, "batch_size": 4}),
}


def layouts(ranks):
    """(pipe, tensor) of every grid of so many ranks on which the test's network fits."""
    return [(pipe, tensor) for pipe, tensor in product(range(1, 4), repeat=2) if ranks % (pipe * tensor) == 0]


@pytest.fixture
def path(shared_path):
    return shared_path / f"set-{world().rank}.h5"


@pytest.mark.parallel([1, 2, 3, 4])
@pytest.mark.parametrize("name", CASES)
def test_every_grid_trains_as_one_rank(path, name, monkeypatch):
    case = CASES[name]
    write_image_set(path, case.train)
    alone, alone_totals = case.run(path, ALONE)
    for (pipe, tensor), schedule in product(layouts(world().size), SCHEDULES):
        run = assemble(path, world(), pipe=pipe, tensor=tensor, schedule=schedule, **case.settings)
        np.testing.assert_array_equal(run.whole(), assemble(path, ALONE, **case.settings).whole())
        totals = run.train(case.steps, case.rate, case.clip_norm)
        agree(totals, alone_totals)
        np.testing.assert_allclose(run.whole(), alone.whole(), rtol=0, atol=2e-6)
        assert all(told == totals for told in run.comm.comm.allgather(totals)), "the ranks were told different totals"
        monkeypatch.setattr(part, "PIECE", 20)  # a few rows
        digests = run.comm.gather_text(weights_sha256(run.model.pieces()))
        assert digests[0] == weights_sha256(run.model.weights())
        assert len(set(digests)) == 1
        assert (run.score(run.test).count, run.score(run.test).accuracy) == (20, alone.score(alone.test).accuracy)
        np.testing.assert_allclose(run.score(run.test).loss, alone.score(alone.test).loss, rtol=2e-6)


SHARED = {
    "lamb": Case(rate=ADAPTIVE, settings={"optimizer": "lamb", "weight_decay": 0.01}),
    "clipped, unequal micro-batches with dropout": Case(
        train=61, clip_norm=0.3, settings={"batch_size": 14, "micro_batch": 3, "dropout": 0.3}
    ),
    "one layer is most of the work": Case(settings={"hidden": (40, 41), "micro_batch": 2, "dropout": 0.2}),
    "the first layer is most of the work": Case(settings={"hidden": (50, 3)}),
    "fewer rows in a batch than ranks": Case(train=10, steps=12, settings={"batch_size": 2}),
}


@pytest.mark.parallel([2, 3, 4])
@pytest.mark.parametrize("name", SHARED)
def test_stages_that_share_a_layer_train_as_one_rank(path, name, monkeypatch):
    monkeypatch.setattr(placement, "OVERHEAD", 0)
    monkeypatch.setattr(placement, "FLOAT", 0)
    case = SHARED[name]
    write_image_set(path, case.train)
    alone, alone_totals = case.run(path, ALONE)
    shared = 0
    for (pipe, tensor), schedule in product(layouts(world().size), SCHEDULES):
        run = assemble(path, world(), pipe=pipe, tensor=tensor, schedule=schedule, **case.settings)
        np.testing.assert_array_equal(run.whole(), assemble(path, ALONE, **case.settings).whole())
        agree(run.train(case.steps, case.rate, case.clip_norm), alone_totals)
        np.testing.assert_allclose(run.whole(), alone.whole(), rtol=0, atol=2e-6)
        assert run.score(run.test).accuracy == alone.score(alone.test).accuracy
        shared += sum(cut.columns != cut.slice for cut in getattr(run.model, "cuts", []))
    assert run.comm.total(shared) > 0, "no layer was shared by stages"
