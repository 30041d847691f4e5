"""However many ranks train, it is the same training: as that of one rank, and as a plain float64 network's."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from mpi4py import MPI

from mpi_parallel.device import Host
from mpi_parallel.device.workspace import Workspace
from mpi_parallel.nn.layers import Dropout
from mpi_parallel.training.step import train_step
from tests import reference
from tests.assembly import ALONE, assemble, world
from tests.samples import write_image_set


@dataclass
class Case:
    """A training run: the rows of the file, how to train on them, for how many steps."""

    train: int = 64
    steps: int = 9  # the third epoch has begun, with batches of 16
    rate: float = 0.05
    clip_norm: float = 0.0
    settings: dict[str, Any] = field(default_factory=dict)

    def run(self, path, comm):
        """(the run, the totals of its steps)"""
        run = assemble(path, comm, **self.settings)
        return run, run.train(self.steps, self.rate, self.clip_norm)


ADAPTIVE = 0.003  # a learning rate for those that divide the gradient by its size

CASES = {
    "sgd": Case(),
    "sgd with weight decay": Case(settings={"weight_decay": 0.01}),
    "momentum": Case(rate=0.02, settings={"optimizer": "momentum", "weight_decay": 0.01}),
    "adam": Case(rate=ADAPTIVE, settings={"optimizer": "adam"}),
    "adam with weight decay": Case(rate=ADAPTIVE, settings={"optimizer": "adam", "weight_decay": 0.01}),
    "lamb": Case(rate=ADAPTIVE, settings={"optimizer": "lamb", "weight_decay": 0.01}),
    "adamw": Case(rate=ADAPTIVE, settings={"optimizer": "adamw", "weight_decay": 0.1}),
    "unequal rows and a short last batch": Case(train=61, settings={"batch_size": 14}),
    "a last batch of one row": Case(train=49),
    "fewer rows in a batch than ranks": Case(train=10, steps=12, settings={"batch_size": 2}),
    "batches of one row": Case(train=10, steps=12, settings={"batch_size": 1}),
    "more rows in a batch than there are": Case(train=20, steps=4, settings={"batch_size": 100}),
    "fewer shards than ranks": Case(settings={"shards": 2}),
    "one shard": Case(settings={"shards": 1}),
    "more shards than rows": Case(train=11, settings={"shards": 64, "batch_size": 4}),
    "as many rows as ranks": Case(train=4, steps=6, settings={"batch_size": 3}),
    "micro-batches": Case(settings={"micro_batch": 3}),
    "micro-batches of one row": Case(train=30, settings={"micro_batch": 1, "batch_size": 7}),
    "clipped": Case(clip_norm=0.3),
    "clipped by a norm that is not reached": Case(clip_norm=1e6),
    "clipped micro-batches with adam": Case(
        rate=ADAPTIVE, clip_norm=0.3, settings={"optimizer": "adam", "micro_batch": 5}
    ),
    "dropout": Case(settings={"dropout": 0.3}),
    "dropout in micro-batches of unequal rows": Case(train=61, settings={"dropout": 0.3, "micro_batch": 2}),
    "logistic regression": Case(settings={"hidden": ()}),
    "a deep network": Case(settings={"hidden": (8, 7, 6, 5)}),
    "another seed": Case(settings={"seed": 4242}),
    "validation held out": Case(settings={"validation": 0.2}),
}


@pytest.fixture
def path(shared_path):
    """A path for a file, another one on each rank: none has to wait until another has written it."""
    return shared_path / f"set-{MPI.COMM_WORLD.rank}.h5"


def agree(totals, others):
    """Counts are equal, sums of losses to float32 rounding."""
    for name in ("count", "correct", "finite", "stop"):
        assert [getattr(one, name) for one in totals] == [getattr(other, name) for other in others]
    np.testing.assert_allclose([one.loss for one in totals], [other.loss for other in others], rtol=2e-6)


@pytest.mark.parallel([1, 2, 3, 4])
@pytest.mark.parametrize("name", CASES)
def test_many_ranks_train_as_one(path, name):
    case = CASES[name]
    write_image_set(path, case.train)
    (together, totals), (alone, alone_totals) = (case.run(path, comm) for comm in (world(), ALONE))
    assert len(totals) == case.steps
    agree(totals, alone_totals)
    np.testing.assert_allclose(together.weights(), alone.weights(), rtol=0, atol=2e-6)
    assert abs(together.weights() - assemble(path, ALONE, **case.settings).weights()).max() > 1e-3  # it did train

    everyone = together.comm.gather(together.weights())
    assert all(np.array_equal(weights, everyone[0]) for weights in everyone), "the ranks' weights differ"
    everyone = together.comm.comm.allgather(totals)
    assert all(told == totals for told in everyone), "the ranks were told different totals"


@pytest.mark.parallel([1, 2, 3, 4])
@pytest.mark.parametrize("name", CASES)
def test_ranks_train_as_the_plain_network(path, name):
    case = CASES[name]
    write_image_set(path, case.train)
    network = reference.Reference(assemble(path, ALONE, **case.settings).model.weights())
    rule = reference.RULES[case.settings.get("optimizer", "sgd")](case.rate, case.settings.get("weight_decay", 0.0))
    told = network.train(batches(path, case), rule, case.clip_norm)

    run, totals = case.run(path, world())
    assert [one.correct for one in totals] == [correct for _, correct in told]
    np.testing.assert_allclose([one.loss for one in totals], [loss for loss, _ in told], rtol=2e-6)
    for ours, theirs in zip(run.model.weights(), network.weights, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=4e-6)


def batches(path, case):
    """What the plain network is trained on: the order and the masks of one rank, everything else from the file."""
    run = assemble(path, ALONE, **case.settings)
    scaler, images, labels = run.training.scaler, run.training.rows.images, run.training.rows.labels
    dropout, steps = case.settings.get("dropout", 0.0), 0
    while True:
        for batch in run.training.epoch(steps // run.training.steps(run.batch_size), run.batch_size):
            x, t = (images[batch.index].astype(float) - scaler.mean) / scaler.std, labels[batch.index]
            yield (x, t, masks(run.model.widths, batch.keys, dropout)) if dropout else (x, t)
            if (steps := steps + 1) == case.steps:
                return


def masks(widths, keys, rate):
    """The factors (rows, width) that dropout takes for these rows behind each hidden layer."""
    layers = [Dropout(Workspace(Host()), rate, number) for number in range(len(widths) - 2)]
    ones = [np.ones((len(keys), width), np.float32) for width in widths[1:-1]]
    return [layer.forward(one, keys)[0] for layer, one in zip(layers, ones, strict=True)]


@pytest.mark.parallel([1, 2, 3, 4])
@pytest.mark.parametrize("rows", [1, 3, 200, 2500])
def test_the_score_does_not_depend_on_the_ranks(path, rows):
    write_image_set(path, 64, test=rows)
    together, alone = (assemble(path, comm, seed=5) for comm in (world(), ALONE))
    ours, theirs = together.score(together.test), alone.score(alone.test)
    assert (ours.count, ours.accuracy) == (rows, theirs.accuracy)
    np.testing.assert_allclose(ours.loss, theirs.loss, rtol=1e-6)


@pytest.mark.parallel([2, 3, 4])
@pytest.mark.parametrize("rank", [0, 1])
def test_a_gradient_that_is_not_finite_on_one_rank_stops_all(path, rank):
    write_image_set(path, 64)
    run = assemble(path, world())
    before = run.weights()
    if run.comm.rank == rank:
        run.training.rows.raw.mean[...] = np.nan  # the rows of this rank become NaN on their way to the network
    (totals,) = run.train(1)
    assert not totals.finite
    assert np.array_equal(run.weights(), before)


@pytest.mark.parallel([2, 3, 4])
def test_the_ranks_are_told_of_one_that_is_asked_to_stop(path):
    write_image_set(path, 64)
    run = assemble(path, world())
    told = [step_of(run, stop=run.comm.rank == asked) for asked in [None, *range(run.comm.size)]]
    assert told == [False] + [True] * run.comm.size


def step_of(run, stop):
    """Whether this rank was told to stop after a step in which it was asked to, or was not."""
    batch = next(run.training.epoch(0, run.batch_size))
    return train_step(run.engine, batch, run.merger, run.optimizer, 0.01, stop=stop).stop
