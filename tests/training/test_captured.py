"""Steps that a device replays: the bits of the steps that the host tells, nothing allocated, everything in order."""

from itertools import islice

import numpy as np
import pytest

from mpi_parallel.config.learning import OptimizerOptions
from mpi_parallel.data_parallel.memory import Budget
from mpi_parallel.device import Host
from mpi_parallel.device.expressions import Expressions
from mpi_parallel.device.interface import Schedule
from mpi_parallel.nn.optimizers import RULES
from mpi_parallel.nn.precision import FORMATS
from mpi_parallel.training.ahead import in_order
from mpi_parallel.training.captured import AHEAD, CapturedSteps
from mpi_parallel.training.step import HostSteps
from tests.assembly import ALONE, assemble
from tests.device.recording import Recording
from tests.samples import spoil, write_image_set

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
    """Their totals, epoch after epoch, as far ahead as these steps may be."""
    totals = []
    for epoch in range(count):
        batches = islice(run.training.epoch(epoch, run.batch_size), count - len(totals))
        totals += [told for _, told in in_order(steps, batches, len(totals))]
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


@pytest.mark.parametrize(("graphs", "late"), [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("precision", FORMATS)
@pytest.mark.parametrize("optimizer", RULES)
def test_a_replay_has_the_bits_of_the_step_that_the_host_tells(path, monkeypatch, optimizer, precision, graphs, late):
    settings = {**BASE, "optimizer": optimizer, "precision": precision, "dropout": 0.3, "micro_batch": 5}
    rule = OptimizerOptions(lr=0.01, schedule="cosine", warmup=3, clip_norm=0.3)
    other, expected = told_by_the_host(path, settings, rule)
    device = Recording(monkeypatch, late=late)
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
    assert steps._shapes[0, 14].memory is not run.model.workspace.arena
    np.testing.assert_array_equal(run.weights(), other.weights())
    assert {edges for edges, shape in steps._shapes.items() if shape.captured} == {(0, 14), (0, 5)}
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
        "deal", "gather", "linear", "linear", "linear", "cross_entropy", *layer, *layer,
        "weight_gradient", "finish", "squares", "advance", "sgd",
    ]  # fmt: skip
    assert device.log[-3:] == [f"replay {len(captured)}", "mark 3", "wait 3"]


@pytest.mark.parametrize(("graphs", "late"), [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize(("clip", "holding"), [(0.0, "resident"), (0.3, "resident"), (0.0, "streaming")])
def test_a_small_network_goes_through_its_layers_at_once_where_that_is_faster(
    path, monkeypatch, clip, holding, graphs, late
):
    """The same steps by few launches, and what was tried before they were captured leaves no trace."""
    settings = {**BASE, "dropout": 0.3, "budget": Budget(holding=holding)}
    rule = OptimizerOptions(lr=0.01, clip_norm=clip)
    other, expected = told_by_the_host(path, settings, rule)
    device = Recording(monkeypatch, late=late)
    device.kernels.small = True
    run, steps, totals = taken_by(device, path, settings, rule, graphs)
    assert [(t.count, t.correct, t.finite) for t in totals] == [(t.count, t.correct, t.finite) for t in expected]
    assert [t.loss for t in totals] == pytest.approx([t.loss for t in expected], rel=1e-5)
    np.testing.assert_allclose(run.weights(), other.weights(), rtol=1e-4, atol=1e-6)
    assert {shape.at_once for shape in steps._shapes.values()} == {True}
    assert device.log.count("launch small_pass") == (2 if graphs else 2 * 2 + 11)  # trials, and steps that found memory
    replays = {entry for entry in device.log if entry.startswith("replay")}
    assert (f"replay {6 if clip else 5}" in replays) == graphs  # deal, gather, pass, norm, advance, sgd


@pytest.mark.parametrize(
    "why", ["micro-batches", "groups", "one group", "precision", "the layers are faster", "nobody measures"]
)
def test_or_layer_by_layer(path, monkeypatch, why):
    device = Recording(monkeypatch)
    device.kernels.small = True
    settings = dict(BASE)
    if why == "micro-batches":
        settings["micro_batch"] = 4
    elif why.endswith(("groups", "group")):
        settings["groups"] = 2 if why == "groups" else 1
    elif why == "precision":
        settings["precision"] = "bfloat16"
    elif why == "the layers are faster":
        device.time = lambda replays: [1.0, 2.0]
    else:
        device.measures = False
    rule = OptimizerOptions(lr=0.01)
    _, expected = told_by_the_host(path, settings, rule)
    _, steps, totals = taken_by(device, path, settings, rule)
    assert totals == expected
    assert {shape.at_once for shape in steps._shapes.values()} == {False}
    assert any(shape.captured for shape in steps._shapes.values())


@pytest.mark.parametrize("holding", ["resident", "streaming"])
@pytest.mark.parametrize("graphs", [True, False])
def test_the_host_launches_marks_and_waits_for_a_step_before(path, monkeypatch, graphs, holding):
    """All that it does for a step with a graph: it copies nothing but rows, and the device has two more to do."""
    device = Recording(monkeypatch)
    run = assemble(path, ALONE, device=device, budget=Budget(holding=holding), **{**BASE, "batch_size": 5})
    steps = CapturedSteps(run.engine, run.merger, run.optimizer, Schedule(0.01, False, 0, 40), graphs)

    def before(number):
        device.log.clear()
        return False, False

    batches = list(run.training.epoch(0, 5))[:12]
    logs = [list(device.log) for _ in in_order(steps, batches, 0, before)]
    assert len(logs) == 12
    for number, log in enumerate(logs[3:-2], 4 + AHEAD):
        assert log[-2:] == [f"mark {number}", f"wait {number - AHEAD}"]
        told = [entry for entry in log[:-2] if entry != "launch land"]
        assert (told != log[:-2]) == (holding == "streaming")
        assert [entry.split()[0] for entry in told] == (["replay"] if graphs else ["launch"] * len(told))
    run.training.rows.close()


def test_what_is_asked_for_does_not_reach_steps_that_are_under_way(path, monkeypatch):
    """Nor does it go down in them: the memory that it is read from changes when nobody reads it any more."""
    device = Recording(monkeypatch, late=True)
    run = assemble(path, ALONE, device=device, **{**BASE, "batch_size": 5})
    steps = CapturedSteps(run.engine, run.merger, run.optimizer, Schedule(0.01, False, 0, 40), True)
    batches = list(run.training.epoch(0, 5))
    for number, save in enumerate([False, True, False]):
        steps.begin(batches[number], number, save=save)
        assert steps._asked.tolist() == [0, save]
    assert device.log[-1] == "mark 3"
    assert [entry for entry in device.log if entry.startswith("wait ")][-2:] == ["wait 1", "wait 2"]
    assert [steps.end().save for _ in range(3)] == [False, True, False]


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


@pytest.mark.parametrize("late", [True, False])
@pytest.mark.parametrize("graphs", [True, False])
def test_a_step_that_goes_bad_holds_those_behind_it(path, monkeypatch, graphs, late):
    """They find the weights as the host's steps do, which hear of it at once; so does who looks into it."""
    spoil(path, 5, 40)
    settings, rule = {**BASE, "batch_size": 5, "optimizer": "adam"}, OptimizerOptions(lr=0.01)
    runs, told = [], []
    for device in (plain(), Recording(monkeypatch, late=late)):
        run = assemble(path, ALONE, device=device, **settings)
        host = HostSteps(run.engine, run.merger, run.optimizer, rule, 40)
        schedule = Schedule(0.01, False, 0, 40)
        steps = host if not runs else CapturedSteps(run.engine, run.merger, run.optimizer, schedule, graphs)
        seen = []
        with np.errstate(all="ignore"):
            for epoch in range(3):
                for _, totals in in_order(steps, run.training.epoch(epoch, 5), len(seen)):
                    seen.append((totals, b"" if totals.finite else run.weights().tobytes()))
        runs.append(run)
        told.append(seen)
    assert [not totals.finite for totals, _ in told[0]].count(True) >= 4
    for (ours, at), (theirs, then) in zip(told[1], told[0], strict=True):
        assert (ours.finite, at) == (theirs.finite, then)
        assert ours == theirs or not ours.finite
    np.testing.assert_array_equal(runs[1].weights(), runs[0].weights())
    assert runs[1].optimizer.steps == runs[0].optimizer.steps


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
