"""Steps that a device replays: the bits of the steps that the host tells, nothing allocated, everything in order."""

import numpy as np
import pytest

from mpi_parallel.config.learning import OptimizerOptions
from mpi_parallel.device import Host
from mpi_parallel.device.expressions import Expressions
from mpi_parallel.device.interface import Schedule
from mpi_parallel.nn.optimizers import RULES
from mpi_parallel.nn.precision import FORMATS
from mpi_parallel.training.captured import CapturedSteps
from mpi_parallel.training.step import HostSteps
from tests.assembly import ALONE, assemble
from tests.device.recording import Recording
from tests.samples import write_image_set

STEPS = 14  # of 5 an epoch, the last of which is short
BASE = {"batch_size": 14, "weight_decay": 0.01}


@pytest.fixture
def path(tmp_path):
    return write_image_set(tmp_path / "set.h5", train=61)


def plain():
    host = Host()
    host.kernels = Expressions(np)
    return host


def train(run, steps, count=STEPS):
    """Their totals, epoch after epoch."""
    totals = []
    for epoch in range(count):
        for batch in run.training.epoch(epoch, run.batch_size):
            if len(totals) == count:
                return totals
            totals.append(steps(batch, len(totals), False))
    return totals


def told_by_the_host(path, settings, rule):
    run = assemble(path, ALONE, device=plain(), **settings)
    return run, train(run, HostSteps(run.engine, run.merger, run.optimizer, rule, STEPS))


def taken_by(device, path, settings, rule, graphs=True):
    run = assemble(path, ALONE, device=device, **settings)
    schedule = Schedule(rule.lr, rule.schedule == "cosine", rule.warmup, STEPS, rule.clip_norm)
    steps = CapturedSteps(run.engine, run.merger, run.optimizer, schedule, graphs)
    return run, steps, train(run, steps)


def agree(run, totals, other, expected):
    assert totals == expected
    np.testing.assert_array_equal(run.weights(), other.weights())
    assert run.optimizer.steps == other.optimizer.steps
    assert run.model.store.loss_scale.state() == other.model.store.loss_scale.state()


@pytest.mark.parametrize("graphs", [True, False])
@pytest.mark.parametrize("precision", FORMATS)
@pytest.mark.parametrize("optimizer", RULES)
def test_a_replay_has_the_bits_of_the_step_that_the_host_tells(path, monkeypatch, optimizer, precision, graphs):
    settings = {**BASE, "optimizer": optimizer, "precision": precision, "dropout": 0.3, "micro_batch": 5}
    rule = OptimizerOptions(lr=0.01, schedule="cosine", warmup=3, clip_norm=0.3)
    other, expected = told_by_the_host(path, settings, rule)
    device = Recording(monkeypatch)
    run, _, totals = taken_by(device, path, settings, rule, graphs)
    agree(run, totals, other, expected)
    assert sum(entry.startswith("replay") for entry in device.log) == (12 if graphs else 0)  # each shape is met once


def test_each_shape_has_its_own_graph_and_a_growing_workspace_spoils_none(path, monkeypatch):
    rule = OptimizerOptions(lr=0.01)
    other = assemble(path, ALONE, device=plain(), **BASE)
    host = HostSteps(other.engine, other.merger, other.optimizer, rule, 40)
    device = Recording(monkeypatch)
    run = assemble(path, ALONE, device=device, **BASE)
    steps = CapturedSteps(run.engine, run.merger, run.optimizer, Schedule(0.01, False, 0, 40), True)
    number = 0
    for epoch in range(6):
        for ours, theirs in zip(run.training.epoch(epoch, 14), other.training.epoch(epoch, 14), strict=True):
            assert steps(ours, number) == host(theirs, number)
            number += 1
        assert run.score(run.training.rows) == other.score(other.training.rows)  # more rows at a time than a batch has
    assert steps._shapes[14].memory is not run.model.workspace._arena
    np.testing.assert_array_equal(run.weights(), other.weights())
    assert {rows for rows, shape in steps._shapes.items() if shape.captured} == {14, 5}
    assert len({entry for entry in device.log if entry.startswith("replay")}) == 1


def test_the_order_of_a_step_and_nothing_allocated_in_it(path, monkeypatch):
    device = Recording(monkeypatch)
    run = assemble(path, ALONE, device=device, **BASE)
    steps = CapturedSteps(run.engine, run.merger, run.optimizer, Schedule(0.01, False, 0, 40, clip=0.3), True)
    batches = list(run.training.epoch(0, 14))[:4]
    for number, batch in enumerate(batches[:2]):
        steps(batch, number)
    device.log.clear()
    steps(batches[2], 2)
    captured = [entry.removeprefix("capture ") for entry in device.log if entry.startswith("capture")]
    layer = ["weight_gradient", "input_gradient", "relu_gradient"]
    assert captured == [
        "deal", "fill", "gather_labelled", "linear", "linear", "linear", "cross_entropy", *layer, *layer,
        "weight_gradient", "check", "iadd", "squares", "advance", "sgd", "fetch", "fetch",
    ]  # fmt: skip
    assert device.log[-2:] == [f"replay {len(captured)}", "wait mark"]
    device.log.clear()
    steps(batches[3], 3)
    assert device.log == [f"replay {len(captured)}", "wait mark"]


def test_a_step_that_overflows_is_skipped_by_the_device(path, monkeypatch):
    settings = {**BASE, "optimizer": "adam", "precision": "float16"}
    device = Recording(monkeypatch)
    run = assemble(path, ALONE, device=device, **settings)
    scale = run.model.store.loss_scale
    scale.value = 2.0**20
    steps = CapturedSteps(run.engine, run.merger, run.optimizer, Schedule(0.01, False, 0, 40), True)
    before, weights = run.weights(), []
    with np.errstate(all="ignore"):
        totals = []
        for number, batch in enumerate(list(run.training.epoch(0, 14))[:4]):
            totals.append(steps(batch, number))
            weights.append(run.weights())
    assert [(t.finite, t.skipped) for t in totals] == [(False, True)] * 4
    assert all(np.array_equal(w, before) for w in weights)
    assert (scale.value, scale.skipped, run.optimizer.steps) == (2.0**16, 4, 0)


def test_a_loss_that_is_not_finite_leaves_the_weights_alone(path, monkeypatch):
    run = assemble(path, ALONE, device=Recording(monkeypatch), **BASE)
    run.model.store.parameters["b1"].value[...] = np.inf
    steps = CapturedSteps(run.engine, run.merger, run.optimizer, Schedule(0.01, False, 0, 40), True)
    before = run.weights()
    with np.errstate(all="ignore"):
        totals = steps(next(run.training.epoch(0, 14)), 0)
    assert (totals.finite, totals.skipped) == (False, False)
    np.testing.assert_array_equal(run.weights(), before)


def test_a_request_to_stop_is_told(path, monkeypatch):
    run = assemble(path, ALONE, device=Recording(monkeypatch), **BASE)
    steps = CapturedSteps(run.engine, run.merger, run.optimizer, Schedule(0.01, False, 0, 40), True)
    assert [steps(batch, n, n == 1).stop for n, batch in enumerate(run.training.epoch(0, 14))][:3] == [
        False,
        True,
        False,
    ]


class TestTheRecorder:
    """It refuses what would spoil a graph."""

    def refused(self, monkeypatch, work, why):
        device = Recording(monkeypatch)
        a = device.to_device(np.zeros(3, np.float32))
        with pytest.raises(AssertionError, match=why):
            device.capture(lambda: work(device, a))

    def test_refuses_arrays_that_are_made(self, monkeypatch):
        self.refused(monkeypatch, lambda device, a: a + a, "allocates")
        self.refused(monkeypatch, lambda device, a: device.xp.zeros(3), "allocates")

    def test_refuses_to_wait(self, monkeypatch):
        self.refused(monkeypatch, lambda device, a: float(a[0]), "waits")
        self.refused(monkeypatch, lambda device, a: device.to_host(a), "waits")

    def test_refuses_memory_that_is_not_pinned(self, monkeypatch):
        self.refused(monkeypatch, lambda device, a: device.fetch(a, np.zeros(3, np.float32)), "not pinned")
